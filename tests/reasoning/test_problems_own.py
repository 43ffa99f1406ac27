"""Problems of one's own: every format alike, bad rows counted by reason, ids that stay."""

import json
import logging
import pathlib

import polars as pl
import pytest

from core_jax.errors import ConfigError, DataError
from reasoning_jax.data.load import ProblemsConfig, load_problems
from reasoning_jax.data.own_problems import ProblemColumns, read_own_problems
from reasoning_jax.data.problems import check_unique

ROWS = [
    {"name": "a7", "text": "Two and three?", "gold": "5", "how": "2 + 3 = 5"},
    {"name": "a11", "text": "Its code?", "gold": "007", "how": None},
    {"name": "a13", "text": "As a price?", "gold": "1.50", "how": "Caf\xe9"},
]
COLUMNS = ProblemColumns(question="text", answer="gold", problem_id="name", solution="how")


def write(path: pathlib.Path, rows: list[dict]) -> pathlib.Path:
    if path.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    elif path.suffix in (".csv", ".tsv"):
        pl.DataFrame(rows).write_csv(path, separator="\t" if path.suffix == ".tsv" else ",")
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same(tmp_path, suffix):
    problems = read_own_problems(write(tmp_path / f"mine.{suffix}", ROWS), COLUMNS)
    seen = [(one.problem_id, one.question, one.answer, one.solution) for one in problems]
    assert seen == [tuple(row.values()) for row in ROWS]
    assert {one.task for one in problems} == {"mine"}


def test_numbers_in_json_stay_as_they_are_written(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"question": "a", "answer": 1.50}\n{"question": "b", "answer": 12345678901234567890}\n'
        '{"question": "c", "answer": "x"}\n{"question": 3, "answer": true}\n'
    )
    problems = read_own_problems(path, ProblemColumns())
    assert [one.answer for one in problems] == ["1.50", "12345678901234567890", "x", "True"]
    assert problems[3].question == "3"


def test_ids_made_here_depend_on_the_question_alone(tmp_path):
    columns = ProblemColumns(question="text", answer="gold")
    first = read_own_problems(write(tmp_path / "mine.jsonl", ROWS), columns)
    again = read_own_problems(write(tmp_path / "mine.csv", ROWS[::-1]), columns)
    assert {one.question: one.problem_id for one in first} == {
        one.question: one.problem_id for one in again
    }
    assert len({one.problem_id for one in first}) == 3
    some = [{**ROWS[0], "name": None}, *ROWS[1:]]
    mixed = read_own_problems(write(tmp_path / "mine.jsonl", some), COLUMNS)
    assert [one.problem_id for one in mixed] == [first[0].problem_id, "a11", "a13"]


def test_bad_rows_are_counted_by_reason(tmp_path, caplog):
    rows = [
        *ROWS,
        *({"name": f"q{n}", "text": text, "gold": "1"} for n, text in enumerate(("", " ", None))),
        *({"name": f"r{n}", "text": "t", "gold": gold} for n, gold in enumerate(("", None))),
        {"name": "a7", "text": "Other?", "gold": "3"},
        {"name": "a17", "text": "Two and three?", "gold": "5"},
        {"name": "l", "text": "List?", "gold": ["1", "2"]},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"name": "cut", "text"\n["a list"]\n\n')
    with caplog.at_level(logging.WARNING):
        problems = read_own_problems(path, COLUMNS)
    assert [one.problem_id for one in problems] == ["a7", "a11", "a13", "a17"]
    assert problems[0].answer == "5"
    for part in ("of 13 rows", "3 without a question", "3 without an answer"):
        assert part in caplog.text
    assert "2 that are no JSON object" in caplog.text and "1 of an id that came" in caplog.text
    assert "1 questions stand under more than one id" in caplog.text


def test_repeated_questions_without_an_id_are_left_out(tmp_path, caplog):
    columns = ProblemColumns(question="text", answer="gold")
    with caplog.at_level(logging.WARNING):
        problems = read_own_problems(write(tmp_path / "a.jsonl", ROWS + ROWS[:2]), columns)
    assert len(problems) == 3 and "2 that are repeated" in caplog.text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.xls", "x", r"ends in '.xls'; expected .jsonl, .ndjson, .csv"),
        ("a.jsonl", "", r"has no rows"),
        ("a.jsonl", '{"question": "", "answer": "1"}', r"no row with .*\(1 without a question\)"),
        ("a.jsonl", '{"questions": "a", "answer": "1"}', r"no column 'question'.*mean 'questions'"),
        ("a.jsonl", b"\xff\xfe", r"cannot be read"),
        ("a.parquet", "PAR?", r"cannot be read"),
        ("a.csv", "", r"cannot be read"),
    ],
)
def test_broken_files_are_told(tmp_path, file, content, message):
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / file).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_own_problems(tmp_path / file, ProblemColumns())


def test_a_missing_file_and_missing_columns_are_told(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read .*check that it is there"):
        read_own_problems(tmp_path / "absent.jsonl", ProblemColumns())
    with pytest.raises(ConfigError, match="needs a question and an answer column"):
        ProblemColumns(answer="")


def test_the_one_entry_reads_files_and_limits(tmp_path):
    path = write(tmp_path / "mine.csv", ROWS)
    config = ProblemsConfig(task="own", path=str(path), columns=COLUMNS, limit=2)
    assert [one.problem_id for one in load_problems(config)] == ["a7", "a11"]
    path = write(
        tmp_path / "a.jsonl", [{"question": f"{n}?", "answer": f"#### {n}"} for n in range(5)]
    )
    config = ProblemsConfig(task="gsm8k", split="train", path=str(path), limit=3)
    assert [one.answer for one in load_problems(config)] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit": -1}, r"limit is -1; give a number, or 0 for all"),
        ({"task": "own"}, r"task is own; name its file by problems.path"),
        ({"split": "tests"}, r"split is 'tests'. Did you mean 'test'"),
    ],
)
def test_wrong_configs_are_told(change, message):
    with pytest.raises(ConfigError, match=message):
        ProblemsConfig(**change)


def test_check_unique_tells_what_is_wrong(tmp_path):
    problems = read_own_problems(write(tmp_path / "mine.csv", ROWS), COLUMNS)
    assert check_unique(problems, "it") == problems
    with pytest.raises(DataError, match="it gave no problem"):
        check_unique([], "it")
    with pytest.raises(DataError, match="it has two problems with the id 'a7'"):
        check_unique([*problems, problems[0]], "it")
