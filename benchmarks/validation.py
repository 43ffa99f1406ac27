"""Recall and NDCG of a trained run on its validation sessions: what settings are chosen by.

    python -m launch.local rec.pretrain --preset demo --run-dir runs/trial --pretrain.batch-size 32
    python -m benchmarks.validation --run-dir runs/trial

`rec.evaluate` reads the test sessions, which is no way to choose a setting. Here the kept
checkpoint lists first items for the validation histories, as there for those of the test.

Dimension key: U users, K listed items, M target items.
"""

import dataclasses

import tyro

from core_jax.mesh import MeshConfig, make_mesh
from launch import runtime
from rec_jax.config import GenerateConfig
from rec_jax.data.sessions import histories, targets
from rec_jax.generate import generate_sessions
from rec_jax.ranking_metrics import ndcg_at_k, recall_at_k
from rec_jax.semantic_ids.prefix_index import build_prefix_index
from rec_jax.session_decoding import BeamConfig
from rec_jax.stages import prepare, pretrain, tokenize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command line."""

    run_dir: str
    """Run whose stage pretrain is done."""
    k: int = 10
    """Length of the lists."""


def measure(options: Options) -> tuple[float, float]:
    """Returns Recall@k and NDCG@k, means over the validation users."""
    _, data = prepare.load(options.run_dir)
    index = tokenize.load(options.run_dir)
    mesh = make_mesh(MeshConfig())
    model, params = pretrain.load(options.run_dir, mesh)
    generate = GenerateConfig()
    found = generate_sessions(
        model,
        BeamConfig(num_beams=generate.item_beams, num_items=1),
        params,
        build_prefix_index(index, data.train_item_counts),
        index.codes,
        histories(data, "valid", 0),
        batch_size=generate.batch_size,
        mesh=mesh,
    )
    listed_UK, targets_UM = found.items[:, : options.k, 0], targets(data, "valid", 0)
    recall_U = recall_at_k(listed_UK, targets_UM, k=options.k)
    return float(recall_U.mean()), float(ndcg_at_k(listed_UK, targets_UM, k=options.k).mean())


def main(options: Options) -> None:
    """Measures and prints."""
    runtime.start()
    recall, ndcg = measure(options)
    print(f"validation: Recall@{options.k} {recall:.4f}, NDCG@{options.k} {ndcg:.4f}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
