"""Stage `tokenize`: items become embeddings, a codebook and semantic IDs.

Dimension key: none.
"""

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from core_jax.run_folder import Workers, run_stage, stage_folder
from rec_jax.baselines.methods import training_sequences
from rec_jax.config import PipelineConfig
from rec_jax.semantic_ids.codebook import save_codebook
from rec_jax.semantic_ids.embedder import embed_catalogue, save_embedder
from rec_jax.semantic_ids.item_index import (
    ItemIndex,
    build_item_index,
    load_item_index,
    save_item_index,
)
from rec_jax.semantic_ids.quality import quality_report, quality_table
from rec_jax.semantic_ids.residual import fit_residual
from rec_jax.stages import prepare

NAME = "tokenize"
_LOGGER = logging.getLogger(__name__)


def run(config: PipelineConfig) -> bool:
    """Embeds items, fits the codebook, saves the semantic IDs. Returns whether it is done."""

    def work(folder: pathlib.Path) -> Mapping[str, Any]:
        log, data = prepare.load(config.run_dir)
        embedding_key, codebook_key = jax.random.split(jax.random.key(config.seed))
        users, positives = training_sequences(data)
        embedded = embed_catalogue(
            config.embeddings,
            prepare.item_table(log, data),
            users,
            positives,
            key=embedding_key,
        )
        embeddings = embedded.embeddings
        codebook, codes = fit_residual(embeddings, config.semantic_ids, key=codebook_key)
        index = build_item_index(
            codes,
            config.semantic_ids.level_sizes,
            config.semantic_ids.collision,
            data.train_item_counts,
            codebook_fingerprint=codebook.fingerprint,
        )
        quality = quality_report(codebook, embeddings, codes, num_predicted=embedded.num_predicted)
        np.save(folder / "embeddings.npy", embeddings)
        save_codebook(codebook, folder / "codebook.npz")
        save_embedder(
            embedded.embedder,
            folder / "embedder.npz",
            codebook_fingerprint=codebook.fingerprint,
        )
        save_item_index(index, folder / "item_index.npz")
        (folder / "quality.json").write_text(json.dumps(quality.to_dict(), indent=2))
        columns = {"catalogue": quality.catalogue, "nearest": quality.nearest}
        _LOGGER.info("semantic IDs of %s items\n%s", f"{len(codes):,}", quality_table(columns))
        return {"level_sizes": list(index.level_sizes), "fingerprint": index.fingerprint}

    parts = {
        "embeddings": config.embeddings,
        "semantic_ids": config.semantic_ids,
        "seed": config.seed,
    }
    return run_stage(
        config.run_dir, NAME, parts, work, after=(prepare.NAME,), workers=Workers.FIRST
    )


def load(run_dir: str) -> ItemIndex:
    """The semantic IDs of a run."""
    return load_item_index(stage_folder(run_dir, NAME) / "item_index.npz")
