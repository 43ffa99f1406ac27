"""Users per second of cached beam search over the same search with the prefix recomputed.

    python -m benchmarks.beam_search [--seconds 60] [--json]

Both searches encode the history once, apply the catalogue constraint and return the same sessions
(compared here); the yardstick reads every beam's whole decoder prefix again at every code. They
take turns; the ratio is that of their fastest runs.

Dimension key: B users, N history items, L code levels.
"""

import dataclasses
import json
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.moe_layer import hardware, time_in_turns
from benchmarks.recomputed_beam import recomputed_beam_search
from core_jax.arrays import Params
from rec_jax.beam import BeamConfig, beam_search
from rec_jax.model import onerec
from rec_jax.model.config import OneRecConfig
from rec_jax.semantic_ids.item_index import ItemIndex
from rec_jax.semantic_ids.prefix_index import PrefixIndex, build_prefix_index


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command line."""

    seconds: float = 60.0
    """Time budget, in seconds, after compilation."""
    num_users: int = 1
    """Users per call."""
    num_beams: int = 128
    """Beams per user."""
    num_items: int = 5
    """Items per session."""
    catalogue: int = 100_000
    """Items of the catalogue."""
    codes_per_level: int = 2048
    """Codes of each of the three levels."""
    d_model: int = 128
    """Width of the model; the rest follows from it."""
    num_decoder_layers: int = 2
    """Decoder layers."""
    json: bool = False
    """Print one JSON object instead of the table."""


def model_config(options: Options) -> OneRecConfig:
    """A small OneRec: 2 encoder layers, 8 experts, top-2, history of 20."""
    return OneRecConfig(
        level_sizes=(options.codes_per_level,) * 3,
        history_items=20,
        session_items=options.num_items,
        d_model=options.d_model,
        num_heads=max(1, options.d_model // 32),
        head_dim=32,
        d_ff=4 * options.d_model,
        num_encoder_layers=2,
        num_decoder_layers=options.num_decoder_layers,
        num_experts=8,
        experts_per_token=2,
        d_expert=2 * options.d_model,
    )


def random_catalogue(num_items: int, level_sizes: tuple[int, ...], seed: int = 0) -> ItemIndex:
    """Items with independent uniform codes, none twice."""
    rng = np.random.default_rng(seed)
    size = int(np.prod([float(level) for level in level_sizes]))
    packed = np.unique(rng.integers(0, size, 2 * num_items))
    packed = rng.permutation(packed)[:num_items]
    codes = np.stack(np.unravel_index(packed, level_sizes), axis=1).astype(np.int32)
    return ItemIndex(codes=codes, level_sizes=level_sizes, fingerprint="0" * 16)


def random_params(config: OneRecConfig, seed: int = 0) -> Params:
    """Parameters of plausible scale; `init_params` would give nearly uniform predictions."""
    shapes = jax.eval_shape(partial(onerec.init_params, config), key=jax.random.key(0))
    rng = np.random.default_rng(seed)

    def values(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("scale"):
            return jnp.ones(leaf.shape, leaf.dtype)
        scale = 0.2 if name.endswith("outputs") else leaf.shape[-1] ** -0.5
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(values, shapes)


def random_histories(catalogue: ItemIndex, num_users: int, length: int) -> tuple[jax.Array, ...]:
    """Codes, mask and items of full histories."""
    rng = np.random.default_rng(1)
    items_BN = rng.integers(0, catalogue.num_items, (num_users, length))
    mask_BN = np.ones_like(items_BN, bool)
    return (
        jnp.asarray(catalogue.codes[items_BN]),
        jnp.asarray(mask_BN),
        jnp.asarray(items_BN, jnp.int32),
    )


def compare(
    config: OneRecConfig,
    beam_config: BeamConfig,
    params: Params,
    index: PrefixIndex,
    histories: tuple[jax.Array, ...],
    seconds: float,
) -> dict:
    """Times both searches in turns.

    Returns:
      JSON-able results: users per second of each, their ratio, and whether the sessions agree.
    """
    searches = {"cached": beam_search, "recomputed": recomputed_beam_search}
    programs = {
        name: partial(_run, search, config, beam_config, params, index, histories)
        for name, search in searches.items()
    }
    found = {name: program() for name, program in programs.items()}
    times = time_in_turns(programs, seconds)
    num_users = histories[0].shape[0]
    spread = np.percentile(times["recomputed"][:, 0] / times["cached"][:, 0], [10, 90])
    rates = {name: num_users / rounds[:, 0].min() for name, rounds in times.items()}
    agreement = np.mean(np.asarray(found["cached"].items) == np.asarray(found["recomputed"].items))
    return {
        "users_per_second": rates,
        "ratio": rates["cached"] / rates["recomputed"],
        "ratio_p10": spread[0],
        "ratio_p90": spread[1],
        "cpu_ratio": times["recomputed"][:, 1].min() / times["cached"][:, 1].min(),
        "rounds": len(times["cached"]),
        "share_of_equal_items": float(agreement),
    }


def _run(search, config, beam_config, params, index, histories):
    """One call, waited for."""
    return jax.block_until_ready(search(config, beam_config, params, index, *histories))


def main(options: Options) -> None:
    """Runs the comparison and prints it."""
    config = model_config(options)
    catalogue = random_catalogue(options.catalogue, config.level_sizes)
    result = compare(
        config,
        BeamConfig(num_beams=options.num_beams, num_items=options.num_items),
        random_params(config),
        build_prefix_index(catalogue),
        random_histories(catalogue, options.num_users, config.history_items),
        options.seconds,
    )
    results = {
        "benchmark": "beam_search",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "options": dataclasses.asdict(options),
        **result,
    }
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(", ".join(f"{name} {value}" for name, value in results["hardware"].items()))
    print(
        f"beam {options.num_beams}, {options.num_items} items, 3 levels of "
        f"{options.codes_per_level}, {options.catalogue} items, d {options.d_model}, "
        f"{options.num_decoder_layers} decoder layers, {options.num_users} users per call"
    )
    for name, rate in result["users_per_second"].items():
        print(f"  {name:10s} {rate:8.2f} users per second")
    print(
        f"  ratio {result['ratio']:.2f} (p10 {result['ratio_p10']:.2f} - p90 "
        f"{result['ratio_p90']:.2f}), CPU time {result['cpu_ratio']:.2f}, "
        f"{result['rounds']} rounds, equal items {result['share_of_equal_items']:.1%}"
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
