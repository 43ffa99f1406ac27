"""Users per second of an alignment round's candidates, beside the bound of the active FLOPs.

    python -m benchmarks.candidates [--seconds 30] [--json]

The model is the preset `demo_world`'s, with random parameters and a random catalogue of the demo's
size; a user gets `num_beams` constrained sessions. The bound is what the model's active FLOPs
(`rec_jax.model.flops.generation_flops`) would take at the rate of a large float32 matrix product
measured in the same run. Programs take turns; figures are those of the fastest runs.

Dimension key: none.
"""

import dataclasses
import functools
import json
import time

import jax
import tyro

from benchmarks.beam_search import random_catalogue, random_histories, random_params
from benchmarks.moe_layer import hardware, time_in_turns
from benchmarks.train_step import LEVEL_SIZES, MATMUL_SIZE, matmul_program
from rec_jax.beam import BeamConfig, beam_search
from rec_jax.model import onerec
from rec_jax.model.flops import generation_flops
from rec_jax.presets import demo_world
from rec_jax.semantic_ids.prefix_index import build_prefix_index


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command line."""

    seconds: float = 30.0
    """Time budget, in seconds, after compilation."""
    num_beams: tuple[int, ...] = (32, 128)
    """Beams per user, one row each."""
    num_users: int = 32
    """Users per call."""
    json: bool = False
    """Print one JSON object instead of the table."""


def measure(options: Options) -> list[dict]:
    """One row per number of beams."""
    preset = demo_world()
    model = dataclasses.replace(preset.model, level_sizes=LEVEL_SIZES)
    catalogue = random_catalogue(preset.log.num_items, LEVEL_SIZES)
    index = build_prefix_index(catalogue)
    params = onerec.for_many_steps(model, random_params(model), None)
    histories = random_histories(catalogue, options.num_users, model.history_items)
    programs = {"matmul": matmul_program()}
    for num_beams in options.num_beams:
        config = BeamConfig(num_beams=num_beams, num_items=model.session_items)
        search = functools.partial(beam_search, model, config, params, index, *histories)
        programs[str(num_beams)] = lambda search=search: jax.block_until_ready(search())
    times = time_in_turns(programs, options.seconds)
    peak = 2.0 * MATMUL_SIZE**3 / times["matmul"][:, 0].min()
    rows = []
    for num_beams in options.num_beams:
        seconds = times[str(num_beams)][:, 0].min()
        flops = generation_flops(model, num_beams)
        rate, bound = options.num_users / seconds, peak / flops
        rows.append(
            {
                "num_beams": num_beams,
                "users_per_second": rate,
                "megaflops_per_user": flops / 1e6,
                "bound_users_per_second": bound,
                "share_of_bound": rate / bound,
                "matmul_gflops": peak / 1e9,
            }
        )
    return rows


def main(options: Options) -> None:
    """Measures and prints."""
    results = {
        "benchmark": "candidates",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "rows": measure(options),
    }
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(", ".join(f"{name} {value}" for name, value in results["hardware"].items()))
    print("  beams  users/s  MFLOP/user  bound users/s  share of bound")
    for row in results["rows"]:
        print(
            f"  {row['num_beams']:5d} {row['users_per_second']:8.1f} "
            f"{row['megaflops_per_user']:11.1f} {row['bound_users_per_second']:14.0f} "
            f"{row['share_of_bound']:15.3f}"
        )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
