"""Verifiers of procedural tasks, in processes that can be killed.

They evaluate what a model wrote: some never return from "9**9**9" or "1e999999999", others raise.

Dimension key: none.
"""

from collections.abc import Sequence

from reasoning_jax.answers.extraction import extract
from reasoning_jax.answers.pool import WorkerPool
from reasoning_jax.answers.verdict import Verdict
from reasoning_jax.data.problems import Problem
from reasoning_jax.data.procedural import verifier_entry

_MAX_ANSWER = 10_000


class Verifiers:
    """Judges responses to problems from `make_problems`; a context manager, as it owns processes.

    Args:
      num_workers: how many processes, started when there is something to judge.
      time_limit_s: wall time for one answer, which is wrong beyond it.
      memory_mb: address space of a process.

    Example:
      with Verifiers(num_workers=2, time_limit_s=2.0, memory_mb=2048) as verifiers:
          verdicts = verifiers.verify([(problem, "so it is 72. The answer is 72.")])
    """

    def __init__(self, *, num_workers: int, time_limit_s: float, memory_mb: int):
        self._pool = WorkerPool(
            num_workers=num_workers,
            time_limit_s=time_limit_s,
            memory_mb=memory_mb,
            module="reasoning_jax.data.verify_worker",
        )

    def __enter__(self) -> "Verifiers":
        self._pool.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.__exit__(*error)

    def verify(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """Judges (problem, response) pairs.

        Returns:
          A verdict per pair, in order. Its method is "verifier", or as a grader's where nothing
          was decided: "none", "refused" (longer than 10,000 characters), "timeout", "crash",
          "memory", "unparsed" (the verifier raised).
        """
        verdicts: list[Verdict] = []
        asked: list[int] = []
        for index, (_, response) in enumerate(pairs):
            found = extract(response)
            if found is None:
                verdicts.append(Verdict(answer=None, is_correct=False, method="none"))
                continue
            if len(found.answer) <= _MAX_ANSWER:
                asked.append(index)
            verdicts.append(
                Verdict(
                    answer=found.answer,
                    is_correct=False,
                    method="refused",
                    extraction=found.method,
                )
            )
        replies = self._pool.map([_request(pairs[index][0], verdicts[index]) for index in asked])
        for index, (is_correct, method) in zip(asked, replies, strict=True):
            verdicts[index] = Verdict(
                answer=verdicts[index].answer,
                is_correct=is_correct,
                method=method,
                extraction=verdicts[index].extraction,
            )
        return verdicts


def _request(problem: Problem, verdict: Verdict) -> dict[str, str]:
    """What `verify_worker.judge` takes."""
    assert verdict.answer is not None
    return {"task": problem.task, "entry": verifier_entry(problem), "answer": verdict.answer}
