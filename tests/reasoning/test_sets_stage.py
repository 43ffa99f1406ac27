"""The stage that makes sets, on made-up rollouts: whole, cut off, damaged, with nothing to pair."""

import dataclasses
import json

import pytest

from core_jax.errors import ConfigError, DataError
from core_jax.run_folder import run_stage, stage_folder
from reasoning_jax.align.answer_sets import COUNTS, SetsConfig
from reasoning_jax.align.pair_file import read_pairs
from reasoning_jax.answers.grader import GraderConfig
from reasoning_jax.data.trajectories import TrajectoryWriter, read_trajectories
from reasoning_jax.stages import rollout, sets
from tests.reasoning.alignment_cases import solution, solutions

ROWS = [
    *solutions(["7", "5", "3", "5", "7.0"], right=("7", "7.0"), problem="p1"),
    *solutions(["7", "11", "11"], problem="p2"),
    *solutions(["7", "7"], problem="p3"),
    *solutions(["5", None], problem="p4"),
    *solutions([None], problem="p5"),
]
GRADER = GraderConfig(num_workers=1)


def roll_out(folder, rows, seed=0):
    """A finished rollout of these trajectories."""

    def work(stage):
        with TrajectoryWriter(stage / rollout.TRAJECTORIES) as writer:
            writer.write(list(rows))
        return {}

    assert run_stage(folder, rollout.NAME, {"seed": seed}, work)
    return str(folder)


@pytest.fixture
def rolled_out(tmp_path):
    return roll_out(tmp_path / "sampling", ROWS)


def make(folder, rolled_out, **config):
    return sets.run(str(folder), rollout_dir=rolled_out, grader=GRADER, config=SetsConfig(**config))


def content(folder):
    names = (sets.POSITIVE, sets.NEGATIVE, sets.PAIRS, sets.COUNTS_TABLE)
    return {name: sets.file_path(str(folder), name).read_bytes() for name in names}


def test_the_stage_writes_the_sets_the_pairs_and_their_counts(tmp_path, rolled_out, caplog):
    """p1 to p3 have right answers; p1, p2 and p4 wrong ones; p1 and p2 both."""
    folder = str(tmp_path / "contrast")
    with caplog.at_level("INFO"):
        assert make(folder, rolled_out)
    positive = list(read_trajectories(sets.file_path(folder, sets.POSITIVE)))
    negative = list(read_trajectories(sets.file_path(folder, sets.NEGATIVE)))
    pairs = sets.finished_pairs(folder)
    assert {one.problem_id for one in positive} == {"p1", "p2", "p3"}
    assert {(one.problem_id, one.answer) for one in negative} == {
        ("p1", "5"),
        ("p2", "11"),
        ("p4", "5"),
    }
    assert {pair.problem_id for pair in pairs} == {"p1", "p2"}
    assert pairs == read_pairs(sets.file_path(folder, sets.PAIRS))
    table = sets.file_path(folder, sets.COUNTS_TABLE).read_text()
    assert "| problems without contrast: no answer at all | 1 | 0.20 |" in table
    assert "| pairs | 2 | 0.40 |" in table
    assert table.strip() in caplog.text
    facts = json.loads((stage_folder(folder, sets.NAME) / "done.json").read_text())["facts"]
    assert facts.keys() == COUNTS.keys()
    assert facts["samples"] == len(ROWS)


def test_what_was_cut_off_is_made_again_the_same(tmp_path, rolled_out):
    """Half of it is there; and a rollout whose rows came in another order gives the same files."""
    make(tmp_path / "whole", rolled_out)
    folder = stage_folder(tmp_path / "again", sets.NAME)
    folder.mkdir(parents=True)
    whole = content(tmp_path / "whole")
    (folder / sets.POSITIVE).write_bytes(whole[sets.POSITIVE][:-37])
    (folder / sets.NEGATIVE).write_bytes(whole[sets.NEGATIVE])
    (folder / f".{sets.PAIRS}.part").write_bytes(b"{")
    make(tmp_path / "again", roll_out(tmp_path / "other", ROWS[::-1]))
    assert content(tmp_path / "again") == whole
    assert make(tmp_path / "again", rolled_out)


def test_other_settings_and_other_rollouts_need_another_run(tmp_path, rolled_out):
    make(tmp_path / "run", rolled_out)
    with pytest.raises(ConfigError, match=r"sets\.negative_share"):
        make(tmp_path / "run", rolled_out, negative_share=0.25)
    with pytest.raises(ConfigError, match="rollout"):
        make(tmp_path / "run", roll_out(tmp_path / "other", ROWS, seed=1))


def test_a_rollout_must_be_done(tmp_path):
    with pytest.raises(DataError, match=r"stage 'rollout' of run .* is not done"):
        make(tmp_path / "run", str(tmp_path / "sampling"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (solutions(["7", "7"]), r"0 have no right answer, 1 no wrong one.*higher temperature"),
        (solutions(["5", "3"]), r"1 have no right answer, 0 no wrong one.*lower temperature"),
        (solutions([None]), r"0 no wrong one, 1 none at all.*Sample more solutions"),
        ([solution(finish="length")], r"1 of 1 solutions were cut off.*max_new_tokens"),
        ([solution(), solution("p1", 1, "7", False)], "1 only answers that are graded differently"),
        ([], "of 0 problems"),
    ],
)
def test_no_pair_is_an_error_that_says_what_to_do(tmp_path, rows, message):
    """The counts are there to be looked at; nothing else is, and the stage is not done."""
    folder = tmp_path / "run"
    with pytest.raises(DataError, match=rf"gives no pair.*{message}"):
        make(folder, roll_out(tmp_path / "sampling", rows))
    assert [file.name for file in stage_folder(folder, sets.NAME).iterdir()] == ["counts.md"]
    with pytest.raises(DataError, match=r"stage 'sets' of run .* is not done"):
        sets.finished_pairs(str(folder))


def test_answers_that_are_graded_differently_are_reported(tmp_path, caplog):
    rows = [*ROWS, solution("p1", 97, "7", False)]
    make(tmp_path / "run", roll_out(tmp_path / "sampling", rows))
    assert "1 problems have an answer whose solutions are graded differently, such as 'p1'" in (
        caplog.text
    )


def test_ungraded_trajectories_are_an_error(tmp_path):
    rows = [dataclasses.replace(one, is_correct=None) for one in ROWS]
    with pytest.raises(DataError, match="13 trajectories are not graded"):
        make(tmp_path / "run", roll_out(tmp_path / "sampling", rows))


def test_a_file_that_lost_a_row_is_not_what_the_stage_has_written(tmp_path, rolled_out):
    make(tmp_path / "run", rolled_out)
    path = sets.file_path(str(tmp_path / "run"), sets.PAIRS)
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(DataError, match=r"pairs.jsonl' of the finished stage 'sets' has"):
        sets.finished_pairs(str(tmp_path / "run"))
    marker = path.parent / "done.json"
    done = json.loads(marker.read_text())
    del done["files"]  # as in runs of before sizes were written down
    marker.write_text(json.dumps(done))
    with pytest.raises(DataError, match="holds 1 pairs; the stage 'sets' has written 2"):
        sets.finished_pairs(str(tmp_path / "run"))
