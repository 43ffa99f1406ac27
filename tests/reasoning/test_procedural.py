"""Procedural tasks: seeded, disjoint, verified in processes that can be killed; every error."""

import importlib.util
import json
import math
import random
import sys
import time

import pytest

from core_jax.errors import ConfigError, DataError
from reasoning_jax.data import procedural
from reasoning_jax.data.load import ProblemsConfig, load_problems
from reasoning_jax.data.problems import TEST_SHARE, is_test_question
from reasoning_jax.data.procedural import (
    is_procedural,
    make_problems,
    refuse_derived,
    verifier_entry,
)
from reasoning_jax.data.verifiers import Verifiers

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None,
    reason="reasoning-gym, the extra 'tasks', is not installed",
)
TASKS = ("products", "sums", "equations", "chain_sum", "gsm_symbolic", "spell_backward")


@pytest.mark.parametrize("task", TASKS)
def test_same_seed_same_problems_whatever_others_draw(task):
    """Neither the process's own generator matters, nor how many are drawn."""
    random.seed(1)
    first = make_problems(task, "test", num_problems=13, seed=5)
    procedural._dataset.cache_clear()
    random.seed(2)
    assert make_problems(task, "test", num_problems=13, seed=5) == first
    assert make_problems(task, "test", num_problems=7, seed=5) == first[:7]
    other = make_problems(task, "test", num_problems=13, seed=6)
    assert [one.question for one in other] != [one.question for one in first]


@pytest.mark.parametrize("task", TASKS)
def test_splits_are_disjoint_whatever_the_seeds(task):
    train = [
        one for seed in (0, 1) for one in make_problems(task, "train", num_problems=101, seed=seed)
    ]
    test = [
        one for seed in (0, 1) for one in make_problems(task, "test", num_problems=101, seed=seed)
    ]
    assert not {one.question for one in train} & {one.question for one in test}
    for problems in (train[:101], test[:101]):
        assert len({one.question for one in problems}) == 101
        assert len({one.problem_id for one in problems}) == 101
    by_question = {one.question: one for one in test}
    assert all(by_question[one.question].problem_id == one.problem_id for one in test)


def test_share_of_the_test_split():
    """Of 2,000 questions a share p is test: within 4 standard errors of it."""
    share = sum(is_test_question(f"question {n}") for n in range(2000)) / 2000
    assert abs(share - TEST_SHARE) < 4 * math.sqrt(TEST_SHARE * (1 - TEST_SHARE) / 2000)


def test_presets_are_sums_and_products_of_two():
    for one in make_problems("sums", "test", num_problems=53):
        left, sign, right = json.loads(verifier_entry(one))["metadata"]["expression"].split()
        assert 10 <= int(left) <= 99 and 10 <= int(right) <= 99
        assert int(one.answer) == int(left) + (1 if sign == "+" else -1) * int(right)
    for one in make_problems("products", "train", num_problems=53):
        left, _, right = json.loads(verifier_entry(one))["metadata"]["expression"].split()
        assert int(one.answer) == int(left) * int(right) and len(left) <= 2 >= len(right)


def test_the_one_entry_draws():
    problems = load_problems(ProblemsConfig(task="products", limit=11, seed=3))
    assert problems == make_problems("products", "test", num_problems=11, seed=3)
    assert all(is_procedural(one) and one.task == "products" for one in problems)


@pytest.fixture(scope="module")
def verifiers():
    with Verifiers(num_workers=1, time_limit_s=1.5, memory_mb=2048) as opened:
        yield opened


def test_verifiers_judge_as_the_tasks_do(verifiers):
    """The gold answer is right; a product plus one, another spelling and silence are not."""
    product, *_ = make_problems("products", "test", num_problems=1)
    word, *_ = make_problems("spell_backward", "test", num_problems=1)
    gold = int(product.answer)
    cases = [
        (product, f"It is \\boxed{{{gold}}}.", True, "verifier"),
        (product, f"The answer is {gold}.0.", True, "verifier"),
        (product, f"#### {gold + 1}", False, "verifier"),
        (product, "No idea", False, "none"),
        (product, "\\boxed{" + "1" * 10_001 + "}", False, "refused"),
        (word, f"The answer is {word.answer}.", True, "verifier"),
        (word, f"The answer is {word.answer}s.", False, "verifier"),
    ]
    verdicts = verifiers.verify([(problem, response) for problem, response, *_ in cases])
    for verdict, (_, response, is_correct, method) in zip(verdicts, cases, strict=True):
        assert (verdict.is_correct, verdict.method) == (is_correct, method), response[:60]
    assert verdicts[0].answer == str(gold) and verdicts[0].extraction == "boxed"
    assert verdicts[3].answer is None


def test_hostile_answers_end(verifiers):
    """A verifier that never returns is killed; one that raises is no; nan is no complex number."""
    numbers, *_ = make_problems("countdown", "test", num_problems=1)
    primes, *_ = make_problems("prime_factorization", "test", num_problems=1)
    complex_number, *_ = make_problems("complex_arithmetic", "test", num_problems=1)
    start = time.monotonic()
    verdicts = verifiers.verify(
        [
            (numbers, r"\boxed{9**9**9}"),
            (primes, r"\boxed{((}"),
            (complex_number, r"\boxed{nan}"),
            (complex_number, f"\\boxed{{{complex_number.answer}}}"),
        ]
    )
    assert [one.method for one in verdicts] == ["timeout", "unparsed", "verifier", "verifier"]
    assert [one.is_correct for one in verdicts] == [False, False, False, True]
    assert time.monotonic() - start < 10.0


def test_a_task_made_from_a_test_set_is_refused_beside_it():
    with pytest.raises(
        ConfigError, match=r"'gsm_symbolic' was made from test questions of 'gsm8k'"
    ):
        refuse_derived("gsm_symbolic", "gsm8k")
    refuse_derived("gsm_symbolic", "math500")
    refuse_derived("products", "gsm8k")


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("product", {}, r"no task 'product'. Did you mean 'products'"),
        ("gsm8", {}, r"no task 'gsm8'. Did you mean 'gsm8k'"),
        ("sums", {"split": "valid"}, r"'sums' has no split 'valid'; it has train and test"),
        ("sums", {"num_problems": 0}, r"num_problems is 0; it must be at least 1"),
        ("graph_color", {}, r"'graph_color' cannot be judged here: .* own answer 'None'"),
        ("rearc", {}, r"'rearc' cannot be judged here"),
        ("composite", {}, r"'composite' cannot be made without options of its own"),
    ],
)
def test_what_cannot_be_drawn_is_told(task, change, message):
    with pytest.raises(ConfigError, match=message):
        make_problems(task, **{"split": "test", "num_problems": 1, **change})


def test_more_questions_than_there_are(monkeypatch):
    """One-digit products are at most 100 questions, about a fifth of them for the test."""
    options = {"min_digits": 1, "max_digits": 1}
    monkeypatch.setitem(
        procedural.TASKS, "small", procedural.Task(dataset="products", options=options)
    )
    monkeypatch.setattr(procedural, "_MOST_BLOCKS", 5)
    with pytest.raises(DataError, match=r"gave \d+ different test questions in 1280 draws, and 97"):
        make_problems("small", "test", num_problems=97)


def test_an_absent_package_is_told(monkeypatch):
    procedural._dataset.cache_clear()
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match=r"needs the package reasoning-gym.*pip install 'alignax"):
        make_problems("sums", "test", num_problems=1)
