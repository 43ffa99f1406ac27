"""Files of token values: schema, writers that are cut off, and values of other tokens."""

import dataclasses
import json

import pytest

from core_jax.errors import DataError
from reasoning_jax.data.token_values import (
    TokenValues,
    TokenValuesWriter,
    matching,
    read_token_values,
    token_values_from,
)
from tests.reasoning.test_trajectories import trajectory


def values(problem="p1", sample=0, **changes):
    fields = {
        "problem_id": problem,
        "sample": sample,
        "model": "m",
        "token_ids": (1, 2, 3, 5, 7),
        "response_start": 2,
        "values": {"log_score@1.0": (-0.5, -1e-7, -31.25), "positive": (-1.0, 0.0, -2.5)},
    }
    return TokenValues(**fields | changes)


MANY = [values(f"p{p}\u00e9", s) for p in range(3) for s in range(2)]


def write(path, rows):
    with TokenValuesWriter(path, model="m") as writer:
        writer.write(rows)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "v.jsonl"
    write(path, MANY[:4])
    write(path, MANY[4:])
    assert read_token_values(path) == {one.key: one for one in MANY}
    assert list(read_token_values(path)) == [one.key for one in MANY]
    with pytest.raises(DataError, match=r"no file of token values .*absent"):
        read_token_values(tmp_path / "absent.jsonl")


def test_what_is_cut_off_anywhere_goes_on_to_the_same_file(tmp_path):
    """Whatever byte a crash leaves as the last, reopening and writing the rest gives the file."""
    path = tmp_path / "v.jsonl"
    write(path, MANY)
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with TokenValuesWriter(path, model="m") as writer:
            assert len(writer.done) == whole[:length].count(b"\n")
            writer.write([one for one in MANY if one.key not in writer.done])
        assert path.read_bytes() == whole


@pytest.mark.parametrize("cut", [1, 17, 150])
def test_a_truncated_file_is_named(tmp_path, cut):
    path = tmp_path / "v.jsonl"
    write(path, MANY)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"v\.jsonl', line 6: the file is truncated"):
        read_token_values(path)


def test_a_file_that_lost_whole_rows_is_found_out_when_they_are_wanted(tmp_path):
    path = tmp_path / "v.jsonl"
    write(path, MANY[:5])
    with pytest.raises(DataError, match=r"no values of \('p2\u00e9', 1\) among those of 5"):
        matching(read_token_values(path), MANY[5])


def test_a_response_has_one_row(tmp_path):
    path = tmp_path / "v.jsonl"
    with TokenValuesWriter(path, model="m") as writer:
        writer.write(MANY[:2])
        for batch in ([MANY[2], MANY[1]], [MANY[2], MANY[2]]):
            with pytest.raises(DataError, match=r"are in .* already; a response has one row"):
                writer.write(batch)
        writer.write(MANY[2:])
    assert list(read_token_values(path)) == [one.key for one in MANY]
    path.write_text(path.read_text() * 2)
    with pytest.raises(DataError, match=r"line 7: values of \('p0\u00e9', 0\) stand in line 1 too"):
        read_token_values(path)


def test_a_file_is_of_one_model(tmp_path):
    path = tmp_path / "v.jsonl"
    write(path, MANY[:1])
    message = r"values of \('p0\u00e9', 0\) .* are of another model \('m', not 'other'\)"
    with pytest.raises(DataError, match=message):
        TokenValuesWriter(path, model="other")
    with (
        TokenValuesWriter(path, model="m") as writer,
        pytest.raises(DataError, match=r"another model \('n', not 'm'\)"),
    ):
        writer.write([values(model="n")])


def test_values_are_those_of_the_tokens():
    found = {one.key: one for one in [values()]}
    same = trajectory("p1", 0, token_ids=(1, 2, 3, 5, 7))
    assert matching(found, same) is found["p1", 0]
    for change, message in [
        ({"token_ids": (1, 2, 3, 11, 7)}, "token 3 is 5 there and 11 here"),
        ({"token_ids": (1, 2, 3, 5)}, "there are 5 tokens there and 4 here"),
        ({"token_ids": (1, 2, 3, 5, 7), "response_start": 3}, "starts at 2 there and at 3 here"),
    ]:
        with pytest.raises(DataError, match=r"\('p1', 0\) belong to other tokens: .*" + message):
            matching(found, trajectory("p1", 0, **change))
    with pytest.raises(DataError, match=r"no values of \('p1', 3\) among those of 1 "):
        matching(found, trajectory("p1", 3))


def test_values_by_name():
    assert values().named("positive") == (-1.0, 0.0, -2.5)
    with pytest.raises(DataError, match=r"have no 'postive'\. Did you mean 'positive'"):
        values().named("postive")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": -1}, "sample is -1; they count from 0"),
        ({"sample": True}, "'sample' is True; expected int"),
        ({"model": 3}, "'model' is 3; expected str"),
        ({"model": ...}, "no 'model'"),
        ({"extra": 1}, "unknown 'extra'"),
        ({"token_ids": [1, 2, -3, 5, 7]}, "holds what is no token id"),
        ({"token_ids": [1, 2, 3.0, 5, 7]}, "holds what is no token id"),
        ({"response_start": 0}, "response_start is 0, with 5 tokens"),
        ({"response_start": 6}, "response_start is 6, with 5 tokens"),
        ({"values": {}}, "there are none; expected at least one name"),
        ({"values": {"a": [0.5, 1.5]}}, "'a' has 2 numbers, but the response has 3 tokens"),
        ({"values": {"a": [0.5, 1.5, "2"]}}, "'a' is no list of numbers"),
        ({"values": {"a": [0.5, 1.5, True]}}, "'a' is no list of numbers"),
        ({"values": {"a": [0.5, 1.5, float("nan")]}}, "'a' holds a number that is not finite"),
        ({"values": [1.0, 2.0, 3.0]}, "'values' is .*; expected dict"),
    ],
)
def test_rows_are_checked(tmp_path, change, message):
    fields = json.loads(json.dumps(dataclasses.asdict(values()))) | change
    fields = {name: value for name, value in fields.items() if value is not ...}
    with pytest.raises(DataError, match=message):
        token_values_from(fields)
    path = tmp_path / "v.jsonl"
    write(path, MANY[:1])
    with path.open("a") as file:
        file.write(json.dumps(fields) + "\n")
    with pytest.raises(DataError, match=r"v\.jsonl', line 2: "):
        read_token_values(path)


def test_whole_numbers_are_numbers():
    fields = json.loads(json.dumps(dataclasses.asdict(values(values={"a": (1.0, 0.0, 2.0)}))))
    fields["values"]["a"] = [1, 0, 2]
    assert token_values_from(fields) == values(values={"a": (1.0, 0.0, 2.0)})


@pytest.mark.parametrize("line", [b"{", b'{"a": "\xff"}', b"[" * 200_000, b"[]"])
def test_lines_that_are_no_values_are_named(tmp_path, line):
    path = tmp_path / "v.jsonl"
    write(path, MANY[:1])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(DataError, match="line 2: "):
        read_token_values(path)
