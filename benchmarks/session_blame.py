"""Do contrastive scores blame the right items of a rejected session? Asked of the simulated world.

    python -m benchmarks.session_blame --run-dir runs/alignment_table

Two truths about an item of a rejected session: what the session loses in expected watch time if the
item is left out, and what a session of this item alone would be worth. A measure of blame is right
about two items of a session where it blames the one of lower truth more; 0.5 is a coin. Reads the
scores of round 1 of every seed of a finished table.

Dimension key: Q pairs, M session items, L code levels.
"""

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from core_jax.config import from_dict
from core_jax.mesh import make_mesh
from launch import runtime
from rec_jax.align.policy_metrics import concordance
from rec_jax.alignment_cells import AlignmentTableConfig, Cell, ContrastRow, table_cells
from rec_jax.data.simulator.response import NO_ITEM, expected_watch_ms
from rec_jax.data.simulator.world import item_numbers, sessions_in_world, user_numbers
from rec_jax.evaluation_tables import Table, interval_text, to_markdown
from rec_jax.ranking_metrics import bootstrap_interval
from rec_jax.semantic_ids.prefix_index import build_prefix_index, find_leaves
from rec_jax.stages import align_evaluate, contrast, groups, prepare, tokenize

TRUTHS = ("loss if left out", "worth alone")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-dir", default="runs/alignment_table")
    arguments = parser.parse_args()
    runtime.start()
    values = json.loads((pathlib.Path(arguments.run_dir) / "config.json").read_text())
    config = from_dict(AlignmentTableConfig, values | {"run_dir": arguments.run_dir})
    cells = [
        cell
        for seed in config.seeds
        for cell in table_cells(config, seed)
        if cell.name == ContrastRow().name
    ]
    found = [measured(cell) for cell in cells]
    rows = [
        (
            name,
            *(
                interval_text(
                    bootstrap_interval(
                        np.concatenate([one[name][truth] for one in found]),
                        key=jax.random.key(0),
                        num_samples=config.template.evaluate.bootstrap_samples,
                        confidence=config.template.evaluate.confidence,
                    )
                )
                for truth in TRUTHS
            ),
        )
        for name in found[0]
    ]
    note = f"Round 1 of seeds {config.seeds}; intervals over rejected sessions."
    header = ("blame", *TRUTHS)
    print(to_markdown(Table(title="Blame", note=note, header=header, rows=tuple(rows))))


def measured(cell: Cell) -> dict[str, dict[str, np.ndarray]]:
    """By measure of blame and truth, the concordance of every rejected session."""
    preferences, scores = groups.load(cell.folders, 1), contrast.load(cell.folders, 1)
    truths = true_worth(cell)
    rejected_QML = {name: value[:, 1] for name, value in vars(scores).items()}
    ratio_QML = rejected_QML["negative"] - rejected_QML["positive"]
    blame_QML = -np.expm1(rejected_QML["log_scores"])
    measures = {
        "1 - s, mean over the item's codes": blame_QML.mean(axis=-1),
        "1 - s, first code": blame_QML[..., 0],
        "log p-/p+ of the item": ratio_QML.sum(axis=-1),
        "-log p of the item, reference": -preferences.reference_log_probs[:, 1].sum(axis=-1),
        "position in the session": np.broadcast_to(
            np.arange(blame_QML.shape[1], dtype=float), blame_QML.shape[:2]
        ),
    }
    alive_QM = preferences.mask[:, 1]
    return {
        name: {
            truth: concordance(-measure_QM, truth_QM, alive_QM)
            for truth, truth_QM in zip(TRUTHS, truths, strict=True)
        }
        for name, measure_QM in measures.items()
    }


def true_worth(cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """Seconds [Q, M]: what a rejected session loses without each item; the item's worth alone."""
    preferences = groups.load(cell.folders, 1)
    _, data = prepare.load(cell.folders.base)
    world = align_evaluate.load_panel(
        cell.folders, cell.config, make_mesh(cell.config.pipeline.mesh)
    ).world
    assert world is not None, "the truth is known in a simulated world only"
    prefixes = build_prefix_index(tokenize.load(cell.folders.base), data.train_item_counts)
    leaves_QM = np.asarray(find_leaves(prefixes, jnp.asarray(preferences.codes[:, 1])))
    firsts_QM = np.asarray(prefixes.item_starts)[leaves_QM]
    items_QM = np.where(preferences.mask[:, 1], np.asarray(prefixes.items)[firsts_QM], NO_ITEM)
    users = [data.user_ids[user] for user in data.train.user[preferences.examples]]
    users_Q = user_numbers(world, users)
    times_Q = data.positive_times[data.train.history_end[preferences.examples]]
    sessions_QM = sessions_in_world(item_numbers(world, list(data.item_ids)), items_QM)
    num_items = sessions_QM.shape[1]
    is_one_MM = np.eye(num_items, dtype=bool)
    without_QMM = np.where(is_one_MM, NO_ITEM, sessions_QM[:, None])
    alone_QMM = np.where(is_one_MM, sessions_QM[:, None], NO_ITEM)
    whole_Q1 = expected_watch_ms(world, users_Q, times_Q, sessions_QM[:, None])
    lost_QM = whole_Q1 - expected_watch_ms(world, users_Q, times_Q, without_QMM)
    return lost_QM / 1000, expected_watch_ms(world, users_Q, times_Q, alone_QMM) / 1000


if __name__ == "__main__":
    main()
