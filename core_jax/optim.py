"""AdamW with a schedule, a decay mask by path, clipping, and a group for router biases.

Dimension key: none (optimizers act on whole trees).
"""

import dataclasses
import enum
import math
import re

import jax
import jax.numpy as jnp
import optax

from core_jax.arrays import Params, PyTree
from core_jax.errors import ConfigError

BALANCE_BIAS = r"router/bias$"
"""Path of the biases that balance expert load; they are no parameters of the loss."""


class Schedule(enum.Enum):
    """How the learning rate goes on after the warm-up."""

    CONSTANT = "constant"
    COSINE = "cosine"
    LINEAR = "linear"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101) and its schedule."""

    learning_rate: float
    """Step size after the warm-up, per update."""
    schedule: Schedule = Schedule.CONSTANT
    """How the learning rate goes on after the warm-up."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises linearly."""
    warmup_fraction: float = 0.0
    """The same as a share of all updates, rounded up; with warmup_steps 0 only."""
    final_fraction: float = 0.0
    """Learning rate at the end over its peak (cosine and linear schedules)."""
    weight_decay: float = 0.0
    """Decoupled decay; each update shrinks a weight by learning rate times this."""
    no_decay: tuple[str, ...] = ()
    """Patterns searched in parameter paths ("norm/scale$"); what they match is not decayed."""
    beta1: float = 0.9
    """Decay of the running mean of the gradient, per update."""
    beta2: float = 0.999
    """Decay of the running mean of the squared gradient, per update."""
    epsilon: float = 1e-8
    """Added to the root of the squared gradient."""
    clip_norm: float | None = None
    """Largest global norm of the gradient; larger ones are scaled down. None: no clipping."""
    bias_update_rate: float = 0.001
    """Step of the expert-balancing router biases, per update (used when the model has them)."""

    def __post_init__(self) -> None:
        """Checks every field on its own."""
        for name in ("learning_rate", "epsilon", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < math.inf:
                raise ConfigError(f"optim.{name} is {value}; it must be positive and finite")
        for name in ("weight_decay", "bias_update_rate", "warmup_steps"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}; it must not be negative")
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}; it must lie in [0, 1)")
        if not 0.0 <= self.warmup_fraction < 1.0:
            raise ConfigError(
                f"optim.warmup_fraction is {self.warmup_fraction}; it must lie in [0, 1)"
            )
        if self.warmup_fraction and self.warmup_steps:
            raise ConfigError(
                f"optim.warmup_steps is {self.warmup_steps} and optim.warmup_fraction "
                f"{self.warmup_fraction}; both say how long the warm-up is: set one of them to 0"
            )
        if not 0.0 <= self.final_fraction <= 1.0:
            raise ConfigError(
                f"optim.final_fraction is {self.final_fraction}; it must lie in [0, 1]"
            )
        for pattern in self.no_decay:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(
                    f"optim.no_decay has {pattern!r}, no regular expression ({error}); correct it"
                ) from error


def make_schedule(config: OptimConfig, num_steps: int) -> optax.Schedule:
    r"""Builds the learning rate as a function of the number of updates made so far.

    With the peak :math:`\eta`, `num_steps` S, `final_fraction` f and a warm-up of W updates
    (`warmup_steps`, or `warmup_fraction` of S), update c (from 0) has the rate

    .. math:: \eta (c + 1) / (W + 1) \quad (c < W), \qquad \eta (f + (1 - f) d(t)), \quad
       t = (c - W) / (S - W)

    where d is 1 (constant), 1 - t (linear) or (1 + cos(pi t)) / 2 (cosine). Updates from S on
    keep the rate of t = 1.

    Args:
      config: optimizer config.
      num_steps: updates of the whole training run.

    Returns:
      A function from the update number (int or int32 scalar) to the rate (float32 scalar).

    Raises:
      ConfigError: the warm-up does not end before the run.
    """
    warmup = config.warmup_steps or math.ceil(config.warmup_fraction * num_steps)
    if not warmup < num_steps:
        named = "warmup_steps" if config.warmup_steps else "warmup_fraction"
        raise ConfigError(
            f"optim.{named} is {getattr(config, named)}, which is {warmup} updates, but training "
            f"has {num_steps} steps; the warm-up must end before: set it lower"
        )
    peak = config.learning_rate

    def schedule(count: PyTree) -> PyTree:
        count = jnp.asarray(count, jnp.float32)
        rising = (count + 1.0) / (warmup + 1.0)
        progress = jnp.clip((count - warmup) / (num_steps - warmup), 0.0, 1.0)
        if config.schedule is Schedule.CONSTANT:
            falling = jnp.ones(())
        else:
            linear = config.schedule is Schedule.LINEAR
            shape = 1.0 - progress if linear else 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
            falling = config.final_fraction + (1.0 - config.final_fraction) * shape
        return peak * jnp.where(count < warmup, rising, falling)

    return schedule


def make_optimizer(config: OptimConfig, num_steps: int) -> optax.GradientTransformation:
    """Builds the optimizer: two groups of parameters, told apart by path.

    Parameters whose path matches `BALANCE_BIAS` move by `bias_update_rate` against the sign of
    their gradient, which the model defines as load minus mean load (loss-free balancing, Wang et
    al., 2024, arXiv:2408.15664, Algorithm 1). All others: clipping by the norm of this group,
    then AdamW.

    Args:
      config: optimizer config.
      num_steps: updates of the whole training run, for the schedule.

    Returns:
      An optax transformation; its `update` needs the parameters.

    Raises:
      ConfigError: see `make_schedule`.
    """
    schedule = make_schedule(config, num_steps)
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    adam = optax.chain(
        *clip,
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=lambda tree: decay_mask(config, tree)),
        optax.scale_by_learning_rate(schedule),
    )
    sign = optax.stateless_with_tree_map(lambda grad, _: -config.bias_update_rate * jnp.sign(grad))
    return optax.partition({"adam": adam, "balance_bias": sign}, _group_labels)


def decay_mask(config: OptimConfig, params: Params) -> PyTree:
    """Tells which parameters decay: a tree of bool, False where a `no_decay` pattern matches."""
    patterns = [re.compile(pattern) for pattern in config.no_decay]

    def decays(key_path: tuple, _: PyTree) -> bool:
        return not any(pattern.search(_join(key_path)) for pattern in patterns)

    return jax.tree_util.tree_map_with_path(decays, params)


def loss_gradient_norm(grads: Params) -> PyTree:
    """Global L2 norm of the gradient of the loss: router-balancing biases are left out."""
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    return optax.tree.norm([leaf for key_path, leaf in leaves if not _is_balance_bias(key_path)])


def _group_labels(params: Params) -> PyTree:
    """The optimizer group of every parameter."""
    return jax.tree_util.tree_map_with_path(
        lambda key_path, _: "balance_bias" if _is_balance_bias(key_path) else "adam", params
    )


def _is_balance_bias(key_path: tuple) -> bool:
    """Whether a leaf is an expert-balancing bias."""
    return re.search(BALANCE_BIAS, _join(key_path)) is not None


def _join(key_path: tuple) -> str:
    """A leaf's path, joined by "/"."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")
