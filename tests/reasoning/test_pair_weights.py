"""Weights of pairs' tokens: every source by its formula, controls by seed and pair, errors."""

import dataclasses
import math

import numpy as np
import pytest

from core_jax.errors import ConfigError, DataError
from core_jax.token_weights import WeightConfig, WeightControl, WeightFunction
from reasoning_jax.align.methods import (
    MethodConfig,
    Row,
    WeightedSides,
    WeightSource,
    row_method,
)
from reasoning_jax.align.pair_file import Pair
from reasoning_jax.align.pair_weights import WeightInputs, mean_weight, pair_weights
from reasoning_jax.align.tuned import TUNED, Tuned, Tuning, tuned
from reasoning_jax.data.token_values import TokenValues
from tests.reasoning.alignment_cases import solution

EOS, BREAK = 2, 10
LENGTHS = ((5, 7), (3, 2), (11, 1))
"""Response tokens of both sides of every pair; each response but the last one ends in EOS."""
PROMPT = 3
CONTRAST = MethodConfig(source=WeightSource.CONTRAST)


def response(problem, sample, length, is_correct):
    rng = np.random.default_rng(100 * length + sample)
    ids = rng.integers(11, 97, PROMPT + length).tolist()
    if length > 1:
        ids[-1] = EOS
    return solution(
        problem, sample, is_correct=is_correct, token_ids=tuple(ids), response_start=PROMPT
    )


PAIRS = [
    Pair(
        problem_id=f"p{number}",
        index=0,
        chosen=response(f"p{number}", 0, chosen, True),
        rejected=response(f"p{number}", 1, rejected, False),
    )
    for number, (chosen, rejected) in enumerate(LENGTHS)
]
RESPONSES = [one for pair in PAIRS for one in (pair.chosen, pair.rejected)]


def numbers(seed, low, high):
    """One draw per response token, by key."""
    rng = np.random.default_rng(seed)
    return {
        one.key: rng.uniform(low, high, len(one.token_ids) - PROMPT).tolist() for one in RESPONSES
    }


POSITIVE, NEGATIVE = numbers(0, -4, 0), numbers(1, -4, 0)
GUIDE, REFERENCE = numbers(2, -5, 0), numbers(3, -5, 0)
SCORES = {beta: numbers(4 + index, 0, 1) for index, beta in enumerate((1.0, 0.5))}


def values(**named):
    return {
        one.key: TokenValues(
            problem_id=one.problem_id,
            sample=one.sample,
            model="m",
            token_ids=one.token_ids,
            response_start=PROMPT,
            values={
                name.replace("_at_", "@"): tuple(found[one.key]) for name, found in named.items()
            },
        )
        for one in RESPONSES
    }


def logs(found):
    return {key: [math.log(number) for number in row] for key, row in found.items()}


FILES = {
    "scores": values(
        **{"log_score@1.0": logs(SCORES[1.0]), "log_score@0.5": logs(SCORES[0.5])},
        positive=POSITIVE,
        negative=NEGATIVE,
    ),
    "reference": values(log_prob=REFERENCE),
    "guide": values(log_prob=GUIDE),
}


def weigh(method, pairs=PAIRS, seed=0, **inputs):
    return pair_weights(
        pairs,
        method,
        WeightInputs(**(FILES | {"eos_ids": frozenset([EOS])} | inputs)),
        seed=seed,
    )


def check(found, formula):
    """Compares with formula(side, key, place) for every token."""
    for pair, weights in zip(PAIRS, found, strict=True):
        for side, one in enumerate((pair.chosen, pair.rejected)):
            expected = [
                formula(side, one.key, place) for place in range(len(one.token_ids) - PROMPT)
            ]
            assert weights[side].dtype == np.float32
            np.testing.assert_allclose(weights[side], expected, rtol=2e-6, atol=1e-7)


def test_uniform_weights_are_one():
    check(weigh(MethodConfig()), lambda side, key, place: 1.0)


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_contrast_weighs_the_rejected_side_by_one_minus_the_score(beta):
    method = dataclasses.replace(CONTRAST, contrast_beta=beta)
    check(
        weigh(method),
        lambda side, key, place: 1 - SCORES[beta][key][place] if side else 1.0,
    )


def test_both_sides_weigh_the_chosen_one_by_the_score():
    """1 - s on the rejected side, s on the chosen one."""
    method = dataclasses.replace(CONTRAST, sides=WeightedSides.BOTH)
    check(
        weigh(method),
        lambda side, key, place: abs(side - SCORES[1.0][key][place]),
    )


def test_an_end_of_sequence_has_a_weight_of_its_own():
    """It has 0.25 on weighted sides, and takes no part in the mean of the others."""
    constant = WeightConfig(control=WeightControl.CONSTANT)
    method = dataclasses.replace(CONTRAST, eos_weight=0.25, weights=constant)
    lengths = {one.key: len(one.token_ids) - PROMPT for one in RESPONSES}

    def formula(side, key, place):
        if not side:
            return 1.0
        others = max(lengths[key] - 1, 1)  # the response of one token has no end of sequence
        if lengths[key] > 1 and place == others:
            return 0.25
        return 1 - np.mean(SCORES[1.0][key][:others])

    check(weigh(method), formula)


def test_without_a_weight_of_its_own_it_is_a_token_like_others():
    check(
        weigh(dataclasses.replace(CONTRAST, eos_weight=None), eos_ids=frozenset()),
        lambda side, key, place: 1 - SCORES[1.0][key][place] if side else 1.0,
    )


@pytest.mark.parametrize("control", [WeightControl.SHUFFLED, WeightControl.RANDOM])
def test_a_draw_depends_on_seed_and_pair_alone(control):
    method = dataclasses.replace(CONTRAST, weights=WeightConfig(control=control))
    found = weigh(method, seed=5)
    np.testing.assert_array_equal(weigh(method, seed=5)[0][1], found[0][1])
    # By itself it lies in a narrower array.
    np.testing.assert_array_equal(weigh(method, PAIRS[1:2], seed=5)[0][1], found[1][1])
    alone = weigh(method, [PAIRS[1], PAIRS[0]], seed=5)
    np.testing.assert_array_equal(alone[1][1], found[0][1])
    assert not np.array_equal(weigh(method, seed=6)[0][1], found[0][1])


def test_shuffled_weights_are_the_same_ones_and_random_ones_have_their_mean():
    plain = weigh(CONTRAST)
    for control in (WeightControl.SHUFFLED, WeightControl.RANDOM):
        found = weigh(dataclasses.replace(CONTRAST, weights=WeightConfig(control=control)))
        for one, other in zip(found, plain, strict=True):
            np.testing.assert_allclose(one[1].mean(), other[1].mean(), rtol=1e-5)
            if control is WeightControl.SHUFFLED:
                np.testing.assert_array_equal(np.sort(one[1]), np.sort(other[1]))
        assert not np.allclose(found[0][1], plain[0][1])
        assert mean_weight(found, 1) == pytest.approx(mean_weight(plain, 1), rel=1e-5)


def test_another_function_of_the_score():
    weights = WeightConfig(function=WeightFunction.THRESHOLD, threshold=0.375)
    check(
        weigh(dataclasses.replace(CONTRAST, weights=weights)),
        lambda side, key, place: float(SCORES[1.0][key][place] < 0.375) if side else 1.0,
    )


def test_tis_weighs_by_what_the_models_say():
    """k exp(sign mu clip(log p+ - log p-, L, U)), sign 1 for chosen and -1 for rejected."""
    method = MethodConfig(
        source=WeightSource.TIS, tis_scale=1.5, tis_mu=0.75, tis_low=-0.25, tis_high=1.25
    )

    def formula(side, key, place):
        ratio = np.clip(POSITIVE[key][place] - NEGATIVE[key][place], -0.25, 1.25)
        return 1.5 * math.exp((-1 if side else 1) * 0.75 * ratio)

    check(weigh(method), formula)


def test_tgdpo_weighs_by_how_far_a_first_run_moved():
    """1 + alpha beta rho for chosen and 1 - alpha beta rho for rejected tokens."""
    method = MethodConfig(source=WeightSource.TGDPO, beta=0.5, alpha=0.75)

    def formula(side, key, place):
        moved = 0.5 * 0.75 * (GUIDE[key][place] - REFERENCE[key][place])
        return 1 - moved if side else 1 + moved

    check(weigh(method), formula)


def test_the_step_mask_ends_with_its_line():
    """One in the line in which the responses part, from its start; nothing of the lines around."""
    shared, chosen, rejected = [31, BREAK, 37], [41, BREAK, 43, EOS], [47, 53, BREAK, EOS]
    prompt = (5, 7, 11)
    pair = Pair(
        problem_id="p0",
        index=0,
        chosen=solution(
            "p0", 0, token_ids=(*prompt, *shared, *chosen), response_start=3, is_correct=True
        ),
        rejected=solution(
            "p0", 1, token_ids=(*prompt, *shared, *rejected), response_start=3, is_correct=False
        ),
    )
    method = MethodConfig(source=WeightSource.STEP)
    found = weigh(method, [pair], is_break=lambda token: token == BREAK)
    assert found[0][0].tolist() == [0, 0, 1, 1, 1, 0, 0]
    assert found[0][1].tolist() == [0, 0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("source", "absent", "name"),
    [
        (WeightSource.CONTRAST, "scores", r"log_score@1\.0"),
        (WeightSource.TIS, "scores", "positive"),
        (WeightSource.TGDPO, "guide", "log_prob"),
        (WeightSource.TGDPO, "reference", "log_prob"),
    ],
)
def test_a_source_whose_file_is_not_named(source, absent, name):
    text = rf"weights are made of '{name}', but no file of {absent} is named; .* and set {absent}"
    with pytest.raises(DataError, match=text):
        weigh(MethodConfig(source=source), **{absent: None})


def test_scores_of_another_strength_are_missed_by_name():
    method = dataclasses.replace(CONTRAST, contrast_beta=2.0)
    with pytest.raises(DataError, match=r"have no 'log_score@2\.0'"):
        weigh(method)


def test_scores_of_other_tokens_are_refused():
    scores = dict(FILES["scores"])
    key = PAIRS[0].rejected.key
    ids = list(scores[key].token_ids)
    ids[4] += 1
    scores[key] = dataclasses.replace(scores[key], token_ids=tuple(ids))
    text = r"values of \('p0', 1\) belong to other tokens: token 4 is \d+ there and \d+ here"
    with pytest.raises(DataError, match=text):
        weigh(CONTRAST, scores=scores)
    del scores[key]
    with pytest.raises(DataError, match=r"no values of \('p0', 1\) among those of 5 responses"):
        weigh(CONTRAST, scores=scores)


def test_every_row_is_tuned_but_the_baseline():
    for tuning in Tuning:
        for row in Row:
            if row is not Row.BASELINE:
                rate, method = tuned(tuning, row)
                assert 0 < rate < 1 and isinstance(method, MethodConfig)
        with pytest.raises(ConfigError, match="row baseline has no numbers in tuning"):
            tuned(tuning, Row.BASELINE)


def test_a_row_that_a_tuning_does_not_have_is_named(monkeypatch):
    monkeypatch.setitem(TUNED, Tuning.DEMO, {Row.DPO: Tuned(learning_rate=3e-4, beta=0.5)})
    assert tuned(Tuning.DEMO, Row.DPO)[1].beta == 0.5
    text = "row rpo has no numbers in tuning demo; it has dpo"
    with pytest.raises(ConfigError, match=text):
        tuned(Tuning.DEMO, Row.RPO)


def test_the_paper_doubles_the_rate_of_its_own_rows():
    rates = {row: tuned(Tuning.PAPER, row)[0] for row in (Row.DPO, Row.CDPO, Row.CDPO_SHUFFLED)}
    assert rates == {Row.DPO: 2e-5, Row.CDPO: 4e-5, Row.CDPO_SHUFFLED: 4e-5}
    own = row_method(Row.CDPO)
    assert own is not None and tuned(Tuning.PAPER, Row.CDPO)[1].beta == own.beta == 1.0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"beta": 0.0}, r"method\.beta is 0; it must be positive and finite"),
        ({"alpha": -0.5}, r"method\.alpha is -0\.5; it must be 0 or more"),
        ({"eos_weight": math.inf}, r"method\.eos_weight is inf; it must be 0 or more"),
        ({"tis_low": 2.0}, r"method\.tis_low is 2 and tis_high 1\.5; swap them"),
    ],
)
def test_numbers_that_a_method_cannot_have(changes, text):
    with pytest.raises(ConfigError, match=text):
        MethodConfig(**changes)
