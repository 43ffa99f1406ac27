"""What to fine-tune on: tokenised examples from written solutions or from sampled ones.

Dimension key: none.
"""

import dataclasses
import enum
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from core_jax.errors import ConfigError, DataError
from reasoning_jax.data.packing import TokenExample


@runtime_checkable
class SolvedProblem(Protocol):
    """A problem with a written solution, or without: `reasoning_jax.data.problems.Problem`."""

    @property
    def problem_id(self) -> str:
        """Names the problem."""
        ...

    @property
    def solution(self) -> str | None:
        """The written solution, or None."""
        ...


@runtime_checkable
class SampledSolution(Protocol):
    """A sampled solution: `reasoning_jax.data.trajectories.Trajectory`."""

    @property
    def problem_id(self) -> str:
        """Names the problem."""
        ...

    @property
    def prompt(self) -> str:
        """What the model was given."""
        ...

    @property
    def response(self) -> str:
        """What it wrote."""
        ...

    @property
    def is_correct(self) -> bool | None:
        """The verdict; None where it has not been graded."""
        ...

    @property
    def finish(self) -> str:
        """Why it ended: "stop", or "length" where it was cut off."""
        ...


@runtime_checkable
class JointTokens(Protocol):
    """A prompt and a response tokenised together: `reasoning_jax.text`."""

    @property
    def token_ids(self) -> Sequence[int]:
        """Both, one after the other."""
        ...

    @property
    def response_start(self) -> int:
        """Index of the response's first token."""
        ...


EncodePair = Callable[[str, str], JointTokens]
"""(prompt, response) -> tokens: `reasoning_jax.text.encode_pair` with its tokenizer bound."""


class Verdicts(enum.Enum):
    """Which sampled solutions to learn."""

    CORRECT = "correct"
    """Those graded as correct."""
    INCORRECT = "incorrect"
    """Those graded as incorrect, for a model of mistakes."""
    ANY = "any"
    """All, those that were not graded included."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrajectoryChoice:
    """Which sampled solutions become examples."""

    verdicts: Verdicts = Verdicts.CORRECT
    """Which verdicts to keep."""
    keep_cut_off: bool = False
    """Whether to keep solutions that ended at the length limit."""
    keep_duplicates: bool = False
    """Whether to keep a response more than once for one prompt."""
    max_per_problem: int = 0
    """Examples of one problem, the first ones; 0 for all."""

    def __post_init__(self) -> None:
        """Checks the limit."""
        if self.max_per_problem < 0:
            raise ConfigError(
                f"max_per_problem is {self.max_per_problem}; give a number, or 0 for no limit"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftExamples:
    """Examples, and what was left out."""

    examples: tuple[TokenExample, ...]
    """In the order of what they were made from."""
    num_read: int
    """Solutions read."""
    num_problems: int
    """Problems with at least one example."""
    dropped: Mapping[str, int]
    """Solutions left out, by reason; reasons without any are absent."""

    def summary(self) -> str:
        """One line: what was read, kept and left out.

        >>> SftExamples(examples=(), num_read=3, num_problems=0, dropped={"empty": 3}).summary()
        '0 examples of 0 problems from 3 solutions; left out: 3 empty'
        """
        left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        return (
            f"{len(self.examples)} examples of {self.num_problems} problems from {self.num_read} "
            f"solutions; left out: {left_out or 'none'}"
        )


def examples_from_problems(
    problems: Iterable[SolvedProblem],
    *,
    prompt_of: Callable[[SolvedProblem], str],
    response_of: Callable[[SolvedProblem], str] | None = None,
    encode: EncodePair,
) -> SftExamples:
    """Makes an example of every problem that has a written solution.

    Args:
      problems: the problems.
      prompt_of: the prompt of a problem, as the model will be asked.
      response_of: the text to learn; by default the solution as it stands.
      encode: tokenises prompt and response together.

    Returns:
      The examples. Problems are left out as "without solution".

    Raises:
      DataError: no problem has a solution, or one cannot be tokenised.
    """
    collected = _Collected(encode)
    for problem in problems:
        if not (problem.solution or "").strip():
            collected.drop("without solution")
            continue
        response = problem.solution if response_of is None else response_of(problem)
        collected.add(problem.problem_id, prompt_of(problem), response or "")
    return collected.result("problems; give problems with solutions, as of a training split")


def examples_from_trajectories(
    trajectories: Iterable[SampledSolution],
    *,
    choice: TrajectoryChoice,
    encode: EncodePair,
) -> SftExamples:
    """Makes examples of sampled solutions, the correct ones by default.

    Prompt and response are tokenised again, by the tokenizer of the model that is to be trained.

    Args:
      trajectories: the sampled solutions.
      choice: which of them to keep.
      encode: tokenises prompt and response together.

    Returns:
      The examples. Solutions are left out as "incorrect", "correct", "ungraded", "cut off",
      "empty", "duplicate" or "over the limit per problem": the first of these that holds.

    Raises:
      DataError: none is left, or one cannot be tokenised.
    """
    collected = _Collected(encode)
    seen: set[tuple[str, str, str]] = set()
    per_problem: Counter[str] = Counter()
    for trajectory in trajectories:
        same = (trajectory.problem_id, trajectory.prompt, trajectory.response)
        reason = _reason(trajectory, choice)
        if reason is None and same in seen and not choice.keep_duplicates:
            reason = "duplicate"
        if reason is None and 0 < choice.max_per_problem <= per_problem[trajectory.problem_id]:
            reason = "over the limit per problem"
        if reason is not None:
            collected.drop(reason)
            continue
        seen.add(same)
        per_problem[trajectory.problem_id] += 1
        collected.add(trajectory.problem_id, trajectory.prompt, trajectory.response)
    return collected.result("trajectories; grade them, sample more, or choose other verdicts")


class _Collected:
    """Examples as they come, with counts of what does not."""

    def __init__(self, encode: EncodePair):
        self._encode = encode
        self._examples: list[TokenExample] = []
        self._problem_ids: set[str] = set()
        self._dropped: Counter[str] = Counter()

    def drop(self, reason: str) -> None:
        """Counts what is left out."""
        self._dropped[reason] += 1

    def add(self, problem_id: str, prompt: str, response: str) -> None:
        """Tokenises an example; an error names its problem."""
        try:
            tokens = self._encode(prompt, response)
        except DataError as error:
            raise DataError(f"problem '{problem_id}' cannot be tokenised: {error}") from error
        if not 1 <= tokens.response_start < len(tokens.token_ids):
            raise DataError(
                f"problem '{problem_id}' has {len(tokens.token_ids)} tokens with the response at "
                f"{tokens.response_start}; expected a token before it and one in it: give a prompt "
                "or a BOS, and a response"
            )
        self._problem_ids.add(problem_id)
        self._examples.append(
            TokenExample(token_ids=tokens.token_ids, response_start=tokens.response_start)
        )

    def result(self, source: str) -> SftExamples:
        """What was collected; an error where that is nothing."""
        result = SftExamples(
            examples=tuple(self._examples),
            num_read=len(self._examples) + sum(self._dropped.values()),
            num_problems=len(self._problem_ids),
            dropped=dict(self._dropped),
        )
        if not result.examples:
            raise DataError(f"no example to learn ({result.summary()}) in the {source}")
        return result


def _reason(trajectory: SampledSolution, choice: TrajectoryChoice) -> str | None:
    """Why a solution by itself is not to be learnt, or None."""
    if choice.verdicts is not Verdicts.ANY:
        if trajectory.is_correct is None:
            return "ungraded"
        if trajectory.is_correct != (choice.verdicts is Verdicts.CORRECT):
            return "correct" if trajectory.is_correct else "incorrect"
    if trajectory.finish == "length" and not choice.keep_cut_off:
        return "cut off"
    return None if trajectory.response.strip() else "empty"
