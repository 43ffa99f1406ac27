"""Stage: log-probabilities of the responses of pairs under the reference, once, token by token.

Dimension key: none.
"""

import functools
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

from core_jax.config import fingerprint
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.run_folder import run_stage
from reasoning_jax.align.scoring import (
    RowsConfig,
    Sides,
    check_tokenizer,
    log_prob_scorer,
    write_token_values,
)
from reasoning_jax.data.trajectories import Trajectory
from reasoning_jax.stages.score import file_digest, responses_in
from reasoning_jax.weights.model_source import ModelConfig, load_source

NAME = "reference"
LOG_PROBS = "reference.jsonl"
"""What the stage writes; the schema stands in `reasoning_jax.data.token_values`."""

_LOGGER = logging.getLogger(__name__)


def run(
    run_dir: str,
    *,
    model: ModelConfig,
    pairs: str,
    rows: RowsConfig,
    mesh: MeshConfig | None = None,
) -> bool:
    """Runs the stage unless it is done.

    Args:
      run_dir: the run's folder.
      model: the reference.
      pairs: file of pairs; both responses of each are read.
      rows: rows and batches.
      mesh: devices; all of them along the batch by default.

    Returns:
      Whether it is done now.

    Raises:
      DataError: no pairs, or tokens of another tokenizer.
      ConfigError: the stage was done otherwise.
    """
    parts = {"model": model, "rows": rows, "pairs": file_digest(pairs)}
    responses = responses_in(pairs, "", Sides.BOTH)
    work = functools.partial(_read, responses, model, rows, mesh or MeshConfig(), parts)
    return run_stage(run_dir, NAME, parts, work)


def _read(
    responses: list[Trajectory],
    model_config: ModelConfig,
    rows: RowsConfig,
    mesh_config: MeshConfig,
    parts: Mapping[str, Any],
    folder: pathlib.Path,
) -> Mapping[str, Any]:
    """Computes what is missing in the folder's file."""
    mesh = make_mesh(mesh_config)
    model = load_source(model_config, mesh)
    check_tokenizer(responses, model.tokenizer.fingerprint)
    facts = write_token_values(
        folder / LOG_PROBS,
        responses,
        log_prob_scorer(model.config, model.params, rows=rows, mesh=mesh),
        config=model.config,
        rows=rows,
        mesh=mesh,
        model=fingerprint(dict(parts) | {"weights": model.fingerprint}),
        title=NAME,
    )
    _LOGGER.info("%s: %s", NAME, ", ".join(f"{name} {value}" for name, value in facts.items()))
    return facts
