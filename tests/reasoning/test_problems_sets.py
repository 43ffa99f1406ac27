"""Problem sets: each published form gives the same problems, through ArrayRecord; every error."""

import json
import logging
import os
import pathlib
import shutil
import sys

import polars as pl
import pytest

from core_jax.errors import DataError
from reasoning_jax.data.builders import problem_sets
from reasoning_jax.data.builders.problem_sets import ADDRESSES, load_problem_set, read_problems
from reasoning_jax.data.problems import SPLITS

GSM8K = [
    {"question": "Two and two?", "answer": "It is 2+2=<<2+2=4>>4 of <<4*1=4>>4.\n#### 4"},
    {"question": "Much?", "answer": "Sold #### once.\n#### 1,234,567 "},
    {"question": "Less?", "answer": "3 - 8 = -5\n#### -5"},
]
MATH = [
    {
        "problem": "What is $x$?",
        "level": "Level 2",
        "type": "Algebra",
        "solution": r"First \boxed{1}, no, $\boxed{\frac{1}{2}}$.",
    },
    {"problem": "And $y$?", "level": "Level ?", "type": "Geometry", "solution": r"\boxed{y=3}"},
]
SVAMP = [
    {"ID": "chal-7", "Body": "He has 5 pens", "Question": "How many?", "Answer": 5.0, "Type": "A"},
    {"ID": "chal-8", "Body": "She has 1. ", "Question": " Half?", "Answer": 0.5, "Type": "B"},
]


def write(path: pathlib.Path, rows: list) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_gsm8k_answers_and_solutions(tmp_path):
    problems = load_problem_set(
        "gsm8k", "train", source=write(tmp_path / "a.jsonl", GSM8K), cache_dir=tmp_path / "cache"
    )
    assert [one.answer for one in problems] == ["4", "1234567", "-5"]
    assert problems[0].solution == "It is 2+2=4 of 4.\n#### 4"
    assert problems[1].solution == "Sold #### once.\n#### 1,234,567"
    assert [one.problem_id for one in problems] == [f"gsm8k-train-{n:05}" for n in range(3)]
    assert {one.task for one in problems} == {"gsm8k"}
    assert list((tmp_path / "cache").rglob("*.array_record*"))
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "json"])
def test_every_suffix_gives_the_same(tmp_path, suffix):
    write(tmp_path / "set" / f"test.{suffix}", MATH)
    problems = load_problem_set("math", "test", source=tmp_path / "set", cache_dir=tmp_path)
    assert [one.answer for one in problems] == [r"\frac{1}{2}", "y=3"]
    assert problems[0].metadata == {"level": "Level 2", "type": "Algebra"}
    assert [one.solution for one in problems] == [row["solution"] for row in MATH]


def test_math_as_published_is_in_the_order_of_subject_and_number(tmp_path):
    """A file per problem: 2 before 10, algebra before geometry."""
    for name, row in (("geometry/1", MATH[1]), ("algebra/10", MATH[0]), ("algebra/2", MATH[0])):
        path = tmp_path / "MATH" / "train" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row), encoding="utf-8")
    load = {"source": tmp_path / "MATH", "cache_dir": tmp_path}
    problems = load_problem_set("math", "train", **load)
    names = [one.metadata["unique_id"] for one in problems]
    assert names == ["train/algebra/2.json", "train/algebra/10.json", "train/geometry/1.json"]
    (tmp_path / "MATH/train/algebra/2.json").write_text(json.dumps(MATH[1]), encoding="utf-8")
    assert load_problem_set("math", "train", **load)[0].question == MATH[1]["problem"]
    with pytest.raises(DataError, match=r"nor a folder with test.jsonl"):
        load_problem_set("math", "test", **load)


def test_math_nested_in_a_training_table(tmp_path):
    row = {"question": MATH[0]["problem"], "solution": MATH[0]["solution"], "target": "0.5"}
    nested = {"level": "Level 2", "type": "Algebra", "reward_model": {"ground_truth": row}}
    (problem,) = read_problems("math", "train", write(tmp_path / "a.parquet", [nested]))
    assert problem.question == MATH[0]["problem"] and problem.answer == r"\frac{1}{2}"


def test_math500_has_its_own_answers(tmp_path):
    row = {**MATH[0], "answer": "0.5", "subject": "Algebra", "level": 2, "unique_id": "test/a/1"}
    (problem,) = read_problems("math500", "test", write(tmp_path / "a.jsonl", [row]))
    assert problem.answer == "0.5" and problem.task == "math500"
    assert problem.metadata["unique_id"] == "test/a/1" and problem.metadata["level"] == "2"


def test_svamp_joins_body_and_question(tmp_path):
    problems = read_problems("svamp", "test", write(tmp_path / "SVAMP.json", SVAMP))
    assert [one.question for one in problems] == ["He has 5 pens. How many?", "She has 1. Half?"]
    assert [one.answer for one in problems] == ["5", "0.5"]
    assert [one.problem_id for one in problems] == ["svamp-chal-7", "svamp-chal-8"]


def test_built_sets_are_read_again_and_a_changed_file_is_built(tmp_path, monkeypatch):
    source = write(tmp_path / "a.jsonl", GSM8K)
    first = load_problem_set("gsm8k", "test", source=source, cache_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(problem_sets, "read_problems", None)
        assert load_problem_set("gsm8k", "test", source=source, cache_dir=tmp_path) == first
    write(source, GSM8K[:2])
    assert load_problem_set("gsm8k", "test", source=source, cache_dir=tmp_path) == first[:2]


def test_damaged_records_are_told(tmp_path):
    source = write(tmp_path / "a.jsonl", GSM8K)
    first = load_problem_set("gsm8k", "test", source=source, cache_dir=tmp_path)
    (records,) = tmp_path.rglob("*.array_record*")
    records.write_bytes(records.read_bytes()[:-7])
    with pytest.raises(
        DataError, match=r"the built file.*has SHA-256.*; delete.*it is then built again"
    ):
        load_problem_set("gsm8k", "test", source=source, cache_dir=tmp_path)
    shutil.rmtree(records.parent)
    assert load_problem_set("gsm8k", "test", source=source, cache_dir=tmp_path) == first


def test_rows_without_an_answer_are_left_out_and_counted(tmp_path, caplog):
    bad = [{"question": "No mark?", "answer": "5"}, {"question": None, "answer": "#### 5"}]
    bad += [{"question": " ", "answer": "#### 5"}, {"question": "Null?", "answer": None}]
    path = write(tmp_path / "a.jsonl", [GSM8K[0], *bad, GSM8K[2]])
    with caplog.at_level(logging.WARNING):
        problems = read_problems("gsm8k", "train", path)
    assert [one.problem_id for one in problems] == ["gsm8k-train-00000", "gsm8k-train-00005"]
    assert "left out 4 of 6 rows, which have no question or no answer, as row 1" in caplog.text
    empty = [{**MATH[0], "solution": r"so it is $\boxed{}$."}]
    assert len(read_problems("math", "train", write(path, [*empty, *MATH]))) == 2
    with pytest.raises(DataError, match=r"none of 4 rows has a question and an answer"):
        read_problems("gsm8k", "train", write(path, bad))


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("gsm8", "test", r"no problem set 'gsm8'. Did you mean 'gsm8k'"),
        ("svamp", "train", r"'svamp' has no split 'train'; it has test"),
        ("math", "test", r"no sure address for 'math' test; give its file.*columns problem, sol"),
    ],
)
def test_what_cannot_be_had_is_told(tmp_path, name, split, message):
    with pytest.raises(DataError, match=message):
        load_problem_set(name, split, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.jsonl", '{"question": "a"', "cannot be read as 'gsm8k'"),
        ("a.jsonl", '{"question": "a", "text": "b"}\n', "no column 'answer'; 'gsm8k' files have"),
        ("a.json", '{"question": "a"}', "is no JSON list of objects"),
        ("a.json", "[1, 2]", "is no JSON list of objects"),
        ("a.parquet", "PAR?", "cannot be read as 'gsm8k'"),
    ],
)
def test_broken_files_are_told(tmp_path, file, content, message):
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=message):
        read_problems("gsm8k", "test", tmp_path / file)


def test_a_missing_source_is_told(tmp_path):
    with pytest.raises(DataError, match=r"is no file, nor a folder with test.jsonl, .parquet or"):
        load_problem_set("gsm8k", "test", source=tmp_path / "absent", cache_dir=tmp_path)


def test_two_rows_of_one_id_are_told(tmp_path):
    path = write(tmp_path / "a.jsonl", [SVAMP[0], SVAMP[0]])
    with pytest.raises(DataError, match="'svamp' test has two problems with the id 'svamp-chal-7'"):
        load_problem_set("svamp", "test", source=path, cache_dir=tmp_path)


def test_every_address_is_pinned():
    """A commit in the address, a split that exists, one file name each."""
    for (name, split), address in ADDRESSES.items():
        assert split in SPLITS[name]
        assert any(len(part) == 40 for part in address.url.split("/"))
        assert len(address.sha256) == 64
    assert len({address.filename for address in ADDRESSES.values()}) == len(ADDRESSES)


REAL = {
    ("gsm8k", "train"): ("gsm8k/train.jsonl", 7_473),
    ("gsm8k", "test"): ("gsm8k/test.jsonl", 1_319),
    ("math", "train"): ("math/train.parquet", 7_498),
    ("math", "test"): ("math/test.parquet", 5_000),
    ("math500", "test"): ("math500/test.jsonl", 500),
    ("svamp", "test"): ("math_eval_small/svamp_test.jsonl", 1_000),
}


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "split"), REAL)
def test_real_sets(tmp_path, name, split):
    """All rows but the two of MATH's training split whose box is empty; the files are those that
    the addresses promise.
    """
    file, expected = REAL[name, split]
    path = pathlib.Path(os.environ.get("ALIGNAX_REAL_DATA", "/nowhere")) / file
    if not path.is_file():
        pytest.skip(f"ALIGNAX_REAL_DATA is not set to a folder that holds '{file}'")
    problems = load_problem_set(name, split, source=path, cache_dir=tmp_path)
    assert len(problems) == expected
    assert all(one.question.strip() and one.answer.strip() for one in problems)
    if (name, split) in ADDRESSES:
        assert problem_sets.file_sha256(path) == ADDRESSES[name, split].sha256
    if name in ("gsm8k", "svamp"):
        assert all(float(one.answer) is not None for one in problems)
    if name == "gsm8k":
        assert not any("<<" in (one.solution or "") for one in problems)
