"""What the catalogue constraint costs, per level and per session.

    python -m benchmarks.constraint [--seconds 60] [--json]

Per level: one step from the same logits to the beams kept, with the constraint (legal children,
their logits, selection) over without it (all codes of the level, selection). Per session: the
whole search with over without the constraint. Both for catalogues of several sizes; programs take
turns and ratios are those of their fastest runs. A level's time follows the number of its
candidates, which is printed: the children of the node that has the most. Codes here are uniform, so
that at level 1 these grow with the catalogue, up to the number of codes.

Dimension key: B users, K beams, C codes of a level, L code levels, M session items.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.beam_search import (
    model_config,
    random_catalogue,
    random_histories,
    random_params,
)
from benchmarks.moe_layer import hardware, time_in_turns
from core_jax.arrays import Array
from rec_jax.beam import BeamConfig, beam_search, select_best
from rec_jax.model import onerec
from rec_jax.semantic_ids.constraint import Exclusion, build_exclusion, legal_children
from rec_jax.semantic_ids.prefix_index import PrefixIndex, build_prefix_index
from rec_jax.session_decoding import Candidates, Selection, candidate_log_probs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command line."""

    seconds: float = 60.0
    """Time budget per table, in seconds, after compilation."""
    catalogues: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    """Items of each catalogue."""
    num_beams: int = 128
    """Beams per user."""
    num_items: int = 5
    """Items per session."""
    codes_per_level: int = 2048
    """Codes of each of the three levels."""
    history_items: int = 256
    """Items that are excluded."""
    json: bool = False
    """Print one JSON object instead of the tables."""


def step_programs(options: Options, indexes: dict[int, PrefixIndex]) -> dict[str, Callable]:
    """One selection step per level: without the constraint, and with it for each catalogue."""
    rng = np.random.default_rng(2)
    shape = (1, options.num_beams)
    logits_BKC = jnp.asarray(rng.standard_normal((*shape, options.codes_per_level)), jnp.float32)
    scores_BK = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    programs = {"free": _compiled(partial(_free_step, options.num_beams), logits_BKC, scores_BK)}
    for size, index in indexes.items():
        history = jnp.asarray(rng.integers(0, size, (1, options.history_items)), jnp.int32)
        exclusion = jax.jit(build_exclusion)(index, history)
        for level in range(index.num_levels):
            num_nodes = index.starts[level].shape[0] - 1
            nodes_BK = jnp.asarray(rng.integers(0, num_nodes, shape), jnp.int32)
            num_edges = index.codes[level].shape[0]
            edges_BKM = rng.integers(0, num_edges, (*shape, options.num_items))
            edges_BKM[..., options.num_items // 2 :] = -1
            programs[f"{size} items, level {level}"] = _compiled(
                partial(_constrained_step, options.num_beams, level),
                logits_BKC,
                scores_BK,
                index,
                exclusion,
                nodes_BK,
                jnp.asarray(edges_BKM, jnp.int32),
            )
    return programs


def search_programs(options: Options, indexes: dict[int, PrefixIndex]) -> dict[str, Callable]:
    """Whole searches: without the constraint, and with it for each catalogue."""
    config = dataclasses.replace(
        model_config(options.codes_per_level, options.num_items),
        history_items=options.history_items,
    )
    params = onerec.for_many_steps(config, random_params(config), None)
    programs = {}
    for size, index in indexes.items():
        histories = random_histories(
            random_catalogue(size, config.level_sizes), 1, config.history_items
        )
        for name, constrained in (("free", False), (f"{size} items", True)):
            beam_config = BeamConfig(
                num_beams=options.num_beams, num_items=options.num_items, constrained=constrained
            )
            programs.setdefault(
                name, partial(_search, config, beam_config, params, index, histories)
            )
    return programs


def ratios(programs: dict[str, Callable], seconds: float) -> list[dict]:
    """Times programs in turns.

    Returns:
      JSON-able rows: fastest wall and CPU milliseconds, and their ratios to the program "free".
    """
    times = time_in_turns(programs, seconds)
    free = times["free"].min(axis=0)
    return [
        {
            "program": name,
            "wall_ms": 1e3 * rounds[:, 0].min(),
            "wall_ratio": rounds[:, 0].min() / free[0],
            "cpu_ms": 1e3 * rounds[:, 1].min(),
            "cpu_ratio": rounds[:, 1].min() / free[1],
            "rounds": len(rounds),
        }
        for name, rounds in times.items()
    ]


def _free_step(num_beams: int, logits: Array, scores: Array) -> Selection:
    """From logits to the best beams over all codes."""
    log_probs = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    candidates = Candidates(log_probs=log_probs, scores=scores, step=jnp.int32(0))
    return select_best(candidates, num_beams)


def _constrained_step(
    num_beams: int,
    level: int,
    logits: Array,
    scores: Array,
    index: PrefixIndex,
    exclusion: Exclusion,
    nodes: Array,
    session_edges: Array,
) -> Selection:
    """From logits to the best beams over the legal codes."""
    children = legal_children(index, exclusion, level, nodes, session_edges)
    log_probs = candidate_log_probs(logits, children)
    candidates = Candidates(log_probs=log_probs, scores=scores, step=jnp.int32(0))
    return select_best(candidates, num_beams)


def _compiled(function: Callable, *inputs) -> Callable:
    """A call of the compiled function, waited for."""
    compiled = jax.jit(function).lower(*inputs).compile()
    return lambda: jax.block_until_ready(compiled(*inputs))


def _search(config, beam_config, params, index, histories):
    """One search, waited for."""
    return jax.block_until_ready(beam_search(config, beam_config, params, index, *histories))


def main(options: Options) -> None:
    """Runs both tables and prints them."""
    level_sizes = (options.codes_per_level,) * 3
    indexes = {
        size: build_prefix_index(random_catalogue(size, level_sizes)) for size in options.catalogues
    }
    results = {
        "benchmark": "constraint",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "options": dataclasses.asdict(options),
        "candidates": {
            size: (options.codes_per_level, *index.max_branching[1:])
            for size, index in indexes.items()
        },
        "steps": ratios(step_programs(options, indexes), options.seconds),
        "searches": ratios(search_programs(options, indexes), options.seconds),
    }
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(", ".join(f"{name} {value}" for name, value in results["hardware"].items()))
    for size, candidates in results["candidates"].items():
        print(f"candidates per level with {size} items: {candidates}")
    for title, table in (("one step", "steps"), ("whole session", "searches")):
        print(f"\n{title}: beam {options.num_beams}, 3 levels of {options.codes_per_level}")
        print("  program                     wall ms   ratio     cpu ms   ratio  rounds")
        for row in results[table]:
            print(
                f"  {row['program']:24s} {row['wall_ms']:10.3f} {row['wall_ratio']:7.2f} "
                f"{row['cpu_ms']:10.3f} {row['cpu_ratio']:7.2f} {row['rounds']:7d}"
            )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
