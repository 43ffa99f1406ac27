"""Stage: contrastive scores of responses under a positive and a negative model.

Dimension key: none.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from core_jax.config import difference, fingerprint, to_dict
from core_jax.errors import ConfigError, DataError
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.run_folder import DONE, read_done, run_stage
from core_jax.sharding import match_rules
from reasoning_jax.align.contrast_model import AdapterPair, FullPair, score_batch
from reasoning_jax.align.pair_file import read_pairs
from reasoning_jax.align.scoring import (
    ScoringConfig,
    Sides,
    check_tokenizer,
    responses_of,
    without_repeats,
    write_token_values,
)
from reasoning_jax.config import SftConfig
from reasoning_jax.data.trajectories import Trajectory, read_trajectories
from reasoning_jax.model import lora
from reasoning_jax.model.shardings import RULES
from reasoning_jax.stages import sft
from reasoning_jax.weights.model_source import LoadedModel, ModelConfig, load_source

NAME = "score"
SCORES = "scores.jsonl"
"""What the stage writes; the schema stands in `reasoning_jax.data.token_values`."""

_LOGGER = logging.getLogger(__name__)


def run(
    run_dir: str,
    *,
    model: ModelConfig,
    positive: SftConfig,
    negative: SftConfig,
    config: ScoringConfig,
    pairs: str = "",
    trajectories: str = "",
    mesh: MeshConfig | None = None,
) -> bool:
    """Runs the stage unless it is done.

    Args:
      run_dir: the run's folder.
      model: the base that both models were trained from; its dtypes say how it computes here.
      positive: the finished run of the positive model.
      negative: that of the negative one.
      config: strengths of contrast, sides, rows.
      pairs: file of pairs whose responses are scored, or "".
      trajectories: file of further responses to score, or "".
      mesh: devices; all of them along the batch by default.

    Returns:
      Whether it is done now.

    Raises:
      DataError: nothing to score, a run that is not finished, or tokens of another tokenizer.
      ConfigError: the runs started from other models, or the stage was done otherwise.
    """
    for run_config in (positive, negative):
        _check_base(run_config, model)
    parts = {
        "model": model,
        "positive": read_done(positive.run_dir, sft.NAME)["fingerprint"],
        "negative": read_done(negative.run_dir, sft.NAME)["fingerprint"],
        "config": config,
        "pairs": file_digest(pairs),
        "trajectories": file_digest(trajectories),
    }
    responses = responses_in(pairs, trajectories, config.sides)
    work = functools.partial(
        _score, responses, model, (positive, negative), config, mesh or MeshConfig(), parts
    )
    return run_stage(run_dir, NAME, parts, work)


def file_digest(path: str) -> str:
    """What a file of responses holds, in short; of no file "".

    Raises:
      DataError: there is no such file.
    """
    if not path:
        return ""
    if not pathlib.Path(path).is_file():
        raise DataError(f"there is no file of responses '{path}'; run what makes it first")
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:16]


def check_rows(path: str, fact: str) -> None:
    """Raises DataError unless a file has as many rows as the stage that wrote it says.

    Args:
      path: of the file; it may be absent, or lie where no stage is done.
      fact: name of the number of rows among the stage's facts.
    """
    done = pathlib.Path(path).with_name(DONE)
    if not (done.is_file() and pathlib.Path(path).is_file()):
        return
    facts = json.loads(done.read_text(encoding="utf-8"))["facts"]
    with pathlib.Path(path).open("rb") as file:
        whole = sum(line.endswith(b"\n") for line in file)
    if whole != facts.get(fact, whole):
        raise DataError(
            f"'{path}' holds {whole} whole rows, but its stage is done and has written "
            f"{facts[fact]}: the file was cut short or changed; remove '{done}' and run the stage "
            "again, which makes what is missing"
        )


def responses_in(pairs: str, trajectories: str, sides: Sides) -> list[Trajectory]:
    """The responses of files, each once.

    Raises:
      DataError: there are none.
    """
    found = responses_of(read_pairs(pairs), sides) if pairs else []
    found = without_repeats([*found, *(read_trajectories(trajectories) if trajectories else ())])
    if not found:
        raise DataError(
            f"there is no response to score in pairs '{pairs}' and trajectories "
            f"'{trajectories}'; make pairs by the stage 'sets', or name a file of trajectories"
        )
    return found


def _check_base(run_config: SftConfig, model: ModelConfig) -> None:
    """Raises ConfigError unless a run started from the model; dtypes may differ."""
    alike = dataclasses.replace(run_config.model, dtype=model.dtype, param_dtype=model.param_dtype)
    if alike != model:
        changes = "; ".join(difference(to_dict(model), to_dict(alike)))
        raise ConfigError(
            f"run '{run_config.run_dir}' was not trained from the model that scores: {changes}; "
            "score with the model that the positive and the negative one share"
        )


def _score(
    responses: list[Trajectory],
    model_config: ModelConfig,
    runs: tuple[SftConfig, SftConfig],
    config: ScoringConfig,
    mesh_config: MeshConfig,
    parts: Mapping[str, Any],
    folder: pathlib.Path,
) -> Mapping[str, Any]:
    """Scores what is missing in the folder's file."""
    mesh = make_mesh(mesh_config)
    model = load_source(model_config, mesh)
    check_tokenizer(responses, model.tokenizer.fingerprint)
    score = functools.partial(
        score_batch,
        model.config,
        load_pair(model, *runs, mesh),
        chunk=config.rows.chunk,
        betas=config.betas,
        mesh=mesh,
    )
    facts = write_token_values(
        folder / SCORES,
        responses,
        score,
        config=model.config,
        rows=config.rows,
        mesh=mesh,
        model=fingerprint(dict(parts) | {"weights": model.fingerprint}),
        title=NAME,
    )
    _LOGGER.info("%s: %s", NAME, ", ".join(f"{name} {value}" for name, value in facts.items()))
    return facts


def load_pair(
    model: LoadedModel, positive: SftConfig, negative: SftConfig, mesh: Mesh
) -> AdapterPair | FullPair:
    """Two trained models beside the one that they started from.

    Args:
      model: what both started from.
      positive: the finished run of the positive model.
      negative: that of the negative one.
      mesh: where the parameters are to be.

    Returns:
      Adapters side by side over the one base where both runs trained adapters; otherwise two whole
      models, adapters of one of them merged.
    """
    runs = (positive, negative)
    trained = [sft.restore_trained(run_config, model, mesh) for run_config in runs]
    if positive.lora.rank and negative.lora.rank:
        stack = functools.partial(
            lora.stack_adapters, scales=(positive.lora.scale, negative.lora.scale)
        )
        shardings = match_rules(RULES, jax.eval_shape(stack, *trained), mesh)
        return AdapterPair(
            base=model.params, adapters=jax.jit(stack, out_shardings=shardings)(*trained)
        )
    whole = [
        lora.merge(model.params, params, run_config.lora.scale)
        if run_config.lora.rank
        else jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, model.params)
        for run_config, params in zip(runs, trained, strict=True)
    ]
    return FullPair(positive=whole[0], negative=whole[1])
