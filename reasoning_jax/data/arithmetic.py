"""Sums of several terms with written steps: a small world in which an error has one place.

A solution has one line per step, and each line but the first goes on from the value of the line
before. A response that adds wrongly once and then adds rightly is wrong because of one digit, and
all its later steps are right arithmetic: `first_error` says where that digit is.

The task's name carries its sizes: "steps" has 3 to 6 steps on values up to 29 with terms up to 9,
"steps-2-4" 2 to 4 steps, "steps-2-4-99" values up to 99, and "steps-2-4-99-50" terms up to 50. A
model of 0.4 million parameters solves half of "steps" after 1 million tokens; larger values cost
several times that. No extra package is needed.

Dimension key: K numbers that draw a problem.
"""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Sequence

import numpy as np

from core_jax.errors import ConfigError, DataError
from reasoning_jax.data.problems import STEPS, Problem, is_test_question
from reasoning_jax.text.pieces import token_at

_NAME = re.compile(rf"{STEPS}(?:-([0-9]+)-([0-9]+)(?:-([0-9]+)(?:-([0-9]+))?)?)?")
_BLOCK = 256
_MOST_BLOCKS_IN_A_ROW = 64
"""Blocks without a new question, after which there are none left."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepsTask:
    """Sizes of the problems."""

    min_steps: int = 3
    """Fewest additions and subtractions."""
    max_steps: int = 6
    """Most of them; each number of steps is as frequent."""
    largest: int = 29
    """Values of the steps lie between 0 and it."""
    largest_term: int = 9
    """Largest number that is added or subtracted."""

    def __post_init__(self) -> None:
        """Checks the sizes."""
        if not 1 <= self.min_steps <= self.max_steps or not 1 <= self.largest_term <= self.largest:
            raise ConfigError(
                f"there is no task of {self.min_steps} to {self.max_steps} steps on values up to "
                f"{self.largest} with terms up to {self.largest_term}; name it "
                f"{STEPS}-FEWEST-MOST-LARGEST-TERM with 1 <= FEWEST <= MOST and "
                "1 <= TERM <= LARGEST"
            )


def steps_task(name: str) -> StepsTask | None:
    """Reads a task's name; None where it names another kind of task.

    >>> steps_task("steps-2-4")
    StepsTask(min_steps=2, max_steps=4, largest=29, largest_term=9)
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    given = [None if text is None else int(text) for text in match.groups()]
    names = ("min_steps", "max_steps", "largest", "largest_term")
    sizes = {field: size for field, size in zip(names, given, strict=True) if size is not None}
    return StepsTask(**sizes)


def make_step_problems(name: str, split: str, *, num_problems: int, seed: int = 0) -> list[Problem]:
    """Draws problems with their written solutions.

    Args:
      name: "steps", or with sizes as in the module's docstring.
      split: "train" or "test": disjoint, whatever the seeds.
      num_problems: how many; all different. Fewer are the first of more.
      seed: of the draw.

    Returns:
      The problems, in the order drawn.

    Raises:
      ConfigError: no such task, split or number.
      DataError: there are not so many different questions.
    """
    task = steps_task(name)
    if task is None:
        raise ConfigError(f"'{name}' is no task of written steps; name it {STEPS}, or {STEPS}-2-4")
    if split not in ("train", "test"):
        raise ConfigError(f"'{name}' has no split '{split}'; it has train and test")
    if num_problems < 1:
        raise ConfigError(f"num_problems is {num_problems}; it must be at least 1")
    found: dict[str, Problem] = {}
    fruitless = 0
    for block in itertools.count():
        generator = np.random.default_rng([seed, block])
        before = len(found)
        for draws_K in generator.random((_BLOCK, 2 + task.max_steps)):
            problem = _problem(name, _values(task, list(draws_K)))
            if is_test_question(problem.question) == (split == "test"):
                found.setdefault(problem.question, problem)
            if len(found) == num_problems:
                return list(found.values())
        fruitless = 0 if len(found) > before else fruitless + 1
        if fruitless == _MOST_BLOCKS_IN_A_ROW:
            break
    raise DataError(
        f"'{name}' gave {len(found)} different {split} questions, and {num_problems} are wanted; "
        "set problems.limit lower, or name larger sizes"
    )


def first_error(problem: Problem, response: str) -> int | None:
    r"""Where a response first says what does not follow from what it said before.

    Until its first error a response in the task's form has no choice: every number follows from
    the question and the values before it. So that is where it departs from the written solution,
    spaces and line breaks around the whole left aside. What comes later may well be right
    arithmetic.

    Args:
      problem: from `make_step_problems`.
      response: what a model wrote.

    Returns:
      Index of the first wrong character; the response's length where it ends too early; None
      where there is no error.

    Raises:
      DataError: the problem has no written solution.

    >>> problem = make_step_problems("steps-2-2", "train", num_problems=2)[1]
    >>> problem.solution
    '27-3=24\n24+2=26\nThe answer is 26.'
    >>> first_error(problem, " 27-3=25\n25+2=27\nThe answer is 27.")
    7
    """
    if problem.solution is None:
        raise DataError(
            f"problem '{problem.problem_id}' has no written solution to compare with; take "
            f"problems of the task {STEPS}"
        )
    start = len(response) - len(response.lstrip())
    written = response.strip()
    if written == problem.solution:
        return None
    pairs = enumerate(zip(written, problem.solution, strict=False))
    shared = min(len(written), len(problem.solution))
    return start + next((index for index, (one, other) in pairs if one != other), shared)


def error_token(problem: Problem, pieces: Sequence[str]) -> int | None:
    r"""The token that writes the character of `first_error`.

    Args:
      problem: from `make_step_problems`.
      pieces: the text of each token of a response (`reasoning_jax.text.pieces`).

    Returns:
      The token, counted from the response's first: the last one where the response ends too early;
      None where there is no error.

    >>> problem = make_step_problems("steps-2-2", "train", num_problems=2)[1]
    >>> error_token(problem, (" 27-3=2", "5", "\n25+2=27", "\nThe answer is 27."))
    1
    >>> error_token(problem, ("27-3", "=24"))
    1
    """
    character = first_error(problem, "".join(pieces))
    if character is None:
        return None
    token = token_at(pieces, character)
    return len(pieces) - 1 if token is None else token


def _values(task: StepsTask, draws: list[float]) -> list[int]:
    """The values before and after every step, each unlike the one before, from uniform numbers."""
    num_steps = task.min_steps + int(draws[0] * (task.max_steps - task.min_steps + 1))
    values = [1 + int(draws[1] * task.largest)]
    for draw in draws[2 : 2 + num_steps]:
        low = max(0, values[-1] - task.largest_term)
        high = min(task.largest, values[-1] + task.largest_term)
        value = low + int(draw * (high - low))
        values.append(value + (value >= values[-1]))
    return values


def _problem(name: str, values: list[int]) -> Problem:
    """The problem with these values; its id is the question's alone, the same in every draw."""
    steps = [(before, f"{after - before:+}", after) for before, after in itertools.pairwise(values)]
    question = f"{values[0]}{''.join(term for _, term, _ in steps)}=?"
    lines = [f"{before}{term}={after}" for before, term, after in steps]
    digest = hashlib.sha256(question.encode()).hexdigest()[:12]
    return Problem(
        problem_id=f"{name}-{digest}",
        task=name,
        question=question,
        answer=str(values[-1]),
        solution="\n".join([*lines, f"The answer is {values[-1]}."]),
    )
