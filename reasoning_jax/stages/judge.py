"""Both graders and the verifiers of procedural tasks, as the stages use them.

Dimension key: none.
"""

import dataclasses
from collections.abc import Sequence

from reasoning_jax.answers.grader import Grader
from reasoning_jax.answers.verdict import GraderKind, OfficialTask, Verdict
from reasoning_jax.config import EvaluateConfig
from reasoning_jax.data.problems import Problem
from reasoning_jax.data.procedural import is_procedural
from reasoning_jax.data.verifiers import Verifiers


class Judge:
    """Judges responses to problems; a context manager, since it owns processes.

    Args:
      config: the graders' config; the official one is made of it.
      problems: whose responses are judged.
    """

    def __init__(self, config: EvaluateConfig, problems: Sequence[Problem]):
        task = OfficialTask.MATH if config.problems.task.startswith("math") else OfficialTask.GSM8K
        lenient = dataclasses.replace(config.grader, kind=GraderKind.OFFICIAL, task=task)
        self._problems = {problem.problem_id: problem for problem in problems}
        self._strict, self._official = Grader(config.grader), Grader(lenient)
        self._verifiers = Verifiers(
            num_workers=config.grader.num_workers,
            time_limit_s=config.grader.time_limit_s,
            memory_mb=config.grader.memory_mb,
        )

    def __enter__(self) -> "Judge":
        self._strict.__enter__()
        self._official.__enter__()
        self._verifiers.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._strict.__exit__(*error)
        self._official.__exit__(*error)
        self._verifiers.__exit__(*error)

    def verdicts(self, answered: Sequence[tuple[str, str]]) -> list[tuple[Verdict, Verdict]]:
        """Judges responses.

        Args:
          answered: problem id and response of each.

        Returns:
          The verdict and the official grader's, for each. A procedural task's own verifier is
          asked too: its strings are literal, so that either's yes is right.
        """
        pairs = [(self._problems[name].answer, response) for name, response in answered]
        strict, official = self._strict.grade(pairs), self._official.grade(pairs)
        asked = [
            index
            for index, (name, _) in enumerate(answered)
            if not strict[index].is_correct and is_procedural(self._problems[name])
        ]
        questions = [(self._problems[answered[index][0]], answered[index][1]) for index in asked]
        for index, verdict in zip(asked, self._verifiers.verify(questions), strict=True):
            strict[index] = verdict
        return list(zip(strict, official, strict=True))
