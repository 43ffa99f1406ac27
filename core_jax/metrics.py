"""Metrics as totals and counts, so that microbatches, steps and hosts merge exactly.

A mean of means weights ragged parts wrongly; a sum of totals over a sum of counts does not.

Dimension key: none (shapes are the metric's).
"""

import dataclasses
import operator

import jax
import numpy as np

from core_jax.arrays import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Ratio:
    """A mean that is not divided yet: `total / count`."""

    total: PyTree
    """Sum of the values: any shape, float32 on the device."""
    count: PyTree
    """What the sum is divided by: a scalar or the shape of `total`."""


Metrics = dict[str, Ratio]
"""Metrics by name."""


def merge(first: Metrics, second: Metrics) -> Metrics:
    """Adds totals and counts of two sets of metrics with the same names.

    >>> half, all_of_three = Ratio(total=1.0, count=2.0), Ratio(total=3.0, count=3.0)
    >>> compute(merge({"hit": half}, {"hit": all_of_three}))
    {'hit': 0.8}
    """
    return jax.tree.map(operator.add, first, second)


def compute(metrics: Metrics) -> dict[str, float | np.ndarray]:
    """Fetches metrics from the device and divides them, in float64.

    Args:
      metrics: totals and counts, on the device or on the host.

    Returns:
      A float for every scalar metric and a float64 array for every other; NaN where nothing was
      counted.
    """
    values: dict[str, float | np.ndarray] = {}
    for name, ratio in jax.device_get(metrics).items():
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.divide(ratio.total, ratio.count, dtype=np.float64)
        value = np.where(np.equal(ratio.count, 0), np.nan, value)
        values[name] = float(value) if value.ndim == 0 else value
    return values
