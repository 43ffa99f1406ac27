"""Procedural tasks with verifiers, from the package `reasoning-gym` (the extra `tasks`).

Train and test are disjoint by construction: `is_test_question` decides by the question alone.

Dimension key: none.
"""

import dataclasses
import functools
import hashlib
import importlib
import json
from collections.abc import Mapping
from typing import Any

from core_jax.errors import ConfigError, DataError, nearest_name
from reasoning_jax.data.problems import OWN, SPLITS, STEPS, Problem, is_test_question

_ENTRY = "entry"
"""Where a problem keeps what its verifier needs."""
_NOT_FINITE = ("nan", "inf", "infinity")
_BLOCK = 256
_MOST_BLOCKS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A data set of `reasoning-gym` with its options."""

    dataset: str
    """Its name there."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options of its configuration."""


TASKS: dict[str, Task] = {
    "sums": Task(
        dataset="chain_sum",
        options={"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2},
    ),
    "products": Task(
        dataset="products",
        options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    ),
    "equations": Task(dataset="simple_equations"),
}
"""Tasks with options of our own; any other name is a data set of `reasoning-gym`."""

DERIVED_FROM = {"gsm_symbolic": "gsm8k"}
"""Tasks whose questions were made from another set's test questions."""


def make_problems(name: str, split: str, *, num_problems: int, seed: int = 0) -> list[Problem]:
    """Draws problems of a task.

    Args:
      name: one of `TASKS`, or a data set of `reasoning-gym`.
      split: "train" or "test".
      num_problems: how many; all different.
      seed: of the draw.

    Returns:
      The problems, in the order drawn.

    Raises:
      ConfigError: the package is not there; no such task, split or number; a task whose answers
        cannot be judged here.
      DataError: the task does not have so many different questions.
    """
    if split not in ("train", "test"):
        raise ConfigError(f"'{name}' has no split '{split}'; it has train and test")
    if num_problems < 1:
        raise ConfigError(f"num_problems is {num_problems}; it must be at least 1")
    found: dict[str, Problem] = {}
    for block in range(_MOST_BLOCKS):
        dataset = _dataset(name, size=_BLOCK, seed=_seed(seed, block))
        for entry in dataset:
            question = entry["question"]
            if (is_test_question(question) == (split == "test")) and question not in found:
                found[question] = _problem(name, entry)
                if len(found) == 1:
                    _check_verifier(found[question])
                if len(found) == num_problems:
                    return list(found.values())
    raise DataError(
        f"'{name}' gave {len(found)} different {split} questions in {_MOST_BLOCKS * _BLOCK} draws, "
        f"and {num_problems} are wanted; set problems.limit lower"
    )


def score(task: str, entry: str, answer: str) -> bool:
    """Judges an answer by the task's own verifier, in this process: it may raise, or never end.

    Args:
      task: the task's name.
      entry: what the problem keeps for its verifier, as JSON.
      answer: the final answer alone.

    Returns:
      Whether the verifier gives its full score. An answer that is not finite is wrong before it is
      asked: "nan" passes for every complex number there.
    """
    kept = json.loads(entry)
    if answer.strip().lower().lstrip("+-") in _NOT_FINITE and answer != kept["answer"]:
        return False
    return float(_dataset(task, size=1, seed=0).score_answer(answer, kept)) == 1.0


def verifier_entry(problem: Problem) -> str:
    """What `score` needs of a problem from `make_problems`."""
    return problem.metadata[_ENTRY]


def _check_verifier(problem: Problem) -> None:
    """Refuses tasks without a gold answer, or whose verifier needs more than can be stored."""
    gold = json.loads(verifier_entry(problem))["answer"]
    if gold is None or not score(problem.task, verifier_entry(problem), str(gold)):
        raise ConfigError(
            f"'{problem.task}' cannot be judged here: its verifier does not accept the task's own "
            f"answer {str(gold)[:60]!r} from its stored form; choose another task"
        )


def is_procedural(problem: Problem) -> bool:
    """Whether `Verifiers` can judge it."""
    return _ENTRY in problem.metadata


def refuse_derived(trained_on: str, tested_on: str) -> None:
    """Raises ConfigError where a task was made from the questions that it would be tested on."""
    if DERIVED_FROM.get(trained_on) == tested_on:
        raise ConfigError(
            f"'{trained_on}' was made from test questions of '{tested_on}': training on it and "
            f"testing there measures memory. Test on another set, or train on another task"
        )


@functools.lru_cache(maxsize=8)
def _dataset(name: str, *, size: int, seed: int) -> Any:
    """A data set of the package; the same arguments give the same questions."""
    try:
        gym = importlib.import_module("reasoning_gym")
        known = importlib.import_module("reasoning_gym.factory").DATASETS
    except ImportError as error:
        raise ConfigError(
            f"the task '{name}' needs the package reasoning-gym, as it is none of "
            f"{', '.join([*SPLITS, OWN, STEPS])}; install it with: pip install 'alignax[tasks]'"
        ) from error
    task = TASKS.get(name, Task(dataset=name))
    if task.dataset not in known:
        names = [*SPLITS, OWN, STEPS, *TASKS, *known]
        raise ConfigError(f"no task '{name}'. {nearest_name(name, names)}")
    try:
        return gym.create_dataset(task.dataset, size=size, seed=seed, **task.options)
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the task '{name}' cannot be made without options of its own ({error}); choose another"
        ) from error


def _seed(seed: int, block: int) -> int:
    """Far from every other block's: data sets draw entry i from seed + i."""
    digest = hashlib.sha256(f"{seed}/{block}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _problem(name: str, entry: Mapping[str, Any]) -> Problem:
    """A problem of a data set's entry; its id is the question's alone, the same in every draw."""
    digest = hashlib.sha256(entry["question"].encode()).hexdigest()[:12]
    return Problem(
        problem_id=f"{name}-{digest}",
        task=name,
        question=entry["question"],
        answer=str(entry["answer"]),
        metadata={_ENTRY: json.dumps(entry, default=str)},
    )
