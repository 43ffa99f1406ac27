"""Scores against the critical tokens of a run of rollouts, and against first errors."""

import dataclasses
import json

import numpy as np
import pytest

from core_jax.errors import DataError
from core_jax.run_folder import run_stage
from reasoning_jax.align.estimate import EstimateConfig, auc
from reasoning_jax.config import ScoreConfig
from reasoning_jax.data.token_values import TokenValues, TokenValuesWriter, read_token_values
from reasoning_jax.data.trajectories import Trajectory
from reasoning_jax.stages import critical, estimate
from reasoning_jax.stages.critical_results import critical_index, write_results

CURVES = {
    "p0": (5, 3, 0, 0, 0, 0, 0),
    "p1": (2, 4, 1, 1, 0),
    "p2": (3, 0, 2, 1, 0, 1, 1, 0, 0, 0, 0),
}
CRITICAL = {"p0": 2, "p1": 4, "p2": 7}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a finished stage, made by hand: 7 completions of every prefix."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    solutions = [
        Trajectory(
            problem_id=name,
            sample=1,
            task="own",
            seed=0,
            prompt="q",
            response="x" * len(curve),
            token_ids=(257, *range(len(curve))),
            response_start=1,
            finish="stop",
            answer=None,
            is_correct=False,
            official_correct=False,
            model="m",
            tokenizer="t",
        )
        for name, curve in CURVES.items()
    ]
    rows = [
        {
            "problem_id": name,
            "sample": 1,
            "task": "own",
            "num_tokens": len(curve),
            "successes": list(curve),
            "critical": CRITICAL[name],
            "is_fallback": False,
            "kept_successes": 0,
            "replaced_successes": None,
            "sampled_tokens": 1,
            "read_tokens": 1,
            "replacement_tokens": 0,
        }
        for name, curve in CURVES.items()
    ]
    score = ScoreConfig(bootstrap_samples=11)
    run_stage(
        run_dir,
        critical.NAME,
        {},
        lambda folder: write_results(folder, rows, solutions, "i", 7, score),
    )
    return run_dir / "stages/critical"


def score_file(path, whole, **changes):
    """Scores that are the success after each token, less the place: low where critical."""
    with TokenValuesWriter(path, model="contrast") as writer:
        for one in read_token_values(whole / "critical.jsonl").values():
            success = one.named("success")
            lowered = tuple(rate - 0.01 * place for place, rate in enumerate(success))
            values = {"log_score@1.0": lowered, "positive": (0.5,) * len(success)}
            fields = {"values": values, "model": "contrast", **changes}
            writer.write([dataclasses.replace(one, **fields)])
    return str(path)


def test_scores_are_compared_with_the_critical_tokens(whole, tmp_path):
    scores = score_file(tmp_path / "scores.jsonl", whole)
    config = EstimateConfig(
        values=("log_score@1.0", "positive"), top_ks=(1, 3), bootstrap_samples=50
    )
    options = {"sources": {str(whole.parents[1]): scores}, "config": config}
    assert estimate.run(str(tmp_path / "run"), **options)
    folder = tmp_path / "run/stages/estimate"
    rows = json.loads((folder / "estimate.json").read_text())["rows"]
    assert [(row["target"], row["task"], row["value"]) for row in rows] == [
        ("critical token", "own", value) for value in config.values
    ]
    found = read_token_values(scores)
    expected = [
        auc(np.array(found[key].named("log_score@1.0")), index)
        for key, one in read_token_values(whole / "critical.jsonl").items()
        if (index := critical_index(one)) is not None
    ]
    assert rows[0]["estimate"]["auc"]["mean"] == pytest.approx(np.mean(expected))
    assert rows[1]["estimate"]["auc"]["mean"] == 0.5
    assert "| critical token | own | positive |" in (folder / "estimate.md").read_text()
    assert (folder / "estimate.png").read_bytes().startswith(b"\x89PNG")
    narrow = dataclasses.replace(config, values=("positive",))
    assert estimate.run(str(tmp_path / "run"), **{**options, "config": narrow})
    assert len(json.loads((folder / "estimate.json").read_text())["rows"]) == 1


def test_the_first_error_is_looked_for_too(whole, tmp_path):
    """It is the critical token of one solution, the one before in another; the third has none."""
    scores = score_file(tmp_path / "scores.jsonl", whole)
    errors = CRITICAL | {"p1": CRITICAL["p1"] - 1, "p2": None}

    def first_error(values: TokenValues) -> int | None:
        return errors[values.problem_id]

    def report(run_dir: str, find: estimate.FirstError):
        estimate.run(
            run_dir,
            sources={str(whole.parents[1]): scores},
            config=EstimateConfig(bootstrap_samples=50),
            first_error=find,
        )
        folder = tmp_path / run_dir / "stages/estimate"
        return json.loads((folder / "estimate.json").read_text()), folder

    results, folder = report(str(tmp_path / "run"), first_error)
    assert results["rows"][1]["target"] == "first error"
    assert results["rows"][1]["estimate"]["num_solutions"] == 2
    agreement = results["agreement"]
    assert (agreement["same"], agreement["before"], agreement["after"]) == (1, 0, 1)
    assert (agreement["other"]["mean"], agreement["median_distance"]) == (0.5, 0.5)
    assert "Of 2 solutions with both" in (folder / "estimate.md").read_text()
    results, folder = report(str(tmp_path / "other"), lambda values: None)
    assert [row["target"] for row in results["rows"]] == ["critical token"]
    assert "No solution has both" in (folder / "estimate.md").read_text()


def test_errors_of_an_estimate_name_what_is_wrong(whole, tmp_path):
    run_dir, config = str(whole.parents[1]), EstimateConfig()
    with pytest.raises(DataError, match=r"there is no file of scores '.*none'; score the"):
        estimate.run(str(tmp_path), sources={run_dir: str(tmp_path / "none")}, config=config)
    with pytest.raises(DataError, match=r"stage 'critical' of run '.*' is not done"):
        estimate.run(str(tmp_path), sources={str(tmp_path): "x"}, config=config)
    scores = score_file(tmp_path / "scores.jsonl", whole)
    with pytest.raises(DataError, match=r"have no 'log_scores'\. Did you mean 'log_score@1\.0'"):
        other = dataclasses.replace(config, values=("log_scores",))
        estimate.run(str(tmp_path), sources={run_dir: scores}, config=other)
    first = next(iter(read_token_values(scores).values()))
    moved = dataclasses.replace(first, token_ids=(0, *first.token_ids[1:]))
    path = tmp_path / "moved.jsonl"
    with TokenValuesWriter(path, model="contrast") as writer:
        writer.write([moved])
    with pytest.raises(DataError, match="belong to other tokens: token 0 is 0 there and 257 here"):
        estimate.run(str(tmp_path), sources={run_dir: str(path)}, config=config)
