"""Gold answers of real data sets against themselves. Skipped where the data are not."""

import os
import pathlib

import pytest

from benchmarks.grader import read_solutions
from reasoning_jax.answers.grader import Grader, GraderConfig
from reasoning_jax.answers.guards import refusal
from reasoning_jax.answers.verdict import GraderKind, OfficialTask

SIZES = {"gsm8k": 1319, "math": 5000, "math500": 500}


@pytest.mark.real_data
@pytest.mark.parametrize("kind", list(GraderKind))
@pytest.mark.parametrize("name", list(SIZES))
def test_gold_equals_itself(name, kind):
    """The reference solution is right, and so is the bare gold answer, by both graders."""
    folder = pathlib.Path(os.environ.get("ALIGNAX_REAL_DATA", "/nowhere"))
    solutions = read_solutions(folder, name)
    if not solutions:
        pytest.skip(f"ALIGNAX_REAL_DATA is not set to a folder that holds '{name}'")
    assert len(solutions) == SIZES[name]
    task = OfficialTask.GSM8K if name == "gsm8k" else OfficialTask.MATH
    with Grader(GraderConfig(kind=kind, task=task, time_limit_s=20.0)) as grader:
        verdicts = grader.grade(solutions)
        wrong = [
            pair
            for pair, verdict in zip(solutions, verdicts, strict=True)
            if not verdict.is_correct
        ]
        assert wrong == []
        bare = grader.equivalents([(gold, gold + " ") for gold, _ in solutions])
        assert all(verdict.is_correct for verdict in bare)
    refused = [gold for gold, _ in solutions if refusal(gold)]
    assert len(refused) <= 3, refused
