"""The sampling temperature that gives a wanted number of wrong answers.

Section 3.1 of the cDPO paper (arXiv 2411.19943) chooses the temperature of each model and task such
that of 64 answers about 10 are wrong. Here it is found by bisection.

Dimension key: none.
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping

from core_jax.errors import ConfigError, nearest_name

PAPER_TEMPERATURES: Mapping[str, Mapping[str, float]] = {
    "gsm8k": {
        "llama3-8b": 0.5,
        "llama3-70b": 0.85,
        "deepseek-math-7b": 1.0,
        "qwen2.5-7b": 0.9,
        "qwen2.5-32b": 1.1,
    },
    "math": {
        "llama3-8b": 0.1,
        "llama3-70b": 0.15,
        "deepseek-math-7b": 0.3,
        "qwen2.5-7b": 0.5,
        "qwen2.5-32b": 0.7,
    },
}
"""By task and model, of 64 samples of training problems with top-p 0.95: those of Llama-3 and
DeepSeek-math are the paper's, those of Qwen2.5 are the authors' code's."""

_DIGITS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class TemperatureConfig:
    """Which temperature is wanted, and how it is looked for."""

    low: float = 0.1
    """The lowest temperature that is tried."""
    high: float = 1.5
    """The highest."""
    wanted_wrong: float = 10.0
    """Wrong answers of a problem, on average; the paper aims at about 10."""
    of_samples: int = 64
    """Of so many solutions of a problem."""
    tolerance: float = 1.0
    """How far from the wanted number of wrong answers is near enough."""
    max_tries: int = 8
    """Temperatures that are tried at most."""
    num_problems: int = 64
    """Problems that are solved at every temperature, the first ones."""
    num_samples: int = 8
    """Solutions of each; wrong ones are scaled up to `of_samples`."""
    keep_cut_off: bool = False
    """Whether wrong answers of solutions that ended at the length limit count, as in the sets."""

    def __post_init__(self) -> None:
        """Checks every field, and the numbers against each other."""
        if not 0 < self.low < self.high:
            raise ConfigError(
                f"temperatures from low {self.low} to high {self.high}; expected 0 < low < high"
            )
        for name in ("of_samples", "num_problems", "num_samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.wanted_wrong < self.of_samples:
            raise ConfigError(
                f"wanted_wrong is {self.wanted_wrong}; expected more than 0 and less than "
                f"of_samples, {self.of_samples}"
            )
        if self.tolerance <= 0:
            raise ConfigError(f"tolerance is {self.tolerance}; it must be more than 0")
        if self.max_tries < 2:
            raise ConfigError(f"max_tries is {self.max_tries}; both ends take a try each")


class Outcome(enum.Enum):
    """How a search has ended."""

    REACHED = "reached"
    """A temperature within the tolerance."""
    TOO_FEW_WRONG = "too few wrong"
    """Even the highest temperature gives fewer wrong answers than wanted."""
    TOO_MANY_WRONG = "too many wrong"
    """Even the lowest gives more."""
    OUT_OF_TRIES = "out of tries"
    """The number lies between two that were tried, but not within the tolerance of any."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tried:
    """A temperature and what it gave."""

    temperature: float
    """The temperature."""
    wrong: float
    """Mean number of wrong answers of a problem."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TemperatureSearch:
    """What a search has found."""

    outcome: Outcome
    """How it has ended."""
    nearest: Tried
    """What came nearest to the wanted number; of two as near, the lower temperature."""
    tried: tuple[Tried, ...]
    """Everything that was tried, in that order."""


def search_temperature(
    wrong_at: Callable[[float], float], config: TemperatureConfig
) -> TemperatureSearch:
    """Looks for a temperature by bisection: the ends, then the middle of what still holds it.

    The number of wrong answers is taken to rise with the temperature. Where noise makes it fall,
    the search may leave the half that holds the wanted number; it then ends with the nearest that
    it has seen, out of tries.

    Args:
      wrong_at: mean number of wrong answers of a problem at a temperature.
      config: what is wanted.

    Returns:
      The temperature, and whether it gives what is wanted.

    >>> found = search_temperature(lambda temperature: 20 * temperature, TemperatureConfig())
    >>> found.nearest
    Tried(temperature=0.45, wrong=9.0)
    >>> [one.temperature for one in found.tried]
    [0.1, 1.5, 0.8, 0.45]
    """
    tried: list[Tried] = []

    def difference(temperature: float) -> float:
        tried.append(Tried(temperature=temperature, wrong=float(wrong_at(temperature))))
        return tried[-1].wrong - config.wanted_wrong

    low, high = config.low, config.high
    outcome = None
    if (at_low := difference(low)) > config.tolerance:
        outcome = Outcome.TOO_MANY_WRONG
    elif at_low >= -config.tolerance:
        outcome = Outcome.REACHED
    elif (at_high := difference(high)) < -config.tolerance:
        outcome = Outcome.TOO_FEW_WRONG
    elif at_high <= config.tolerance:
        outcome = Outcome.REACHED
    while outcome is None:
        middle = round((low + high) / 2, _DIGITS)
        if len(tried) == config.max_tries or middle in (low, high):
            outcome = Outcome.OUT_OF_TRIES
        elif abs(more := difference(middle)) <= config.tolerance:
            outcome = Outcome.REACHED
        elif more > 0:
            high = middle
        else:
            low = middle
    nearest = min(tried, key=lambda one: (abs(one.wrong - config.wanted_wrong), one.temperature))
    return TemperatureSearch(outcome=outcome, nearest=nearest, tried=tuple(tried))


def paper_temperature(task: str, model: str) -> float:
    """The temperature of the paper's samples.

    Args:
      task: gsm8k or math.
      model: an architecture's name, such as llama3-8b.

    Raises:
      ConfigError: the paper has no such task or model.

    >>> paper_temperature("math", "llama3-70b")
    0.15
    """
    if task not in PAPER_TEMPERATURES:
        raise ConfigError(
            f"the paper has no task '{task}'. {nearest_name(task, PAPER_TEMPERATURES)}"
        )
    by_model = PAPER_TEMPERATURES[task]
    if model not in by_model:
        raise ConfigError(f"the paper has no model '{model}'. {nearest_name(model, by_model)}")
    return by_model[model]
