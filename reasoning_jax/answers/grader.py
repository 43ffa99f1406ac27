r"""Graders: responses in, verdicts out, on worker processes that cannot hang the caller.

Order of the tests, the cheapest first: extraction, refusal of hostile answers, strings, exact
rationals, structure, and `math-verify` in a worker with a hard limit.

Dimension key: none.
"""

import dataclasses
from collections.abc import Sequence

from reasoning_jax.answers.extraction import extract
from reasoning_jax.answers.guards import MAX_LENGTH, refusal
from reasoning_jax.answers.official import extract_official, math_equal
from reasoning_jax.answers.pool import WorkerPool
from reasoning_jax.answers.strict import Rules, compare
from reasoning_jax.answers.verdict import GraderKind, ListOrder, OfficialTask, Verdict

_MAX_KEPT = 100_000
_MAX_SHOWN = 2 * MAX_LENGTH


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraderConfig:
    """How answers are graded."""

    kind: GraderKind = GraderKind.STRICT
    """Exact, or with the paper's leniency."""
    task: OfficialTask = OfficialTask.MATH
    """Whose extraction the official grader uses; the strict one has one for all."""
    list_order: ListOrder = ListOrder.ORDERED
    """Whether "2, 3" differs from "3, 2"; any suits MATH, whose lists are sets of solutions."""
    num_workers: int = 2
    """Processes for what needs symbolic algebra."""
    time_limit_s: float = 2.0
    """Wall time for one answer; a worker that exceeds it is killed and the answer is wrong."""
    memory_mb: int = 2048
    """Address space of a worker."""


class Grader:
    r"""Grades answers; a context manager, since it owns processes.

    Args:
      config: kind of grader, limits and processes; the strict one by default.

    Example:
      with Grader() as grader:
          verdicts = grader.grade([("72", "so she sold 72.\n#### 72")])
    """

    def __init__(self, config: GraderConfig | None = None):
        self._config = config or GraderConfig()
        self._pool = WorkerPool(
            num_workers=self._config.num_workers,
            time_limit_s=self._config.time_limit_s,
            memory_mb=self._config.memory_mb,
        )
        self._known: dict[tuple[str, str], tuple[bool, str]] = {}

    def __enter__(self) -> "Grader":
        self._pool.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.__exit__(*error)

    @property
    def num_replaced(self) -> int:
        """Workers that were killed or died so far."""
        return self._pool.num_replaced

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Grades responses.

        Args:
          pairs: gold answer and whole response of each.

        Returns:
          A verdict per pair, in their order, whatever the number of workers.
        """
        found = [self._extract(response) for _, response in pairs]
        answers = [extracted.answer if extracted else None for extracted in found]
        decided = self._decide(
            [
                (gold, answer)
                for (gold, _), answer in zip(pairs, answers, strict=True)
                if answer is not None
            ]
        )
        verdicts = []
        for (gold, _), extracted in zip(pairs, found, strict=True):
            if extracted is None:
                verdicts.append(Verdict(answer=None, is_correct=False, method="none"))
                continue
            is_correct, method = decided[gold, extracted.answer]
            verdicts.append(
                Verdict(
                    answer=extracted.answer[:_MAX_SHOWN],
                    is_correct=is_correct,
                    method=method,
                    extraction=extracted.method,
                )
            )
        return verdicts

    def equivalent(self, gold: str, answer: str) -> Verdict:
        """Compares one answer, already extracted, with the known one.

        Args:
          gold: the known answer.
          answer: the answer to judge.

        Returns:
          The verdict.
        """
        return self.equivalents([(gold, answer)])[0]

    def equivalents(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Compares many answers, already extracted, at once.

        Args:
          pairs: gold answer and answer of each.

        Returns:
          A verdict per pair, in their order.
        """
        decided = self._decide(pairs)
        return [
            Verdict(answer=pair[1][:_MAX_SHOWN], is_correct=verdict[0], method=verdict[1])
            for pair, verdict in ((pair, decided[pair]) for pair in pairs)
        ]

    def cheap(self, gold: str, answer: str) -> tuple[bool, str] | None:
        """Compares without symbolic algebra; None where that would be needed."""
        if gold.strip() == answer.strip() and gold.strip():
            return True, "string"
        if refusal(answer) or refusal(gold):
            return False, "refused"
        if self._config.kind is GraderKind.OFFICIAL:
            return math_equal(gold, answer, None)
        return compare(gold, answer, Rules(symbolic=None, order=self._config.list_order))

    def _extract(self, response: str):
        """The answer in a response, by the rules of this kind of grader."""
        if self._config.kind is GraderKind.OFFICIAL:
            return extract_official(response, self._config.task)
        return extract(response)

    def _decide(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[bool, str]]:
        """Decides each different pair once, the hard ones on the workers."""
        decided: dict[tuple[str, str], tuple[bool, str]] = {}
        hard = []
        for pair in dict.fromkeys(pairs):
            verdict = self._known.get(pair) or self.cheap(*pair)
            if verdict is None:
                hard.append(pair)
            else:
                decided[pair] = verdict
        kind, order = self._config.kind.value, self._config.list_order.value
        replies = self._pool.map(
            [
                {"gold": gold, "answer": answer, "kind": kind, "order": order}
                for gold, answer in hard
            ]
        )
        decided.update(zip(hard, replies, strict=True))
        if len(self._known) + len(hard) > _MAX_KEPT:
            self._known.clear()
        self._known.update(zip(hard, replies, strict=True))
        return decided
