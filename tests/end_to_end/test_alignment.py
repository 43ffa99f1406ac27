"""Preference alignment end to end in a small world, through the command line."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from core_jax.errors import ConfigError, DataError
from core_jax.mesh import make_mesh
from launch.cli import main
from rec_jax.align.run_config import AlignRunConfig, folders_of
from rec_jax.alignment import resolved, run_align
from rec_jax.data.sessions import SessionData
from rec_jax.jobs import JOBS
from rec_jax.stages import (
    align,
    align_evaluate,
    align_report,
    candidates,
    generators,
    groups,
    prepare,
    pretrain,
    reward,
)
from rec_jax.stages.report import read_rows
from tests.end_to_end.shrunk_alignment import shrunk_alignment

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> AlignRunConfig:
    """One whole run, through the command line, on 8 devices."""
    config = shrunk_alignment(tmp_path_factory.mktemp("alignment") / "run")
    jobs = {"rec.align": dataclasses.replace(JOBS["rec.align"], presets={"own": lambda: config})}
    assert main(jobs, ["rec.align", "--preset", "own"], program="test") == 0
    return resolved(config)


def _stage(config: AlignRunConfig, name: str) -> pathlib.Path:
    return pathlib.Path(config.run_dir) / "stages" / name


def test_the_page_shows_rounds_judges_and_sessions_before_and_after(run):
    folder = pathlib.Path(run.run_dir) / "report"
    page = (folder / "index.html").read_text()
    for words in (
        "true watch time, s",
        "held-out judge",
        "oracle",
        "OneRec after round 2",
        "before alignment",
        "after round 2",
        "The judges before the truth",
    ):
        assert words in page
    assert {path.name for path in folder.glob("*.png")} == {"rounds.png", "best_of.png"}
    text = align_report.text(folders_of(run))
    assert "popularity" in text and "Best of N" in text


def test_a_round_starts_from_the_model_of_the_round_before(run):
    """A few small steps away from it, and at first policy and reference agree: log 2 for DPO."""
    for number in (1, 2):
        rows = read_rows(_stage(run, generators.train_stage(number)))
        assert [row["step"] for row in rows] == [2, 3, 4, 6]
        np.testing.assert_allclose(rows[0]["preference_loss"], np.log(2), atol=0.05)
    folders, mesh = folders_of(run), make_mesh(run.pipeline.mesh)
    first, second, third = (generators.load(folders, number, mesh)[1] for number in range(3))
    flat = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(p)])
        for p in (first, second, third)
    ]
    moved = [np.abs(one - two).max() for one, two in ((flat[0], flat[1]), (flat[1], flat[2]))]
    assert all(0 < step < 0.05 for step in moved)


def test_reference_log_probs_are_those_of_the_search(run):
    """The reference is the generator: its log-probabilities are the beams' scores."""
    folders = folders_of(run)
    for number in (1, 2):
        found = candidates.load(folders, run, number)
        preferences = groups.load(folders, number)
        rows = np.searchsorted(
            found.examples, preferences.examples, sorter=np.argsort(found.examples)
        )
        rows = np.argsort(found.examples)[rows]
        totals_QG = preferences.reference_log_probs.sum(axis=(2, 3))
        for row, totals in zip(rows, totals_QG, strict=True):
            distances = np.abs(found.log_probs[row][:, None] - totals[None])
            assert (distances.min(axis=0) < 1e-3).all()


def test_the_chosen_one_is_worth_more_than_the_rejected_one(run):
    facts = json.loads((_stage(run, groups.stage_name(1)) / "done.json").read_text())["facts"]
    assert facts["mean reward of the best"] > facts["mean reward of the worst"]
    assert facts["contexts"] == 24


def test_every_judge_sees_every_policy(run):
    folders = folders_of(run)
    references = align_evaluate.load_references(folders)
    assert list(references) == ["random", "popularity", "oracle"]
    models = [align_evaluate.load(folders, number) for number in range(3)]
    for sessions in (*references.values(), *models):
        assert sessions.has_truth and np.isfinite(sessions.reward).all()
        assert np.isfinite(sessions.judge).all() and (sessions.truth > 0).all()
    truth = {name: sessions.truth[:, 0].mean() for name, sessions in references.items()}
    assert truth["oracle"] > max(truth["random"], truth["popularity"])
    assert all(truth["oracle"] > sessions.truth[:, 0].mean() for sessions in models)


def test_a_second_run_repeats_nothing(run):
    folder = pathlib.Path(run.run_dir)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("stages/*/done.json")}
    assert len(before) == 16
    run_align(run)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_another_run_can_be_the_start(run, tmp_path):
    """`--from` takes log, semantic IDs and model of a run; the method is one flag."""
    command = ["rec.align", "--preset", "demo_tiny", "--run-dir", str(tmp_path / "ipo")]
    command += ["--from", run.run_dir, "--align.method.method", "ipo", "--align.num-rounds", "1"]
    command += ["--align.loop.num-steps", "4", "--pipeline.mesh.data", "8"]
    assert main(JOBS, command, program="test") == 0
    assert not (tmp_path / "ipo" / "stages" / pretrain.NAME).exists()
    assert "ipo, 1 rounds" in (tmp_path / "ipo" / "report" / "index.html").read_text()


def test_a_start_that_is_no_run_is_named(tmp_path, capsys):
    command = ["rec.align", "--preset", "demo_tiny", "--run-dir", str(tmp_path / "run")]
    assert main(JOBS, [*command, "--from", str(tmp_path / "nothing")], program="test") == 1
    assert "is no run folder" in capsys.readouterr().err


def test_another_method_in_the_same_round_is_an_error_that_names_it(run):
    other = dataclasses.replace(run, align=dataclasses.replace(run.align, preference_weight=0.25))
    with pytest.raises(ConfigError, match=r"preference_weight: 30\.0 -> 0\.25.*--run-dir"):
        align.run(folders_of(run), other, 1)


def test_candidates_of_another_reward_model_are_stale(run, monkeypatch):
    monkeypatch.setattr(generators, "reward_fingerprint", lambda run_dir, name: "another")
    with pytest.raises(DataError, match=r"stale.*reward .*now another"):
        candidates.load(folders_of(run), run, 1)


def test_more_beams_than_the_catalogue_has_ids_is_refused(run, tmp_path):
    many = dataclasses.replace(run.align.candidates, num_beams=512)
    other = dataclasses.replace(run, align=dataclasses.replace(run.align, candidates=many))
    folders = dataclasses.replace(folders_of(run), first=str(tmp_path))
    with pytest.raises(ConfigError, match=r"num_beams is 512.*only"):
        candidates.run(folders, other, 1)


def test_a_ratio_that_selects_nobody_is_refused(run):
    with pytest.raises(ConfigError, match=r"preference_ratio 0\.001 of 96 samples.*selects nobody"):
        dataclasses.replace(run.align, preference_ratio=0.001)


def test_judges_that_share_users_are_refused(run):
    same = dataclasses.replace(run.judge, user_fold=run.reward.user_fold)
    with pytest.raises(ConfigError, match=r"same user_fold.*set them apart"):
        dataclasses.replace(run, judge=same)


def test_recommendations_are_reranked_by_the_reward_model(run, capsys):
    user = align_evaluate.load_moments(run, _data(run)).user_ids[0]
    command = ["rec.recommend", "--run-dir", run.run_dir, "--user", user, "--num-beams", "8"]
    assert main(JOBS, [*command, "--rerank", "reward", "--num-sessions", "8"], program="t") == 0
    text = capsys.readouterr().out
    assert "reward = sum of weight" in text
    scores = [
        float(line.split("(reward ")[1][:-1]) for line in text.splitlines() if "(reward " in line
    ]
    assert len(scores) == 8 and scores == sorted(scores, reverse=True)
    assert main(JOBS, [*command, "--model-round", "7"], program="test") == 1
    assert "has no round 7; it has the models of rounds 0, 1, 2" in capsys.readouterr().err


def test_an_ab_test_in_the_world_says_who_wins(run, tmp_path, capsys):
    options = [
        "--run-dir",
        str(tmp_path),
        "--num-replications",
        "3",
        "--num-beams",
        "4",
        "--bootstrap-samples",
        "50",
    ]
    assert main(JOBS, ["rec.ab_test", "random", "oracle", *options], program="test") == 1
    assert "neither is a run" in capsys.readouterr().err
    command = ["rec.ab_test", f"{run.run_dir}:round_0", run.run_dir, *options]
    assert main(JOBS, command, program="test") == 0
    printed = capsys.readouterr().out
    assert "watch" in printed and (tmp_path / "ab_test.txt").read_text() in printed
    about = json.loads((tmp_path / "ab_test.json").read_text())
    assert about["policies"] == command[1:3] and about["result"]["num_replications"] == 3
    assert main(JOBS, ["rec.ab_test", "popularty", run.run_dir, *options], program="test") == 1
    assert "popularity" in capsys.readouterr().err
    wrong = ["rec.ab_test", "oracle", f"{run.run_dir}:round_9", *options]
    assert main(JOBS, wrong, program="test") == 1
    assert "has no 'round_9'" in capsys.readouterr().err


def test_the_judges_are_not_the_same(run):
    mesh = make_mesh(run.pipeline.mesh)
    ours = reward.load(run.run_dir, run.run_dir, mesh)
    theirs = reward.load(run.run_dir, run.run_dir, mesh, name=reward.JUDGE_NAME)
    assert ours.fingerprint != theirs.fingerprint
    assert ours.config.architecture is not theirs.config.architecture


def _data(config: AlignRunConfig) -> SessionData:
    return prepare.load(config.run_dir)[1]
