"""Low-rank adapters: a tree of their own, attached to a model's or merged into it.

Hu et al., 2021, arXiv:2106.09685: a frozen map x W becomes x W + (alpha / R) x A B.

Dimension key: L layers, R rank.
"""

import math

import jax
import jax.numpy as jnp

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
        layers[group][target] = layers[group][target] | {
            "lora_a": adapter["lora_a"],
            "lora_b": adapter["lora_b"] * scale,
        }
    return params | {"layers": layers}


def merge(params: Params, adapters: Params, scale: float) -> Params:
    """Adds the adapters' updates to the kernels: a model without adapters.

    Args:
      params: the model's parameters.
      adapters: from `init_lora`, or trained.
      scale: `LoraConfig.scale`.

    Returns:
      Parameters of the model's own structure and dtypes; products are taken in float32.

    Raises:
      ConfigError: an adapter without a map of its name.
    """
    layers = {name: dict(group) for name, group in params["layers"].items()}
    for group, target, adapter in _adapters(params, adapters):
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
