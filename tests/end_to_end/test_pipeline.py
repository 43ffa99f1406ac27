"""The whole job on an own log, through the command line: run, repeat, resume, recommend."""

import dataclasses
import json
import pathlib

import polars as pl
import pytest

from core_jax.errors import CheckpointError, ConfigError
from core_jax.mesh import make_mesh
from launch.cli import main
from rec_jax.baselines.methods import ITEM_KNN, ITEM_KNN_NEAR
from rec_jax.config import PipelineConfig
from rec_jax.evaluate import load_report
from rec_jax.evaluation_tables import choice_line
from rec_jax.jobs import JOBS
from rec_jax.stages import evaluate, prepare, pretrain, report, tokenize
from tests.end_to_end.shrunk_job import NUM_USERS, shrunk_config, write_log


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> PipelineConfig:
    """One whole run, through the command line, on 8 devices."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_log(folder)
    config = shrunk_config(folder)
    jobs = {
        "rec.pipeline": dataclasses.replace(JOBS["rec.pipeline"], presets={"own": lambda: config})
    }
    assert main(jobs, ["rec.pipeline", "--preset", "own"], program="test") == 0
    return config


def test_every_stage_leaves_what_the_next_one_reads(run):
    folder = pathlib.Path(run.run_dir)
    for stage in (prepare, tokenize, pretrain, evaluate, report):
        assert (folder / "stages" / stage.NAME / "done.json").is_file()
    assert (folder / "stages" / pretrain.POINTWISE_NAME / "done.json").is_file()
    page = (folder / "report" / "index.html").read_text()
    assert "Film " in page and "OneRec session-wise" in page and "item-kNN" in page
    assert {path.name for path in (folder / "report").glob("*.png")} == {
        "loss.png",
        "code_usage.png",
        "expert_load.png",
        "recall.png",
    }


def test_the_evaluation_covers_all_methods_and_users(run):
    result = load_report(evaluate.load_folder(run.run_dir))
    names = [row.name for row in result.rows]
    assert {evaluate.SESSIONWISE, evaluate.POINTWISE} < set(names)
    assert result.num_users == NUM_USERS
    sessionwise = result.rows[names.index(evaluate.SESSIONWISE)]
    assert {"recall@10", "ndcg@10", "session_recall"} <= set(sessionwise.metrics)
    assert 0.0 <= sessionwise.legality <= 1.0
    assert {difference.method for difference in result.differences} == {
        evaluate.SESSIONWISE,
        evaluate.POINTWISE,
    }


def test_what_was_tried_is_kept_and_shown(run, tmp_path):
    choices = evaluate.load_choices(run.run_dir)
    grids = {ITEM_KNN: run.baselines.item_knn, ITEM_KNN_NEAR: run.baselines.item_knn_near}
    assert choices.keys() == grids.keys()
    page = (pathlib.Path(run.run_dir) / "report" / "index.html").read_text()
    for name, grid in grids.items():
        num_trials = len(grid.windows) * len(grid.shrinkages) * len(grid.distances)
        assert len(choices[name].trials) == num_trials and choices[name].k == grid.k
        assert choice_line(name, choices[name]) in page
        for trial in choices[name].trials:
            assert f"{trial.recall:.4f} / {trial.ndcg:.4f}" in page
    assert evaluate.load_choices(str(tmp_path)) == {}  # as in a run of before


def test_new_items_of_a_trained_run_get_codes(run, tmp_path, capsys):
    """The model's semantic IDs stay those it was trained with."""
    pl.DataFrame({"item_id": ["new"], "title": ["Film 7"]}).write_csv(tmp_path / "new.csv")
    command = ["rec.encode", "--run-dir", run.run_dir, "--items", str(tmp_path / "new.csv")]
    assert main(JOBS, command, program="test") == 0
    assert "new  Film 7" in capsys.readouterr().out
    pretrain.load(run.run_dir, make_mesh(run.mesh))


def test_a_second_run_repeats_nothing(run):
    folder = pathlib.Path(run.run_dir)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("stages/*/done.json")}
    JOBS["rec.pipeline"].run(run)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_another_architecture_in_the_same_run_is_an_error_that_names_it(run):
    changed = dataclasses.replace(run, model=dataclasses.replace(run.model, d_model=48))
    with pytest.raises(ConfigError, match=r"model.d_model: 32 -> 48.*--run-dir"):
        pretrain.run(changed)


def test_a_model_refuses_other_semantic_ids(run, monkeypatch):
    index = tokenize.load(run.run_dir)
    other = dataclasses.replace(index, fingerprint="0123456789abcdef")
    monkeypatch.setattr(tokenize, "load", lambda run_dir: other)
    with pytest.raises(CheckpointError, match="0123456789abcdef"):
        pretrain.load(run.run_dir, make_mesh(run.mesh))


def test_the_training_report_has_losses_and_one_compilation(run):
    rows = report.read_rows(pathlib.Path(run.run_dir) / "stages" / pretrain.NAME)
    assert [row["step"] for row in rows] == [2, 3, 4, 6]
    assert all(row["loss"] > 0 for row in rows)
    assert [row["step"] for row in rows if "valid_loss" in row] == [3, 6]


def test_recommendations_in_words_for_a_user_and_for_a_history(run, capsys):
    for arguments in (["--user", "u7"], ["--history", "i3,i7,i11"]):
        command = ["rec.recommend", "--run-dir", run.run_dir, *arguments, "--num-beams", "4"]
        assert main(JOBS, command, program="test") == 0
        text = capsys.readouterr().out
        assert "Generated session 1" in text and "Film " in text
    assert (
        main(JOBS, ["rec.recommend", "--run-dir", run.run_dir, "--user", "u777"], program="t") == 1
    )
    assert "Near ids: u7" in capsys.readouterr().err
    assert main(JOBS, ["rec.recommend", "--run-dir", run.run_dir], program="test") == 1
    assert "give one of them" in capsys.readouterr().err


def test_the_facts_of_a_stage_are_json(run):
    facts = json.loads((pathlib.Path(run.run_dir) / "stages/tokenize/done.json").read_text())
    assert facts["facts"]["level_sizes"][:2] == [5, 5]
