"""Small models of each kind, with parameters that are all in use."""

import dataclasses

import jax

from core_jax.nn.linear import ComputeDtype
from reasoning_jax.model import decoder_lm
from reasoning_jax.model.config import Llama3Scaling
from reasoning_jax.model.presets import tiny

PLAIN = tiny()
SCALED = dataclasses.replace(
    tiny(), rope_scaling=Llama3Scaling(factor=8.0, original_max_positions=64), tied_embeddings=True
)
BIASED = dataclasses.replace(tiny(), qkv_bias=True)
ALL_HEADS = dataclasses.replace(tiny(), num_kv_heads=6)
CONFIGS = {"plain": PLAIN, "scaled": SCALED, "biased": BIASED, "all_heads": ALL_HEADS}


def make_params(config, seed=0):
    """Initial parameters with noise on every leaf: no norm is one and no bias zero."""
    params = decoder_lm.init_params(config, key=jax.random.key(seed))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


def make_tokens(config, rows, length, seed=7):
    return jax.random.randint(jax.random.key(seed), (rows, length), 0, config.vocab_size)


def in_bfloat16(config):
    return dataclasses.replace(config, dtype=ComputeDtype.BFLOAT16)
