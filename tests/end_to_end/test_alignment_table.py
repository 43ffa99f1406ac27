"""The table of methods end to end, with as few methods as have every kind of group."""

import csv
import dataclasses
import pathlib

import pytest

from core_jax.errors import ConfigError
from core_jax.token_weights import WeightControl
from launch.cli import main
from rec_jax.align.methods import Method
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
    contrastive = {"contrastive cDPO", "contrastive cDPO, shuffled weights"}
    assert {f"+{name}" for name in contrastive} < policies
    assert {f"+IPA, {name}" for name in contrastive} < policies
    for policy in policies:
        assert {(policy, "truth"), (policy, "reward"), (policy, "judge:swt/max")} <= rows.keys()
    assert float(rows["+DPO", "truth"]["gain_low"]) <= float(rows["+DPO", "truth"]["gain_high"])
    text = (folder / "table.md").read_text()
    assert "+IPA minus +DPO" in text
    for pair in (
        "+contrastive cDPO minus +DPO",
        "+contrastive cDPO minus +contrastive cDPO, shuffled weights",
        "+IPA, contrastive cDPO minus +IPA, contrastive cDPO, shuffled weights",
    ):
        assert f"| {pair} |" in text
    assert (folder / "methods.png").is_file() and (folder / "index.html").is_file()


def test_steps_count_those_of_the_positive_and_the_negative_model(table):
    """Six per training: one for DPO, three for contrastive cDPO, and IPA's 2 rounds of each."""
    lines = (pathlib.Path(table.run_dir) / "report" / "table.md").read_text().splitlines()
    header = next(line for line in lines if line.startswith("| policy | true watch time"))
    steps = {}
    for line in lines[lines.index(header) + 2 :]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) < 3:
            break
        steps[cells[0]] = cells[-1]
    assert header.strip("| ").endswith("steps")
    for name, expected in {
        "OneRec": "0",
        "+DPO": "6",
        "+S-DPO": "6",
        "+contrastive cDPO": "18",
        "+contrastive cDPO, shuffled weights": "18",
        "+IPA": "12",
        "+DPO, steps of IPA": "12",
        "+IPA, contrastive cDPO": "36",
        "oracle": "-",
    }.items():
        assert steps[name] == expected, name


def test_controls_of_a_method_that_is_not_there_are_refused(table):
    with pytest.raises(ConfigError, match="controls of contrastive cDPO, which is not among"):
        dataclasses.replace(table, methods=(Method.SDPO,))
    with pytest.raises(ConfigError, match="is contrastive cDPO itself"):
        dataclasses.replace(table, weight_controls=(WeightControl.NONE,))
    with pytest.raises(ConfigError, match="weight_scales is empty"):
        dataclasses.replace(table, weight_scales=())


def test_rows_may_be_added_to_a_table(table):
    """The other cells stay as they are: another control is one more cell."""
    again = dataclasses.replace(table, weight_controls=(WeightControl.CONSTANT,))
    jobs = {
        "rec.alignment_table": dataclasses.replace(
            JOBS["rec.alignment_table"], presets={"own": lambda: again}
        )
    }
    folder = pathlib.Path(table.run_dir)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("done.json")}
    assert main(jobs, ["rec.alignment_table", "--preset", "own"], program="test") == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    text = (folder / "report" / "table.md").read_text()
    assert "+contrastive cDPO, constant weight" in text


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
