"""From the probabilities of all heads to the one number by which sessions are compared.

The paper (arXiv:2502.18965) does not say how. Here every head is standardised by its mean and
standard deviation over the training sessions, so that a head with rare events counts as much as
one with frequent ones, and the sum is weighted.

Dimension key: S sessions, T heads.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from core_jax.arrays import Float, Shaped
from core_jax.errors import CheckpointError, ConfigError, DataError, nearest_name
from rec_jax.reward.config import P_SCORE, FusionConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fusion:
    """Weights and standardisation, head by head, in the order of the model's outputs."""

    names: tuple[str, ...]
    """Heads."""
    weights: tuple[float, ...]
    """Weight of each standardised head."""
    means: tuple[float, ...]
    """Mean probability over the training sessions."""
    stds: tuple[float, ...]
    """Its standard deviation."""


def make_fusion(
    config: FusionConfig, names: Sequence[str], probabilities: Float[np.ndarray, "S T"]
) -> Fusion:
    """Measures means and deviations and reads the weights.

    Args:
      config: the weights by name.
      names: the model's heads.
      probabilities: of the training sessions.

    Returns:
      The fusion.

    Raises:
      ConfigError: a weight is given to a head that the model does not have.
      DataError: a head with a weight says the same of every session.
    """
    wide_ST = probabilities.astype(np.float64)
    fusion = Fusion(
        names=tuple(names),
        weights=_weights(config, names),
        means=tuple(wide_ST.mean(axis=0).tolist()),
        stds=tuple(wide_ST.std(axis=0).tolist()),
    )
    for name, weight, mean, std in zip(
        fusion.names, fusion.weights, fusion.means, fusion.stds, strict=True
    ):
        if weight and std <= 1e-7:
            raise DataError(
                f"head '{name}' gives all {len(wide_ST)} training sessions the probability "
                f"{mean:g}, so it cannot tell sessions apart; train longer, give it no weight, or "
                "drop the target"
            )
    return fusion


def reweighted(fusion: Fusion, config: FusionConfig) -> Fusion:
    """The same standardisation with other weights.

    Raises:
      ConfigError: a weight is given to a head that the model does not have.
    """
    return dataclasses.replace(fusion, weights=_weights(config, fusion.names))


def fuse(
    fusion: Fusion, probabilities: Shaped[np.ndarray, "*lead T"]
) -> Float[np.ndarray, "*lead"]:
    r"""Weighted sum of standardised heads, :math:`\sum_h w_h (p_h - \mu_h) / \sigma_h`.

    Args:
      fusion: weights and standardisation.
      probabilities: of all heads.

    Returns:
      Float64: higher is better; 0 is the average training session.

    >>> plain = Fusion(names=("a", "b"), weights=(0.5, 2.0), means=(0.5, 0.0), stds=(0.25, 1.0))
    >>> fuse(plain, np.array([[0.75, 0.5], [0.5, 0.0]])).tolist()
    [1.5, 0.0]
    """
    total = np.zeros(probabilities.shape[:-1], np.float64)
    for place, weight in enumerate(fusion.weights):
        if weight:
            head = probabilities[..., place].astype(np.float64)
            total += weight * (head - fusion.means[place]) / fusion.stds[place]
    return total


def describe(fusion: Fusion) -> str:
    """A table of heads, weights, means and deviations; it stands with every reward printed."""
    width = max(len("head"), *(len(name) for name in fusion.names))
    lines = [f"{'head':<{width}}  {'weight':>8}  {'mean':>8}  {'std':>8}"]
    rows = zip(fusion.names, fusion.weights, fusion.means, fusion.stds, strict=True)
    lines += [
        f"{name:<{width}}  {weight:>8.4f}  {mean:>8.4f}  {std:>8.4f}"
        for name, weight, mean, std in rows
    ]
    return "\n".join([*lines, "reward = sum of weight * (probability - mean) / std"])


def save_fusion(fusion: Fusion, path: str | os.PathLike[str]) -> None:
    """Writes a fusion as JSON."""
    text = json.dumps(dataclasses.asdict(fusion), indent=2)
    pathlib.Path(path).write_text(text + "\n", encoding="utf-8")


def load_fusion(path: str | os.PathLike[str]) -> Fusion:
    """Reads what `save_fusion` wrote.

    Raises:
      CheckpointError: the file is absent or damaged.
    """
    try:
        fields = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        return Fusion(**{name: tuple(values) for name, values in fields.items()})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"'{path}' does not hold a fusion ({error}); train the reward model again"
        ) from error


def _weights(config: FusionConfig, names: Sequence[str]) -> tuple[float, ...]:
    """A weight per head."""
    if not config.weights:
        targets = [name for name in names if name != P_SCORE]
        return tuple(0.0 if name == P_SCORE else 1.0 / len(targets) for name in names)
    given = dict(config.pairs)
    for name in given:
        if name not in names:
            raise ConfigError(
                f"fusion.weights names '{name}', no head of this reward model, which has "
                f"{', '.join(names)}. {nearest_name(name, names)}"
            )
    return tuple(given.get(name, 0.0) for name in names)
