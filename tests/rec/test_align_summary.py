"""Policies side by side: pooled over seeds, paired gains, seeds told apart."""

import numpy as np
import pytest

from core_jax.errors import DataError
from rec_jax.align.summary import summarise


def policy(shift, sizes=(11, 17), seed=0):
    """Values whose gain over shift 0 is the same for every user."""
    rng = np.random.default_rng(seed)
    return [{"reward": rng.normal(size=size) + shift} for size in sizes]


def summary(policies, **options):
    found = summarise(
        policies, baseline="base", **{"num_samples": 200, "confidence": 0.9, **options}
    )
    return {one.name: one for one in found}


def test_means_are_over_the_users_of_all_seeds():
    found = summary({"base": policy(0.0)})["base"]
    values = np.concatenate([measures["reward"] for measures in policy(0.0)])
    np.testing.assert_allclose(found.measures["reward"].mean, values.mean())
    assert found.measures["reward"].low < values.mean() < found.measures["reward"].high
    assert found.gains == {}


def test_a_gain_that_all_users_share_has_no_width():
    """Pairing takes the users' own differences out: a constant shift is known exactly."""
    found = summary({"base": policy(0.0), "better": policy(0.25)})["better"].gains["reward"]
    np.testing.assert_allclose([found.mean, found.low, found.high], [0.25] * 3)


def test_seeds_are_told_apart():
    found = summary({"base": policy(0.0)})["base"]
    np.testing.assert_allclose(
        found.seed_means["reward"], [measures["reward"].mean() for measures in policy(0.0)]
    )


def test_a_measure_that_nobody_has_is_left_out():
    seeds = [{**measures, "list": np.full(11, np.nan)} for measures in policy(0.0, (11, 11))]
    found = summary({"base": seeds})["base"]
    assert "list" not in found.measures and "list" not in found.seed_means


def test_policies_of_other_users_are_refused():
    with pytest.raises(DataError, match="different users"):
        summary({"base": policy(0.0), "other": policy(0.0, (11, 13))})
