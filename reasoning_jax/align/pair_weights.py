"""Weights of the response tokens of pairs, made once before training.

Dimension key: N pairs, U tokens of a response. Sides: 0 chosen, 1 rejected.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from core_jax.arrays import Array
from core_jax.errors import DataError
from core_jax.preference_tokens import tgdpo_weights, tis_weights
from core_jax.token_weights import token_weights
from reasoning_jax.align.contrast_model import LOG_PROB, NEGATIVE, POSITIVE, score_name
from reasoning_jax.align.methods import MethodConfig, WeightedSides, WeightSource
from reasoning_jax.align.pair_file import Pair
from reasoning_jax.data.token_values import Key, TokenValues, matching
from reasoning_jax.data.trajectories import Trajectory

Values = Mapping[Key, TokenValues]
"""Numbers per token, from a file."""

SideWeights = tuple[np.ndarray, np.ndarray]
"""Weights of the tokens of the chosen and of the rejected response, float32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightInputs:
    """What weights are made of; a source reads what it names."""

    scores: Values | None = None
    """contrast and tis: contrastive scores, and log-probabilities under both models."""
    reference: Values | None = None
    """tgdpo: log-probabilities under the reference."""
    guide: Values | None = None
    """tgdpo: log-probabilities under the first run's policy."""
    eos_ids: frozenset[int] = frozenset()
    """Tokens that end a response."""
    is_break: Callable[[int], bool] = lambda _: False
    """step: whether a token ends a line."""


def pair_weights(
    pairs: Sequence[Pair], method: MethodConfig, inputs: WeightInputs, *, seed: int
) -> list[SideWeights]:
    """Makes the weights of every pair.

    Args:
      pairs: the pairs.
      method: source, function, sides and control.
      inputs: what the source reads.
      seed: of the controls that draw; a draw depends on it and on the pair alone.

    Returns:
      Weights per pair. With an `eos_weight`, an end of sequence has it on every weighted side and
      takes no part in means, ranks or shuffling.

    Raises:
      DataError: the source reads numbers that are not there, or that are of other tokens.
    """
    sides = [[pair.chosen for pair in pairs], [pair.rejected for pair in pairs]]
    if method.source is WeightSource.UNIFORM:
        made = [[np.ones(_length(one), np.float32) for one in side] for side in sides]
    elif method.source is WeightSource.STEP:
        made = _step(sides, inputs.is_break)
    elif method.source is WeightSource.CONTRAST:
        made = _contrast(pairs, sides, method, inputs, seed)
    elif method.source is WeightSource.TIS:
        made = _tis(sides, method, inputs)
    else:
        made = _tgdpo(sides, method, inputs)
    return [(chosen, rejected) for chosen, rejected in zip(*made, strict=True)]


def first_step(
    chosen: Sequence[int], rejected: Sequence[int], is_break: Callable[[int], bool]
) -> tuple[slice, slice]:
    r"""The first step in which two responses differ, on each side.

    A step is a line. It begins after the last line break that both have in common, and ends with
    the next one.

    Args:
      chosen: tokens of one response.
      rejected: tokens of the other.
      is_break: whether a token ends a line.

    >>> first_step([5, 9, 5, 6, 9, 7], [5, 9, 5, 8, 8, 9], lambda token: token == 9)
    (slice(2, 5, None), slice(2, 6, None))
    """
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    start = max((i + 1 for i in range(shared) if is_break(chosen[i])), default=0)

    def end(tokens: Sequence[int]) -> int:
        return next((i + 1 for i in range(shared, len(tokens)) if is_break(tokens[i])), len(tokens))

    return slice(start, end(chosen)), slice(start, end(rejected))


def mean_weight(weights: Sequence[SideWeights], side: int) -> float:
    """Mean over all tokens of a side: how much of DPO's push is left."""
    return float(np.mean(np.concatenate([pair[side] for pair in weights])))


def _step(sides: list[list[Trajectory]], is_break: Callable[[int], bool]) -> list[list[np.ndarray]]:
    """One within the first step that differs, zero elsewhere."""
    made: list[list[np.ndarray]] = [[], []]
    for pair in zip(*sides, strict=True):
        responses = [one.token_ids[one.response_start :] for one in pair]
        spans = first_step(responses[0], responses[1], is_break)
        for side, (response, span) in enumerate(zip(responses, spans, strict=True)):
            weights = np.zeros(len(response), np.float32)
            weights[span] = 1.0
            made[side].append(weights)
    return made


def _contrast(
    pairs: Sequence[Pair],
    sides: list[list[Trajectory]],
    method: MethodConfig,
    inputs: WeightInputs,
    seed: int,
) -> list[list[np.ndarray]]:
    """1 - s and its variants on the rejected side; on the chosen side one, or s."""
    name = score_name(method.contrast_beta)
    base = jax.random.key(seed)
    keys = jax.vmap(lambda number: jax.random.fold_in(base, number))(
        jnp.asarray([_number(pair) for pair in pairs], jnp.uint32)
    )
    made = []
    for side, trajectories in enumerate(sides):
        if side == 0 and method.sides is WeightedSides.REJECTED:
            made.append([np.ones(_length(one), np.float32) for one in trajectories])
            continue
        scores_NU, is_token_NU = _stacked(trajectories, inputs.scores, name, "scores")
        scores_NU = np.exp(scores_NU)
        if side == 0:
            scores_NU = 1.0 - scores_NU  # so that 1 - (1 - s) = s
        is_eos_NU = _is_eos(trajectories, inputs.eos_ids, scores_NU.shape)
        fixed_NU = is_eos_NU & (method.eos_weight is not None)
        weigh = jax.vmap(
            lambda scores, where, key: token_weights(
                scores, where=where, config=method.weights, key=key
            )
        )
        weights_NU = np.array(weigh(scores_NU, is_token_NU & ~fixed_NU, keys))
        weights_NU[fixed_NU] = method.eos_weight or 0.0
        made.append(_cut(weights_NU, trajectories))
    return made


def _tis(
    sides: list[list[Trajectory]], method: MethodConfig, inputs: WeightInputs
) -> list[list[np.ndarray]]:
    """Importance weights: what the positive model likes more counts more on the chosen side."""
    made = []
    for sign, trajectories in zip((1, -1), sides, strict=True):
        positive_NU, _ = _stacked(trajectories, inputs.scores, POSITIVE, "scores")
        negative_NU, _ = _stacked(trajectories, inputs.scores, NEGATIVE, "scores")
        weights_NU = tis_weights(
            jnp.asarray(positive_NU),
            jnp.asarray(negative_NU),
            sign=sign,
            scale=method.tis_scale,
            mu=method.tis_mu,
            low=method.tis_low,
            high=method.tis_high,
        )
        made.append(_cut(np.asarray(weights_NU), trajectories))
    return made


def _tgdpo(
    sides: list[list[Trajectory]], method: MethodConfig, inputs: WeightInputs
) -> list[list[np.ndarray]]:
    """Weights from how far a first run moved each token."""
    rho: list[Array] = []
    for trajectories in sides:
        policy_NU, _ = _stacked(trajectories, inputs.guide, LOG_PROB, "guide")
        reference_NU, _ = _stacked(trajectories, inputs.reference, LOG_PROB, "reference")
        rho.append(jnp.asarray(policy_NU - reference_NU))
    made = tgdpo_weights((rho[0], rho[1]), beta=method.beta, alpha=method.alpha)
    return [_cut(np.asarray(one), side) for one, side in zip(made, sides, strict=True)]


def _stacked(
    trajectories: Sequence[Trajectory], values: Values | None, name: str, source: str
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers [N, U] of responses, zero behind their ends, and which are tokens."""
    if values is None:
        raise DataError(
            f"the method's weights are made of '{name}', but no file of {source} is named; run "
            f"what computes it and set {source}"
        )
    rows = [matching(values, one).named(name) for one in trajectories]
    longest = max(map(len, rows))
    numbers_NU = np.zeros((len(rows), longest), np.float32)
    for index, row in enumerate(rows):
        numbers_NU[index, : len(row)] = row
    lengths_N = np.asarray(list(map(len, rows)))
    return numbers_NU, np.arange(longest) < lengths_N[:, None]


def _is_eos(
    trajectories: Sequence[Trajectory], eos_ids: frozenset[int], shape: tuple[int, ...]
) -> np.ndarray:
    """Bool [N, U]: the end of sequence at the end of a response."""
    is_eos_NU = np.zeros(shape, bool)
    for index, one in enumerate(trajectories):
        if one.token_ids[-1] in eos_ids:
            is_eos_NU[index, _length(one) - 1] = True
    return is_eos_NU


def _cut(weights_NU: np.ndarray, trajectories: Sequence[Trajectory]) -> list[np.ndarray]:
    """Each response's own weights."""
    return [row[: _length(one)] for row, one in zip(weights_NU, trajectories, strict=True)]


def _length(one: Trajectory) -> int:
    """Tokens of a response."""
    return len(one.token_ids) - one.response_start


def _number(pair: Pair) -> int:
    """A 32-bit number of a pair that does not depend on which others there are."""
    digest = hashlib.sha256(f"{pair.problem_id}/{pair.index}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
