"""Low-rank adapters: a tree of their own, attached to a model's or merged into it.

Hu et al., 2021, arXiv:2106.09685: a frozen map x W becomes x W + (alpha / R) x A B.

Dimension key: L layers, R rank, S streams.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from core_jax.arrays import Array, Key, Params
from core_jax.errors import ConfigError
from reasoning_jax.model.config import DecoderConfig, LoraConfig

GROUPS = {
    "query": "attention",
    "key": "attention",
    "value": "attention",
    "out": "attention",
    "gate": "mlp",
    "up": "mlp",
    "down": "mlp",
}
"""Where in a layer each target stands."""


def kernel_dims(config: DecoderConfig, target: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Input and output dimensions of a layer's linear map."""
    heads = (config.num_heads, config.head_dim)
    key_heads = (config.num_kv_heads, config.head_dim)
    model, hidden = (config.model_dim,), (config.hidden_dim,)
    return {
        "query": (model, heads),
        "key": (model, key_heads),
        "value": (model, key_heads),
        "out": (heads, model),
        "gate": (model, hidden),
        "up": (model, hidden),
        "down": (hidden, model),
    }[target]


def init_lora(config: DecoderConfig, lora: LoraConfig, *, key: Key[Array, ""]) -> Params:
    """Fresh adapters, float32: A uniform as in the reference (Kaiming, a = sqrt 5), B zero.

    Args:
      config: the model's architecture.
      lora: rank and targets.
      key: random key.

    Returns:
      {"layers": {group: {target: {"lora_a": [L, *in, R], "lora_b": [L, R, *out]}}}}; the adapted
      model is the model, since B is zero.
    """
    groups: dict[str, dict[str, Params]] = {}
    keys = jax.random.split(key, len(GROUPS))
    for (target, group), target_key in zip(GROUPS.items(), keys, strict=True):
        if target not in lora.targets:
            continue
        in_dims, out_dims = kernel_dims(config, target)
        bound = 1 / math.sqrt(math.prod(in_dims))
        shape = (config.num_layers, *in_dims, lora.rank)
        groups.setdefault(group, {})[target] = {
            "lora_a": jax.random.uniform(target_key, shape, minval=-bound, maxval=bound),
            "lora_b": jnp.zeros((config.num_layers, lora.rank, *out_dims)),
        }
    return {"layers": groups}


def attach(params: Params, adapters: Params, scale: float) -> Params:
    """Puts adapters beside the maps that they adapt; no array of the model is copied.

    Args:
      params: the model's parameters.
      adapters: from `init_lora`, or trained.
      scale: `LoraConfig.scale`; goes into B.

    Returns:
      Parameters for `apply`.

    Raises:
      ConfigError: an adapter without a map of its name.
    """
    layers = {name: dict(group) for name, group in params["layers"].items()}
    for group, target, adapter in _adapters(params, adapters):
        scaled = adapter | {"lora_b": adapter["lora_b"] * scale}
        layers[group][target] = layers[group][target] | scaled
    return params | {"layers": layers}


def stack_adapters(positive: Params, negative: Params, *, scales: tuple[float, float]) -> Params:
    """Adapters of two models of one base, as two streams of one pass over it.

    Ranks and targets may differ; nothing is filled up. After `attach` with scale 1, rows of a
    batch take turns: row 2i is of the first model and row 2i + 1 of the second, see
    `reasoning_jax.model.layers.Projection`.

    Args:
      positive: adapters of the first stream.
      negative: adapters of the second.
      scales: `LoraConfig.scale` of each; goes into B.

    Returns:
      {"layers": {group: {target: {"lora_a": [L, *in, R1 + R2], "lora_b": [L, R1 + R2, *out],
      "lora_streams": bool [L, S, R1 + R2]}}}}, for every target of either.

    Raises:
      ConfigError: the adapters are of models of other sizes.
    """
    streams = [
        {
            (group, target): adapter
            for group, targets in one["layers"].items()
            for target, adapter in targets.items()
        }
        for one in (positive, negative)
    ]
    groups: dict[str, dict[str, Params]] = {}
    for target, group in GROUPS.items():
        parts = [
            (number, stream[group, target], scale)
            for number, (stream, scale) in enumerate(zip(streams, scales, strict=True))
            if (group, target) in stream
        ]
        if not parts:
            continue
        _check_same_map(target, [adapter for _, adapter, _ in parts])
        owner = np.repeat(
            [number for number, _, _ in parts],
            [adapter["lora_a"].shape[-1] for _, adapter, _ in parts],
        )
        is_own = owner[None] == np.arange(len(streams))[:, None]
        num_layers = parts[0][1]["lora_a"].shape[0]
        groups.setdefault(group, {})[target] = {
            "lora_a": jnp.concatenate([adapter["lora_a"] for _, adapter, _ in parts], axis=-1),
            "lora_b": jnp.concatenate([scale * one["lora_b"] for _, one, scale in parts], axis=1),
            "lora_streams": jnp.asarray(np.broadcast_to(is_own, (num_layers, *is_own.shape))),
        }
    return {"layers": groups}


def merge(params: Params, adapters: Params, scale: float) -> Params:
    """Adds the adapters' updates to the kernels: a model without adapters.

    Args:
      params: the model's parameters.
      adapters: from `init_lora`, or trained.
      scale: `LoraConfig.scale`.

    Returns:
      Parameters of the model's own structure and dtypes; products are taken in float32.

    Raises:
      ConfigError: an adapter without a map of its name, or adapters of several models.
    """
    layers = {name: dict(group) for name, group in params["layers"].items()}
    for group, target, adapter in _adapters(params, adapters):
        if "lora_streams" in adapter:
            raise ConfigError(
                f"the adapters of '{group}/{target}' are of several models; merge the adapters of "
                "one, as they were before stack_adapters"
            )
        linear = layers[group][target]
        down, up = adapter["lora_a"], adapter["lora_b"]
        num_layers, rank = down.shape[0], down.shape[-1]
        update = jnp.matmul(
            down.reshape(num_layers, -1, rank).astype(jnp.float32),
            up.reshape(num_layers, rank, -1).astype(jnp.float32),
        )
        kernel = linear["kernel"]
        merged = kernel.astype(jnp.float32) + scale * update.reshape(kernel.shape)
        layers[group][target] = linear | {"kernel": merged.astype(kernel.dtype)}
    return params | {"layers": layers}


def _check_same_map(target: str, adapters: list[Params]) -> None:
    """Raises unless adapters stand beside maps of one shape."""
    shapes = [
        (one["lora_a"].shape[0], one["lora_a"].shape[1:-1], one["lora_b"].shape[2:])
        for one in adapters
    ]
    if len(set(shapes)) > 1:
        raise ConfigError(
            f"the adapters for '{target}' are of models of other sizes: layers, inputs and outputs "
            f"are {shapes[0]} and {shapes[1]}; two streams share one base model"
        )


def _adapters(params: Params, adapters: Params) -> list[tuple[str, str, Params]]:
    """(group, target, adapter) of every adapter, each checked to have its map."""
    found = []
    for group, targets in adapters["layers"].items():
        for target, adapter in targets.items():
            if target not in params["layers"].get(group, {}):
                raise ConfigError(
                    f"there is an adapter for '{group}/{target}', which the model does not have; "
                    f"it has {', '.join(params['layers'].get(group, {})) or 'no such group'}"
                )
            found.append((group, target, adapter))
    return found
