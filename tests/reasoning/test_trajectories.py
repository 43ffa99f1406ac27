"""Trajectory files: schema, cut-off writers, imports from other engines."""

import dataclasses
import json

import pytest

from core_jax.errors import ConfigError, DataError
from reasoning_jax.data.trajectories import (
    Trajectory,
    TrajectoryWriter,
    read_trajectories,
    trajectory_from,
)
from reasoning_jax.data.trajectory_import import ImportConfig, import_trajectories
from reasoning_jax.text.byte_tokenizer import ByteTokenizer


def trajectory(problem="p1", sample=0, **changes):
    fields = {
        "problem_id": problem,
        "sample": sample,
        "task": "sums",
        "seed": 3,
        "prompt": "1+1=",
        "response": "2 \u00e9",
        "token_ids": (1, 2, 3, 5),
        "response_start": 2,
        "finish": "stop",
        "answer": "2",
        "is_correct": True,
        "official_correct": None,
        "model": "m",
        "tokenizer": "t",
    }
    return Trajectory(**fields | changes)


MANY = [trajectory(f"p{p}", s) for p in range(3) for s in range(2)]


def write(path, rows):
    with TrajectoryWriter(path) as writer:
        writer.write(rows)


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / "t.jsonl", MANY[:4])
    write(tmp_path / "t.jsonl", MANY[4:])
    assert list(read_trajectories(tmp_path / "t.jsonl")) == MANY
    assert list(read_trajectories(tmp_path / "absent.jsonl")) == []


@pytest.mark.parametrize("cut", [1, 17, 200])
def test_a_row_that_was_cut_off_is_removed_and_reported(tmp_path, caplog, cut):
    path = tmp_path / "t.jsonl"
    write(path, MANY[:3])
    path.write_bytes(path.read_bytes()[:-cut])
    with TrajectoryWriter(path) as writer:
        assert writer.done == {one.key for one in MANY[:2]}
        writer.write(MANY[2:])
    assert list(read_trajectories(path)) == MANY
    assert "was cut off; it is removed and sampled again" in caplog.text


def test_a_sample_has_one_row(tmp_path):
    path = tmp_path / "t.jsonl"
    write(path, MANY)
    with (
        TrajectoryWriter(path) as writer,
        pytest.raises(DataError, match=r"\('p0', 1\) is in .* already"),
    ):
        writer.write([MANY[1]])
    path.write_text(path.read_text() * 2)
    with pytest.raises(DataError, match=r"line 7: trajectory \('p0', 0\) stands in line 1 too"):
        list(read_trajectories(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": "0"}, "'sample' is '0'; expected int"),
        ({"sample": True}, "'sample' is True; expected int"),
        ({"is_correct": 1}, "'is_correct' is 1; expected bool or null"),
        ({"answer": 2}, "'answer' is 2; expected str or null"),
        ({"token_ids": [1, -2]}, "holds what is no token id"),
        ({"finish": "eos"}, "finish is 'eos'"),
        ({"response_start": 0}, "response_start is 0, with 4 tokens"),
        ({"response_start": 5}, "response_start is 5, with 4 tokens"),
        ({"extra": 1}, "unknown 'extra'"),
        ({"model": ...}, "no 'model'"),
    ],
)
def test_rows_are_checked(tmp_path, change, message):
    fields = dataclasses.asdict(trajectory()) | change
    fields = {name: value for name, value in fields.items() if value is not ...}
    with pytest.raises(DataError, match=message):
        trajectory_from(fields)
    path = tmp_path / "t.jsonl"
    write(path, [trajectory("first")])
    with path.open("a") as file:
        file.write(json.dumps(fields) + "\n")
    with pytest.raises(DataError, match=r"line 2: .*"):
        list(read_trajectories(path))


def test_lines_that_are_no_json(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("{\n")
    with pytest.raises(DataError, match="line 1: "):
        list(read_trajectories(path))
    with pytest.raises(DataError, match="expected a JSON object, not list"):
        trajectory_from([])


TOKENIZER = ByteTokenizer()


def import_rows(tmp_path, rows, **columns):
    path = tmp_path / "other.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return import_trajectories(path, ImportConfig(**columns), TOKENIZER)


def test_an_outside_engines_rows_become_trajectories(tmp_path):
    rows = [
        {"id": 7, "in": "1+1=", "out": "2", "finish_reason": "stop"},
        {"id": 7, "in": "1+1=", "out": "3", "finish_reason": "length"},
        {"id": 9, "in": "2+2=", "out": "4"},
    ]
    found = import_rows(tmp_path, rows, problem_id="id", prompt="in", response="out")
    assert [one.key for one in found.trajectories] == [("7", 0), ("7", 1), ("9", 0)]
    assert [one.finish for one in found.trajectories] == ["stop", "length", "stop"]
    assert found.trajectories[0].token_ids == (257, *b"1+1=2")
    assert found.trajectories[0].response_start == 5
    assert found.trajectories[0].is_correct is None
    assert found.trajectories[0].tokenizer == TOKENIZER.fingerprint
    write(tmp_path / "t.jsonl", found.trajectories)
    assert list(read_trajectories(tmp_path / "t.jsonl")) == found.trajectories
    assert found.summary() == "3 rows taken, 0 rejected"


def test_ids_of_the_file_are_kept_where_they_say_the_text(tmp_path):
    good = {"problem_id": "a", "prompt": "1", "response": "2", "ids": [49, 50], "at": 1}
    rows = [good, good | {"ids": [49, 51]}, good | {"ids": [49, 999]}, good | {"at": 2}]
    found = import_rows(tmp_path, rows, token_ids="ids", response_start="at")
    assert [one.token_ids for one in found.trajectories] == [(49, 50)]
    assert found.rejected == {
        "whose ids are of another text": 1,
        "with ids that the tokenizer does not have": 1,
        "whose response_start lies outside the ids": 1,
    }


def test_bad_rows_are_counted_by_reason(tmp_path):
    good = {"problem_id": "a", "prompt": "1", "response": "2", "n": 4}
    rows = [
        good,
        good,
        "{",
        "[1]",
        {"problem_id": "a", "prompt": "1"},
        good | {"response": ""},
        good | {"prompt": 3, "n": 5},
        good | {"finish_reason": "abort", "n": 6},
        good | {"n": "x"},
    ]
    found = import_rows(tmp_path, rows, sample="n")
    assert [one.key for one in found.trajectories] == [("a", 4)]
    assert sum(found.rejected.values()) == 8
    assert "of a problem and sample that came before, first line 2: ('a', 4)" in found.summary()
    assert found.rejected["without 'response'"] == 1
    with pytest.raises(DataError, match="has no row that can be taken"):
        import_rows(tmp_path, ["{"])
    with pytest.raises(DataError, match="there is no file"):
        import_trajectories(tmp_path / "absent", ImportConfig(), TOKENIZER)


def test_import_config_errors():
    with pytest.raises(ConfigError, match=r"import\.prompt is empty"):
        ImportConfig(prompt="")
    with pytest.raises(ConfigError, match="belong together"):
        ImportConfig(token_ids="ids")
