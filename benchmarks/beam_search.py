"""Users per second of cached beam search over the same search with the prefix recomputed.

    python -m benchmarks.beam_search [--seconds 60] [--json]

All searches encode the history once, apply the catalogue constraint and return the same sessions
(compared here). The yardsticks read every beam's decoder prefix again at every code: `recomputed`
at its own length, one program per length, which is the least work without a cache; `padded` at the
length of a session, one shape for all codes. They take turns; a ratio is that of the fastest runs.
Rows are models and users per call. Logits and selection cost the same in all searches.

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
    """Time budget per row, in seconds, after compilation."""
    num_users: tuple[int, ...] = (1, 8)
    """Users per call, one row each."""
    num_beams: int = 128
    """Beams per user."""
    num_items: int = 5
    """Items per session."""
    catalogue: int = 100_000
    """Items of the catalogue."""
    codes_per_level: int = 2048
    """Codes of each of the three levels."""
    models: tuple[tuple[int, int], ...] = ((128, 2), (256, 4))
    """Width and decoder layers of each model; the rest follows from the width. The second has the
    width and depth of the preset `demo_gpu`."""
    json: bool = False
    """Print one JSON object instead of the table."""


def model_config(
    codes_per_level: int, num_items: int, d_model: int = 128, num_decoder_layers: int = 2
) -> OneRecConfig:
    """A small OneRec: 2 encoder layers, 8 experts, top-2, history of 20."""
    return OneRecConfig(
        level_sizes=(codes_per_level,) * 3,
        history_items=20,
        session_items=num_items,
        d_model=d_model,
        num_heads=max(1, d_model // 32),
        head_dim=32,
        d_ff=4 * d_model,
        num_encoder_layers=2,
        num_decoder_layers=num_decoder_layers,
        num_experts=8,
        experts_per_token=2,
        d_expert=2 * d_model,
        scan_unroll=num_decoder_layers,
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
    searches = {
        "cached": beam_search,
        "recomputed": recomputed_beam_search,
        "padded": partial(recomputed_beam_search, padded=True),
    }
    programs = {
        name: partial(_run, search, config, beam_config, params, index, histories)
        for name, search in searches.items()
    }
    found = {name: np.asarray(program().items) for name, program in programs.items()}
    times = time_in_turns(programs, seconds)
    num_users = histories[0].shape[0]
    cached = times["cached"]
    return {
        "users_per_second": {name: num_users / t[:, 0].min() for name, t in times.items()},
        "ratios": {name: float(t[:, 0].min() / cached[:, 0].min()) for name, t in times.items()},
        "ratio_spreads": {
            name: np.percentile(t[:, 0] / cached[:, 0], [10, 90]).tolist()
            for name, t in times.items()
        },
        "rounds": len(cached),
        "share_of_equal_items": {
            name: float(np.mean(items == found["cached"])) for name, items in found.items()
        },
    }


def _run(search, config, beam_config, params, index, histories):
    """One call, waited for."""
    return jax.block_until_ready(search(config, beam_config, params, index, *histories))


def rows(options: Options) -> list[dict]:
    """Compares the searches for every model and number of users."""
    level_sizes = (options.codes_per_level,) * 3
    catalogue = random_catalogue(options.catalogue, level_sizes)
    index = build_prefix_index(catalogue)
    beam_config = BeamConfig(num_beams=options.num_beams, num_items=options.num_items)
    results = []
    for d_model, num_layers in options.models:
        config = model_config(options.codes_per_level, options.num_items, d_model, num_layers)
        params = onerec.for_many_steps(config, random_params(config), None)
        for num_users in options.num_users:
            histories = random_histories(catalogue, num_users, config.history_items)
            result = compare(config, beam_config, params, index, histories, options.seconds)
            row = {"d_model": d_model, "num_layers": num_layers, "num_users": num_users}
            results.append({**row, **result})
    return results


def main(options: Options) -> None:
    """Runs the comparisons and prints them."""
    results = {
        "benchmark": "beam_search",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "options": dataclasses.asdict(options),
        "rows": rows(options),
    }
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(", ".join(f"{name} {value}" for name, value in results["hardware"].items()))
    print(
        f"beam {options.num_beams}, {options.num_items} items, 3 levels of "
        f"{options.codes_per_level}, {options.catalogue} items; users per second"
    )
    print("  width layers users  search      users/s   ratio  (p10 - p90)   rounds  equal items")
    for row in results["rows"]:
        for name, rate in row["users_per_second"].items():
            low, high = row["ratio_spreads"][name]
            print(
                f"  {row['d_model']:5d} {row['num_layers']:6d} {row['num_users']:5d}  {name:10s} "
                f"{rate:8.2f} {row['ratios'][name]:7.2f}  ({low:.2f} - {high:.2f}) "
                f"{row['rounds']:8d} {row['share_of_equal_items'][name]:7.1%}"
            )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
