"""Totals and counts merge exactly, where means of means do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.metrics import Ratio, compute, merge


def test_merged_ragged_parts_equal_the_whole():
    """With parts of 2 and 5 values the mean is over 7 values, not over 2 means."""
    values = np.arange(7.0) ** 2
    parts = [{"x": Ratio(total=jnp.sum(part), count=jnp.asarray(len(part)))}
             for part in (values[:2], values[2:])]  # fmt: skip
    merged = compute(merge(*parts))["x"]
    assert isinstance(merged, float)
    assert merged == pytest.approx(values.mean(), rel=1e-6)
    mean_of_means = np.mean([compute(part)["x"] for part in parts])
    assert abs(mean_of_means - values.mean()) > 1.0


def test_array_metrics_divide_by_a_scalar_or_by_their_own_counts():
    total = jnp.arange(6.0).reshape(2, 3)
    metrics = {
        "shared": Ratio(total=total, count=jnp.asarray(5.0)),
        "own": Ratio(total=total, count=jnp.asarray([[1.0, 1.0, 2.0], [3.0, 0.0, 5.0]])),
    }
    values = compute(metrics)
    np.testing.assert_allclose(values["shared"], np.arange(6.0).reshape(2, 3) / 5)
    np.testing.assert_allclose(values["own"], [[0, 1, 1], [1, np.nan, 1]])
    assert values["own"].dtype == np.float64


@pytest.mark.parametrize("total", [0.0, 3.0])
def test_nothing_counted_is_not_a_number(total):
    assert np.isnan(compute({"x": Ratio(total=total, count=0.0)})["x"])


def test_ratios_pass_through_jit_and_different_names_do_not_merge():
    ratio = jax.jit(lambda x: Ratio(total=jnp.sum(x), count=jnp.asarray(x.size)))(jnp.ones(3))
    assert compute({"x": ratio}) == {"x": 1.0}
    with pytest.raises(ValueError, match="key"):
        merge({"x": ratio}, {"y": ratio})
