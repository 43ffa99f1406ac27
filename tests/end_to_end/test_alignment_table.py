"""The table of methods end to end, with as few methods as have every kind of group."""

import csv
import dataclasses
import pathlib

import pytest

from core_jax.errors import ConfigError
from launch.cli import main
from rec_jax.align_presets import table_tiny
from rec_jax.alignment_cells import AlignmentTableConfig
from rec_jax.alignment_table import run_table
from rec_jax.jobs import JOBS
from tests.end_to_end.shrunk_alignment import shrunk_alignment

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> AlignmentTableConfig:
    folder = tmp_path_factory.mktemp("table")
    config = dataclasses.replace(
        table_tiny(), run_dir=str(folder / "run"), template=shrunk_alignment(folder / "unused")
    )
    jobs = {
        "rec.alignment_table": dataclasses.replace(
            JOBS["rec.alignment_table"], presets={"own": lambda: config}
        )
    }
    assert main(jobs, ["rec.alignment_table", "--preset", "own"], program="test") == 0
    return config


def test_every_row_is_there_under_every_judge(table):
    folder = pathlib.Path(table.run_dir) / "report"
    with (folder / "table.csv").open(newline="") as file:
        rows = {(row["policy"], row["measure"]): row for row in csv.DictReader(file)}
    policies = {policy for policy, _ in rows}
    assert {"random", "popularity", "oracle", "OneRec", "+DPO", "+IPA"} < policies
    assert {"+S-DPO", "+ECPO"} < policies
    for policy in policies:
        assert {(policy, "truth"), (policy, "reward"), (policy, "judge:swt/max")} <= rows.keys()
    assert float(rows["+DPO", "truth"]["gain_low"]) <= float(rows["+DPO", "truth"]["gain_high"])
    assert "+IPA minus +DPO" in (folder / "table.md").read_text()
    assert (folder / "methods.png").is_file() and (folder / "index.html").is_file()


def test_a_second_run_repeats_no_cell(table):
    folder = pathlib.Path(table.run_dir)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("done.json")}
    run_table(table)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("done.json")}


def test_wrong_seeds_and_a_start_of_another_run_are_refused(table):
    for seeds in ((), (1, 1), (-1,)):
        with pytest.raises(ConfigError, match="seeds"):
            dataclasses.replace(table, seeds=seeds)
    template = dataclasses.replace(table.template, from_run="elsewhere")
    with pytest.raises(ConfigError, match="leave it empty"):
        dataclasses.replace(table, template=template)
