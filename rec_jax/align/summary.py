"""Policies side by side: means, intervals and paired differences over users and seeds.

Dimension key: U users of all seeds, Q measures.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from core_jax.errors import DataError
from rec_jax.ranking_metrics import Interval, bootstrap_intervals

Measures = Mapping[str, np.ndarray]
"""A policy's measures: Float64 [U], one value per user of one seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicySummary:
    """One policy's results."""

    name: str
    measures: dict[str, Interval]
    """Mean over the users of all seeds, with its interval."""
    gains: dict[str, Interval]
    """Paired difference to the baseline policy on the same users; empty for the baseline."""
    seed_means: dict[str, tuple[float, ...]]
    """Mean over users, seed by seed."""


def summarise(
    policies: Mapping[str, Sequence[Measures]],
    *,
    baseline: str,
    num_samples: int,
    confidence: float,
    seed: int = 0,
) -> list[PolicySummary]:
    """Pools seeds and bootstraps users.

    Intervals say how far the results depend on which users were asked (of all seeds together);
    `seed_means` says how far they depend on world, training and order.

    Args:
      policies: by name, the measures of every seed; a measure that a seed lacks is NaN there.
      baseline: the policy that gains are measured from.
      num_samples: resamples.
      confidence: probability mass of the intervals.
      seed: of the resamples, which all policies share.

    Returns:
      One summary per policy, in the order given.

    Raises:
      DataError: policies of different users or seeds.
    """
    pooled = {name: _pooled(seeds) for name, seeds in policies.items()}
    sizes = {name: [len(next(iter(m.values()))) for m in seeds] for name, seeds in policies.items()}
    if any(size != sizes[baseline] for size in sizes.values()):
        raise DataError(f"policies are judged on different users or seeds: users per seed {sizes}")
    columns: dict[tuple[str, str, bool], np.ndarray] = {}
    for name, measures in pooled.items():
        for measure, value_U in measures.items():
            columns[name, measure, False] = value_U
            if name != baseline and measure in pooled[baseline]:
                columns[name, measure, True] = value_U - pooled[baseline][measure]
    columns = {key: value_U for key, value_U in columns.items() if not np.isnan(value_U).all()}
    drawn = bootstrap_intervals(
        np.stack(list(columns.values()), axis=1),
        key=jax.random.key(seed),
        num_samples=num_samples,
        confidence=confidence,
    )
    found = dict(zip(columns, drawn, strict=True))
    return [
        PolicySummary(
            name=name,
            measures={m: i for (who, m, gain), i in found.items() if who == name and not gain},
            gains={m: i for (who, m, gain), i in found.items() if who == name and gain},
            seed_means={
                measure: tuple(float(np.nanmean(seed_measures[measure])) for seed_measures in seeds)
                for measure in pooled[name]
                if not any(np.isnan(seed_measures[measure]).all() for seed_measures in seeds)
            },
        )
        for name, seeds in policies.items()
    ]


def _pooled(seeds: Sequence[Measures]) -> dict[str, np.ndarray]:
    """Every measure over the users of all seeds."""
    names = [name for name in seeds[0] if all(name in measures for measures in seeds)]
    return {name: np.concatenate([measures[name] for measures in seeds]) for name in names}
