"""Files of pairs: what is written is read, and what is damaged is named."""

import dataclasses
import json

import pytest

from core_jax.errors import DataError
from reasoning_jax.align.pair_file import Pair, read_pairs, write_pairs
from tests.reasoning.alignment_cases import solution


def pair(problem="p1", index=0, **changes):
    fields = {
        "problem_id": problem,
        "index": index,
        "chosen": solution(problem, 2, "7", True, response="7 \u00e9\u2028"),
        "rejected": solution(problem, 3, "5", False),
    }
    return Pair(**fields | changes)


MANY = [pair(f"p{p}", index) for p in range(3) for index in range(2)]


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "pairs.jsonl"
    write_pairs(path, MANY)
    assert read_pairs(path) == tuple(MANY)
    write_pairs(path, iter(MANY[1:2]))
    assert read_pairs(path) == (MANY[1],)
    assert [file.name for file in path.parent.iterdir()] == ["pairs.jsonl"]
    fields = json.loads(path.read_text(encoding="utf-8"))
    assert list(fields) == ["problem_id", "index", "chosen", "rejected"]


@pytest.mark.parametrize("bad", [MANY[0], pair("p9", chosen=solution("p9", response="\ud800"))])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, bad):
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, MANY[:1])
    with pytest.raises(DataError, match=r"\('p0', 0\) is given twice|cannot be written as UTF-8"):
        write_pairs(path, [*MANY, bad])
    assert read_pairs(path) == (MANY[0],)


@pytest.mark.parametrize("cut", [1, 2, 101])
def test_a_file_that_was_cut_off_is_an_error(tmp_path, cut):
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, MANY[:3])
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match="line 3 was cut off; make the pairs again by the stage"):
        read_pairs(path)


def test_no_file_and_no_pair_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"no file of pairs '.*pairs.jsonl'; make the pairs again"):
        read_pairs(tmp_path / "pairs.jsonl")
    write_pairs(tmp_path / "pairs.jsonl", [])
    with pytest.raises(DataError, match=r"'.*pairs.jsonl' holds no pair"):
        read_pairs(tmp_path / "pairs.jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": -1}, "index is -1; they count from 0"),
        ({"index": True}, "'index' is True; expected int"),
        ({"problem_id": 3}, "'problem_id' is 3; expected str"),
        ({"problem_id": "p0"}, "chosen is a solution of problem 'p1'"),
        ({"chosen": 3}, "'chosen': expected a JSON object, not int"),
        ({"rejected": {"sample": 1}}, "'rejected': no 'answer'"),
        ({"extra": 1}, r"has the fields .*'extra'.*; expected \['chosen', 'index'"),
        ({"chosen": dataclasses.asdict(MANY[2].rejected)}, "is_correct of chosen is False"),
        ({"index": 0}, r"pair \('p1', 0\) stands there before too"),
    ],
)
def test_rows_are_checked(tmp_path, change, message):
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, [pair()])
    row = json.dumps(dataclasses.asdict(pair(index=1)) | change)
    path.write_text(path.read_text(encoding="utf-8") + row + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"'.*pairs.jsonl', line 2: .*{message}"):
        read_pairs(path)


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"a": "\xff"}', b"[" * 200_000, b""])
def test_lines_that_are_no_pair_are_named(tmp_path, line):
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, MANY[:1])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(DataError, match="line 2: "):
        read_pairs(path)


@pytest.mark.parametrize(
    ("side", "change", "message"),
    [
        ("chosen", {"prompt": "x"}, "the prompt of chosen is 'x', that of rejected 'p1='"),
        ("rejected", {"tokenizer": "u"}, "the tokenizer of chosen is 't', that of rejected 'u'"),
        ("rejected", {"is_correct": None}, "is_correct of rejected is None; expected False"),
        ("rejected", {"problem_id": "q"}, "rejected is a solution of problem 'q'"),
    ],
)
def test_both_sides_answer_one_question(side, change, message):
    with pytest.raises(DataError, match=message):
        pair(**{side: dataclasses.replace(getattr(MANY[2], side), **change)})
