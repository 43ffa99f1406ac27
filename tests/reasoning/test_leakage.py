"""Leakage by shingles: equal to counting sets of words, whatever the blocks; every error."""

import itertools
import os
import pathlib

import numpy as np
import pytest

from core_jax.errors import ConfigError, DataError
from reasoning_jax.data import leakage
from reasoning_jax.data.builders.problem_sets import read_problems
from reasoning_jax.data.leakage import (
    LeakageConfig,
    OverlapMeasure,
    find_leakage,
    leakage_text,
    normalised_words,
)
from reasoning_jax.data.problems import Problem


def problems(*questions: str, prefix: str = "p") -> list[Problem]:
    return [
        Problem(problem_id=f"{prefix}{index}", task="own", question=question, answer="1")
        for index, question in enumerate(questions)
    ]


def counted(train: list[Problem], test: list[Problem], config: LeakageConfig) -> dict:
    """The definition: sets of tuples of words, every pair compared."""

    def shingles(problem: Problem) -> set[tuple[str, ...]]:
        words, size = normalised_words(problem.question), config.shingle_words
        return {tuple(words[i : i + size]) for i in range(max(len(words) - size + 1, 1))}

    found = {}
    for one, other in itertools.product(test, train):
        left, right = shingles(one), shingles(other)
        whole = left | right if config.measure is OverlapMeasure.JACCARD else left
        overlap = len(left & right) / len(whole)
        if left & right and overlap >= config.threshold:
            found[one.problem_id, other.problem_id] = overlap
    return found


@pytest.mark.parametrize("measure", OverlapMeasure)
@pytest.mark.parametrize("at_once", [1, 7, 1 << 21])
def test_equals_the_definition(measure, at_once, monkeypatch):
    """53 and 31 questions of 1 to 17 words of a vocabulary of five, so that much is shared."""
    monkeypatch.setattr(leakage, "_PAIRS_AT_ONCE", at_once)
    generator = np.random.default_rng(3)

    def drawn(number: int, prefix: str) -> list[Problem]:
        lengths = generator.integers(1, 18, number)
        texts = [" ".join(generator.choice(list("abcde"), length)) for length in lengths]
        return problems(*texts, prefix=prefix)

    train, test = drawn(53, "r"), drawn(31, "t")
    for size, threshold in ((2, 0.5), (3, 0.2), (5, 1.0)):
        config = LeakageConfig(shingle_words=size, measure=measure, threshold=threshold)
        report = find_leakage(train, test, config)
        found = {(pair.test.problem_id, pair.train.problem_id): pair for pair in report.pairs}
        expected = counted(train, test, config)
        assert expected and {key: pair.overlap for key, pair in found.items()} == expected
        assert len(found) == len(report.pairs)
        assert report.num_leaked == len({one for one, _ in expected})
        assert report.share == report.num_leaked / 31
        for pair in report.pairs:
            assert pair.is_same_text == (pair.test.question == pair.train.question)
        places = [int(pair.test.problem_id[1:]) for pair in report.pairs]
        assert places == sorted(places)


def test_the_two_measures_by_hand():
    """Shingles of 2: test ab bc (2), train ab bc cd de (4): containment 1, Jaccard 2 / 4."""
    train, test = problems("a b c d e"), problems("A, b: C!")
    for measure, expected in ((OverlapMeasure.CONTAINMENT, 1.0), (OverlapMeasure.JACCARD, 0.5)):
        config = LeakageConfig(shingle_words=2, measure=measure)
        (pair,) = find_leakage(train, test, config).pairs
        assert pair.overlap == expected
        assert not pair.is_same_text


def test_order_of_words_counts_and_short_questions_are_whole():
    config = LeakageConfig(shingle_words=3)
    assert not find_leakage(problems("c b a", "b a"), problems("a b c", "a b"), config).pairs
    (pair,) = find_leakage(problems("a b c", "A b."), problems("a b"), config).pairs
    assert pair.is_same_text and pair.overlap == 1.0 and pair.train.problem_id == "p1"


def test_numbers_and_letters_are_normalised():
    assert normalised_words("It costs $1,234,567.80!") == ["it", "costs", "1234567", "80"]
    assert normalised_words("1,23 and 1,2345") == ["1", "23", "and", "1", "2345"]
    assert normalised_words("\uff21\u00c9_b") == ["a\u00e9", "b"]


def test_a_question_of_symbols_is_compared_by_its_characters():
    config = LeakageConfig()
    assert find_leakage(problems("+ + ="), problems("++="), config).num_leaked == 1
    assert find_leakage(problems("+ - ="), problems("++="), config).num_leaked == 0


def test_report_as_text():
    train = problems("one two three four", "one two five six")
    report = find_leakage(train, train[:1] + problems("x", prefix="q"), LeakageConfig())
    text = leakage_text(report, num_examples=1)
    assert "shingles of 8 words, containment of at least 0.5" in text
    assert [line.split()[-1] for line in text.splitlines()[1:3]] == ["2", "2"]
    assert "test questions leaked         1  (50.00%)" in text
    assert text.endswith("train p0: one two three four")
    long = problems("word " * 100)
    assert all(len(line) < 90 for line in leakage_text(find_leakage(long, long, LeakageConfig())))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shingle_words": 0}, r"shingle_words is 0; give"),
        ({"threshold": 0.0}, r"threshold is 0.0; give a share"),
        ({"threshold": 1.5}, r"threshold is 1.5"),
    ],
)
def test_wrong_configs_are_told(change, message):
    with pytest.raises(ConfigError, match=message):
        LeakageConfig(**change)


def test_wrong_problems_are_told():
    good = problems("a b")
    with pytest.raises(DataError, match="no train problem"):
        find_leakage([], good, LeakageConfig())
    with pytest.raises(DataError, match="no test problem"):
        find_leakage(good, [], LeakageConfig())
    with pytest.raises(DataError, match="share an id"):
        find_leakage(good, good + good, LeakageConfig())
    with pytest.raises(DataError, match="question of problem 'p0' is empty"):
        find_leakage(problems(" "), good, LeakageConfig())


@pytest.mark.real_data
def test_real_sets():
    """Nothing of GSM8K's test stands in its training split; a little of MATH's does."""
    root = pathlib.Path(os.environ.get("ALIGNAX_REAL_DATA", "/nowhere"))
    if not (root / "math500").is_dir():
        pytest.skip("ALIGNAX_REAL_DATA is not set to a folder that holds 'math500'")
    config = LeakageConfig()
    gsm8k = [read_problems("gsm8k", s, root / "gsm8k" / f"{s}.jsonl") for s in ("train", "test")]
    report = find_leakage(*gsm8k, config)
    assert (report.num_same_text, report.num_leaked, len(report.pairs)) == (0, 1, 2)
    math = [read_problems("math", s, root / "math" / f"{s}.parquet") for s in ("train", "test")]
    report = find_leakage(*math, config)
    assert (report.num_same_text, report.num_leaked, len(report.pairs)) == (10, 305, 598)
    math500 = read_problems("math500", "test", root / "math500" / "test.jsonl")
    report = find_leakage(math[0], math500, config)
    assert (report.num_same_text, report.num_leaked) == (1, 29)
    assert find_leakage(math[1], math500, config).num_same_text == 500
