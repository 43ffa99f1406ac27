"""Trajectory files: schema, and writers that are cut off."""

import dataclasses
import json

import pytest

from core_jax.errors import DataError
from reasoning_jax.data.trajectories import (
    Trajectory,
    TrajectoryWriter,
    read_trajectories,
    trajectory_from,
)


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


@pytest.mark.parametrize("bad", [MANY[0], MANY[2], trajectory("p2", 0, response="\ud800")])
def test_a_batch_is_written_whole_or_not_at_all(tmp_path, bad):
    """A row of the file, one that the batch has twice, and half of a UTF-16 pair."""
    path = tmp_path / "t.jsonl"
    with TrajectoryWriter(path) as writer:
        writer.write(MANY[:1])
        with pytest.raises(DataError, match=r"already|cannot be written as UTF-8"):
            writer.write([*MANY[1:3], bad])
        assert writer.done == {MANY[0].key}
        writer.write(MANY[1:])
    assert list(read_trajectories(path)) == MANY


def test_what_is_cut_off_anywhere_goes_on_to_the_same_file(tmp_path):
    """Whatever byte a crash leaves as the last, reopening and writing the rest gives the file."""
    path = tmp_path / "t.jsonl"
    write(path, MANY)
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with TrajectoryWriter(path) as writer:
            assert len(writer.done) == whole[:length].count(b"\n")
            writer.write([one for one in MANY if one.key not in writer.done])
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": -1}, "sample is -1; they count from 0"),
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


@pytest.mark.parametrize("line", [b"{", b'{"a": "\xff"}', b"[" * 200_000])
def test_lines_that_are_no_json_are_named(tmp_path, line):
    path = tmp_path / "t.jsonl"
    write(path, MANY[:1])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(DataError, match="line 2: "):
        list(read_trajectories(path))


def test_a_row_is_an_object():
    with pytest.raises(DataError, match="expected a JSON object, not list"):
        trajectory_from([])
