"""Completions of the prefixes of wrong solutions, sampled and judged.

A unit of work is one prefix with all its completions. A completion is told by its unit and its
number alone: neither the other units nor a restart change its random numbers.

Dimension key: B completions, V vocabulary.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from core_jax.arrays import Array, Float, Int, Key
from reasoning_jax.align.rollout_file import Rollouts, UnitKey
from reasoning_jax.data.trajectories import Trajectory
from reasoning_jax.sampling.choice import choose_tokens
from reasoning_jax.sampling.engine import Completion, SampleRequest
from reasoning_jax.text.joint import first_stop

_UNITS_IN_ENGINE = 256
_GRADED_AT_ONCE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """A prefix that is to be completed n times."""

    solution: Trajectory
    """The wrong solution."""
    length: int
    """Response tokens that are kept."""
    forced: tuple[int, ...] = ()
    """The token that each completion begins with; empty: they begin as they like."""

    @property
    def key(self) -> UnitKey:
        """What is unique in a file."""
        return (*self.solution.key, self.length, bool(self.forced))

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids of the problem's prompt and of what is kept."""
        return self.solution.token_ids[: self.solution.response_start + self.length]

    @property
    def name(self) -> str:
        """Tells the unit's random numbers from those of every other one."""
        return repr(self.key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roller:
    """What completes and judges prefixes."""

    sample: Callable[[Sequence[SampleRequest]], Iterator[Completion]]
    """The engine, with everything but the requests."""
    decode: Callable[[Sequence[int]], str]
    """Token ids to text."""
    judge: Callable[[Sequence[tuple[str, str]]], Sequence[bool]]
    """Whether each response solves its problem: (problem id, response)."""
    eos_ids: tuple[int, ...]
    """Tokens that end a response."""
    stop: tuple[str, ...]
    """Strings that end a response."""
    max_positions: int
    """The model's context."""
    num_rollouts: int
    """Completions of each prefix, n."""
    identity: str
    """Fingerprint of all this."""

    def ends(self, token_ids: Sequence[int]) -> bool:
        """Whether nothing can follow: the end of the sequence is said, or the context is full."""
        return token_ids[-1] in self.eos_ids or len(token_ids) >= self.max_positions

    def text(self, unit: Unit, added: Sequence[int]) -> str:
        """The response that a completion makes with what the unit keeps, up to a stop string.

        A stop string can begin in what is kept, where the engine does not look.
        """
        response = (*unit.prompt[unit.solution.response_start :], *added)
        said = self.decode([one for one in response if one not in self.eos_ids])
        end = first_stop(said, self.stop) if self.stop else None
        return said if end is None else said[:end]


def prefix_units(solution: Trajectory) -> list[Unit]:
    """A unit for every prefix of a solution, from none of its tokens to all of them."""
    num_tokens = len(solution.token_ids) - solution.response_start
    return [Unit(solution=solution, length=length) for length in range(num_tokens + 1)]


def roll_out(units: Sequence[Unit], roller: Roller) -> Iterator[list[Rollouts]]:
    """Completes units, the shortest prefixes first, so that few lengths are compiled.

    A prefix after which nothing can follow is its own completion, n times the same: nothing is
    sampled, and it is judged once.

    Args:
      units: what is wanted.
      roller: engine and judge.

    Yields:
      Units that are done, a few at a time, in the order in which they end.
    """
    ordered = sorted(units, key=lambda unit: len(unit.prompt))
    for start in range(0, len(ordered), _UNITS_IN_ENGINE):
        yield from _roll_out_some(ordered[start : start + _UNITS_IN_ENGINE], roller)


def _roll_out_some(units: Sequence[Unit], roller: Roller) -> Iterator[list[Rollouts]]:
    """Completes units whose requests fit into memory side by side."""
    by_name: dict[str, Unit] = {}
    requests: list[SampleRequest] = []
    open_units = {unit.key: _Open(unit) for unit in units}
    for unit in units:
        for begun in _beginnings(unit, roller):
            if roller.ends(begun.prompt):
                response = begun.prompt[len(unit.prompt) :]
                open_units[unit.key].add(roller.text(unit, response), len(begun.samples), 0)
                continue
            by_name[begun.name] = unit
            open_units[unit.key].read_tokens += len(begun.prompt)
            requests += [
                SampleRequest(problem_id=begun.name, sample=number, prompt=begun.prompt)
                for number in begun.samples
            ]
    done: list[_Open] = []

    def take_done(unit: Unit) -> None:
        if open_units[unit.key].num_texts == roller.num_rollouts:
            done.append(open_units.pop(unit.key))

    for unit in units:
        take_done(unit)
    for completion in roller.sample(requests) if requests else ():
        unit = by_name[completion.request.problem_id]
        begun_with = completion.request.prompt[len(unit.prompt) :]
        text = roller.text(unit, (*begun_with, *completion.token_ids))
        open_units[unit.key].add(text, 1, len(completion.token_ids))
        take_done(unit)
        if len(done) >= _GRADED_AT_ONCE:
            yield _judged(done, roller)
            done.clear()
    if done:
        yield _judged(done, roller)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Beginning:
    """Completions of a unit that begin with the same tokens."""

    name: str
    prompt: tuple[int, ...]
    samples: Sequence[int]


def _beginnings(unit: Unit, roller: Roller) -> list[_Beginning]:
    """The unit's completions by what they begin with: one group, or one per forced token."""
    if not unit.forced:
        samples = range(roller.num_rollouts)
        return [_Beginning(name=unit.name, prompt=unit.prompt, samples=samples)]
    return [
        _Beginning(
            name=f"{unit.name} {token}",
            prompt=(*unit.prompt, token),
            samples=[number for number, one in enumerate(unit.forced) if one == token],
        )
        for token in sorted(set(unit.forced))
    ]


class _Open:
    """A unit whose completions come in."""

    def __init__(self, unit: Unit):
        self.unit = unit
        self.texts: dict[str, int] = {}
        self.num_texts = 0
        self.sampled_tokens = 0
        self.read_tokens = 0

    def add(self, text: str, times: int, num_tokens: int) -> None:
        """Counts a response, which may be one that is there already."""
        self.texts[text] = self.texts.get(text, 0) + times
        self.num_texts += times
        self.sampled_tokens += num_tokens


def _judged(done: Sequence[_Open], roller: Roller) -> list[Rollouts]:
    """Judges all responses of some units in one go."""
    answered = [(one.unit.solution.problem_id, text) for one in done for text in one.texts]
    verdicts = iter(roller.judge(answered))
    return [
        Rollouts(
            problem_id=one.unit.solution.problem_id,
            sample=one.unit.solution.sample,
            length=one.unit.length,
            forced=one.unit.forced,
            num_rollouts=roller.num_rollouts,
            successes=sum(times for times in one.texts.values() if next(verdicts)),
            sampled_tokens=one.sampled_tokens,
            read_tokens=one.read_tokens,
            identity=roller.identity,
        )
        for one in done
    ]


class RememberedVerdicts:
    """Asks a judge once for each different response to a problem.

    Args:
      judge: whether each response solves its problem.
    """

    def __init__(self, judge: Callable[[Sequence[tuple[str, str]]], Sequence[bool]]):
        self._judge = judge
        self._verdicts: dict[bytes, bool] = {}

    def __call__(self, answered: Sequence[tuple[str, str]]) -> list[bool]:
        """The verdicts, in order."""
        digests = [hashlib.sha256(repr(one).encode()).digest() for one in answered]
        new = {
            digest: one
            for digest, one in zip(digests, answered, strict=True)
            if digest not in self._verdicts
        }
        if new:
            self._verdicts |= zip(new, self._judge(list(new.values())), strict=True)
        return [self._verdicts[digest] for digest in digests]

    @property
    def num_judged(self) -> int:
        """How many different responses the judge saw."""
        return len(self._verdicts)


@functools.partial(jax.jit, static_argnames=("num_draws", "temperature", "top_p"))
def draw_others(
    logits: Float[Array, " V"],
    token: Int[Array, ""],
    key: Key[Array, ""],
    *,
    num_draws: int,
    temperature: float,
    top_p: float,
) -> Int[Array, " B"]:
    r"""Draws tokens in place of one from the model's own distribution, with replacement.

    .. math:: q(v) \propto p(v)^{1 / \tau} \text{ for } v \ne y_t, \quad q(y_t) = 0

    The token is taken out before the distribution is truncated to its most probable tokens, or
    nothing would be left where the token alone reaches `top_p`.

    Args:
      logits: of the token, float32.
      token: the one that must not be drawn, :math:`y_t`.
      key: of the draws.
      num_draws: how many.
      temperature: of the draws, :math:`\tau`.
      top_p: of what is left, only the most probable tokens that reach this probability.

    >>> logits = jnp.log(jnp.asarray([0.9, 0.06, 0.04]))
    >>> options = {"num_draws": 50, "temperature": 1.0, "top_p": 1.0}
    >>> sorted(set(draw_others(logits, jnp.int32(0), jax.random.key(0), **options).tolist()))
    [1, 2]
    """
    left_V = jnp.where(jnp.arange(logits.shape[0]) == token, -jnp.inf, logits)
    uniforms_B = jax.random.uniform(key, (num_draws,))
    logits_VB = jnp.broadcast_to(left_V[:, None], (logits.shape[0], num_draws))
    return choose_tokens(logits_VB, uniforms_B, temperature=temperature, top_p=top_p)


def draw_key(seed: int, unit: Unit) -> Key[Array, ""]:
    """The key of a unit's draws, the same whatever other units there are."""
    number = hashlib.sha256(f"{unit.name} replaced".encode()).digest()[:4]
    return jax.random.fold_in(jax.random.key(seed), np.uint32(int.from_bytes(number, "big")))
