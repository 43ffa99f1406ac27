"""Stage `reward` (and `judge`): a reward model learns what sessions are worth.

The stage writes: the trained checkpoints, `model.json`, `labels.npz` (reference values of the
ranks among the labels), `fusion.json`, `quality.json` and `quality.txt`.

Dimension key: S sessions, T heads.
"""

import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from core_jax.checkpoint import restore_params
from core_jax.checkpoint_step import read_meta
from core_jax.config import fingerprint, from_dict, to_dict
from core_jax.data.pipeline import host_share, make_pipeline, whole_to_device
from core_jax.errors import DataError
from core_jax.loop import Evaluate, FitResult, fit
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.metrics import compute, merge
from core_jax.optim import make_optimizer, make_schedule
from core_jax.run_folder import read_done, run_stage, stage_folder
from core_jax.storage import checkpoint_place
from core_jax.train_state import init_state
from core_jax.train_step import make_eval_step, make_train_step
from rec_jax.catalogue import category_matrix, make_catalogue
from rec_jax.data.interactions import InteractionLog
from rec_jax.data.session_config import SessionConfig
from rec_jax.data.sessions import SessionData
from rec_jax.evaluation_tables import to_text
from rec_jax.reward import model as network
from rec_jax.reward.baseline import baseline_probabilities
from rec_jax.reward.config import RewardConfig, RewardModelConfig
from rec_jax.reward.fusion import Fusion, describe, load_fusion, make_fusion, save_fusion
from rec_jax.reward.item_vectors import ItemFacts, item_vectors
from rec_jax.reward.labels import Labels, check_labels, load_references, save_references
from rec_jax.reward.objective import reward_loss
from rec_jax.reward.quality import (
    HeadQuality,
    from_records,
    measure,
    quality_table,
    to_records,
    with_p_score,
)
from rec_jax.reward.score import RewardModel, check_catalogue, score_sessions
from rec_jax.reward.sessions import (
    RewardData,
    build_reward_data,
    chooses_checkpoint,
    histories,
    in_fold,
    item_durations,
)
from rec_jax.reward.shardings import RULES
from rec_jax.reward.source import RewardSource, batch_of
from rec_jax.semantic_ids.item_index import ItemIndex
from rec_jax.stages import prepare, tokenize

NAME = "reward"
JUDGE_NAME = "judge"
BEST_METRIC = "valid_loss"
BASELINES = {"logistic regression": True, "the same, user's past unknown": False}
"""Names of the baselines, and whether they read the user's earlier labels."""
_LOGGER = logging.getLogger(__name__)


def run(
    run_dir: str,
    base_dir: str,
    config: RewardConfig,
    *,
    name: str = NAME,
    mesh: MeshConfig | None = None,
) -> bool:
    """Trains from the newest checkpoint, if there is one, and measures the result.

    Args:
      run_dir: the run folder that gets the stage.
      base_dir: the run folder that has the stages prepare and tokenize; usually the same.
      config: targets, architecture, training.
      name: the stage's name: "reward" for the model that chooses, "judge" for the held-out one.
      mesh: devices per axis; by default all of them along `data`.

    Returns:
      Whether the stage is done.

    Raises:
      ConfigError: a target needs what the log does not have.
      DataError: no session is left, or a target has nothing to learn.
    """
    on_mesh = make_mesh(mesh or MeshConfig())

    def work(folder: pathlib.Path) -> Mapping[str, Any] | None:
        return _work(base_dir, folder, config, on_mesh)

    parts = {"reward": config} | {
        f"base {stage}": read_done(base_dir, stage)["fingerprint"]
        for stage in (prepare.NAME, tokenize.NAME)
    }
    return run_stage(run_dir, name, parts, work)


def load(run_dir: str, base_dir: str, mesh: Mesh, *, name: str = NAME) -> RewardModel:
    """The trained reward model of a run, on `mesh`.

    Args:
      run_dir: the run folder that has the stage.
      base_dir: the run folder whose catalogue the sessions to score are of.
      mesh: device mesh of the parameters.
      name: "reward" or "judge".

    Returns:
      The model with its best parameters.

    Raises:
      CheckpointError: the catalogue is not the one it was trained on, or a file is damaged.
      DataError: the stage is not done.
    """
    facts, index = read_done(run_dir, name)["facts"], tokenize.load(base_dir)
    folder = stage_folder(run_dir, name)
    model = _assemble(folder, index, mesh, facts["item_index"], facts["best_step"])
    return dataclasses.replace(model, fusion=load_fusion(folder / "fusion.json"))


def load_data(run_dir: str, base_dir: str, *, name: str = NAME) -> RewardData:
    """The delivered sessions that a trained reward model saw, with the same labels."""
    done = read_done(run_dir, name)
    config = from_dict(RewardConfig, done["config"]["reward"])
    log, data = prepare.load(base_dir)
    return build_reward_data(
        log,
        session_config(base_dir),
        data,
        config.targets,
        session_items=config.model.session_items,
        references=load_references(stage_folder(run_dir, name) / "labels.npz"),
    )


def session_config(base_dir: str) -> SessionConfig:
    """The session rules of a run, as its prepare stage kept them."""
    return from_dict(SessionConfig, read_done(base_dir, prepare.NAME)["config"]["sessions"])


def _work(
    base_dir: str, folder: pathlib.Path, config: RewardConfig, mesh: Mesh
) -> Mapping[str, Any] | None:
    """Trains, measures the fusion and the quality."""
    log, sessions = prepare.load(base_dir)
    index = tokenize.load(base_dir)
    data = build_reward_data(
        log,
        session_config(base_dir),
        sessions,
        config.targets,
        session_items=config.model.session_items,
    )
    save_references(data.references, folder / "labels.npz")
    trains_S, chooses_S = _parts(data, config, log.source)
    _LOGGER.info(
        "delivered sessions: %s; %s train, %s choose the checkpoint",
        ", ".join(f"{count:,} {name}" for name, count in data.counts.items()),
        f"{trains_S.sum():,}",
        f"{chooses_S.sum():,}",
    )
    model_config = dataclasses.replace(
        config.model,
        level_sizes=index.level_sizes,
        num_items=index.num_items,
        num_targets=len(config.targets),
    )
    names = {"heads": config.head_names, "score_batch": config.score_batch}
    (folder / "model.json").write_text(json.dumps({"model": to_dict(model_config)} | names))
    facts = _item_facts(base_dir, log, sessions)
    result = _train(config, model_config, facts, data, index, trains_S, chooses_S, folder, mesh)
    if result.preempted:
        return None
    model = _assemble(folder, index, mesh, index.fingerprint, result.best_step)
    history_SN = histories(data, model_config.history_items)
    scores_SKT = score_sessions(model, history_SN, data.items[:, None], mesh=mesh)
    probabilities_ST = scores_SKT[:, 0]
    fusion = make_fusion(config.fusion, config.head_names, probabilities_ST[trains_S])
    save_fusion(fusion, folder / "fusion.json")
    predictors = {"model": probabilities_ST} | {
        name: baseline_probabilities(
            data,
            facts,
            trains_S,
            history_items=model_config.history_items,
            knows_user=knows_user,
        )
        for name, knows_user in BASELINES.items()
    }
    _write_quality(folder, config, data, trains_S, predictors)
    _LOGGER.info("%s\n%s", (folder / "quality.txt").read_text(), describe(fusion))
    return {
        "best_step": result.best_step,
        "last_step": result.step,
        "item_index": index.fingerprint,
        "train_sessions": int(trains_S.sum()),
        "counts": data.counts,
    }


def _parts(data: RewardData, config: RewardConfig, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Which sessions are trained on, and which choose the checkpoint: two Bool [S]."""
    has_label_S = data.labels.mask.any(axis=1)
    in_fold_S = in_fold(data.user, config.user_fold, config.user_folds)
    usable_S = data.is_train & in_fold_S & has_label_S
    chooses_S = usable_S & chooses_checkpoint(data.user, config.valid_share)
    trains_S = usable_S & ~chooses_S
    told = f"fold {config.user_fold} of {config.user_folds} of '{source}'"
    for name, chosen_S in (("train", trains_S), ("choose the checkpoint", chooses_S)):
        if not chosen_S.any():
            raise DataError(
                f"{told}: no session is left to {name} ({data.counts}, of which "
                f"{usable_S.sum()} are usable); lower reward.user_folds, change "
                "reward.valid_share, or loosen the split"
            )
    check_labels(
        config.targets,
        Labels(values=data.labels.values[trains_S], mask=data.labels.mask[trains_S]),
        told,
    )
    return trains_S, chooses_S


def _train(
    config: RewardConfig,
    model_config: RewardModelConfig,
    facts: ItemFacts,
    data: RewardData,
    index: ItemIndex,
    trains_S: np.ndarray,
    chooses_S: np.ndarray,
    folder: pathlib.Path,
    mesh: Mesh,
) -> FitResult:
    """Wires data, model, objective and optimizer."""
    init_key, dropout_key = jax.random.split(jax.random.key(config.seed))
    sources = [
        RewardSource(data, np.flatnonzero(chosen_S), model_config.history_items)
        for chosen_S in (trains_S, chooses_S)
    ]
    pipeline = make_pipeline(
        sources[0],
        batch_size=config.batch_size,
        seed=config.seed,
        transform=batch_of(index.codes),
        share=host_share(mesh),
    )
    optimizer = make_optimizer(config.optim, config.loop.num_steps)
    vectors_ID = item_vectors(facts.embeddings, facts.durations, model_config.d_model)
    state, shardings = init_state(
        functools.partial(network.init_params, model_config, item_vectors=vectors_ID),
        optimizer,
        mesh=mesh,
        rules=RULES,
        key=init_key,
    )
    objective = functools.partial(reward_loss, model_config, config.targets, mesh)
    train_step = make_train_step(
        objective,
        optimizer,
        mesh=mesh,
        state_shardings=shardings,
        schedule=make_schedule(config.optim, config.loop.num_steps),
    )
    return fit(
        state=state,
        train_step=train_step,
        pipeline=pipeline,
        key=dropout_key,
        folder=folder,
        config=config.loop,
        fingerprint=fingerprint({"reward": config, "index": index.fingerprint}),
        evaluate=_validation(config, objective, sources[1], index, mesh),
        best_metric=BEST_METRIC,
        lower_is_better=True,
    )


def _validation(
    config: RewardConfig, objective: Any, source: RewardSource, index: ItemIndex, mesh: Mesh
) -> Evaluate:
    """The loss on the held-back users' training sessions, in batches of one shape.

    The last batch is filled up with rows whose labels are masked: they count for nothing.
    """
    eval_step = make_eval_step(objective, mesh=mesh)
    transform = batch_of(index.codes)

    def evaluate(state: Any) -> dict[str, float]:
        totals = None
        for first in range(0, len(source), config.batch_size):
            rows = np.arange(first, first + config.batch_size)
            batch = source.rows(np.minimum(rows, len(source) - 1))
            batch["label_mask"][rows >= len(source)] = False
            metrics = eval_step(state.params, whole_to_device(transform(batch), mesh))
            totals = metrics if totals is None else merge(totals, metrics)
        assert totals is not None
        values = compute(totals)
        return {
            f"valid_{name}": value for name, value in values.items() if isinstance(value, float)
        }

    return evaluate


def _assemble(
    folder: pathlib.Path, index: ItemIndex, mesh: Mesh, catalogue: str, best_step: int
) -> RewardModel:
    """A reward model from its folder; the fusion says nothing yet."""
    check_catalogue(catalogue, index.fingerprint)
    about = json.loads((folder / "model.json").read_text())
    config, names = from_dict(RewardModelConfig, about["model"]), tuple(about["heads"])
    params = restore_params(
        folder / "checkpoints", network.abstract_params(config, mesh), step=best_step
    )
    leaves = read_meta(epath.Path(checkpoint_place(folder.resolve() / "checkpoints")), best_step)[
        "leaves"
    ]
    saved = {path: row for path, row in leaves.items() if path.startswith("params/")}
    zeros = (0.0,) * len(names)
    return RewardModel(
        config=config,
        params=params,
        codes=index.codes,
        fusion=Fusion(names=names, weights=zeros, means=zeros, stds=zeros),
        names=names,
        fingerprint=fingerprint({"params": saved, "model": config, "catalogue": catalogue}),
        catalogue_fingerprint=catalogue,
        score_batch=about["score_batch"],
    )


def _item_facts(base_dir: str, log: InteractionLog, data: SessionData) -> ItemFacts:
    """What is known of items; durations are of events before the cut."""
    catalogue = make_catalogue(data.item_ids, log.items)
    categories = category_matrix(catalogue)
    return ItemFacts(
        embeddings=np.load(stage_folder(base_dir, tokenize.NAME) / "embeddings.npy"),
        categories=categories if categories.shape[1] else None,
        durations=item_durations(log, session_config(base_dir), data),
    )


def _write_quality(
    folder: pathlib.Path,
    config: RewardConfig,
    data: RewardData,
    trains_S: np.ndarray,
    predictors: Mapping[str, np.ndarray],
) -> None:
    """Measures all predictors on the fold's and on all users' held-out sessions."""
    labels = data.labels
    if config.model.p_score:
        labels = with_p_score(config.targets, labels)
    in_fold_S = in_fold(data.user, config.user_fold, config.user_folds)
    groups = {"all users": ~data.is_train}
    if config.user_folds > 1:
        groups = {"own fold": ~data.is_train & in_fold_S} | groups
    qualities = measure(
        config.head_names,
        predictors,
        labels,
        data.user,
        groups,
        trains_S,
        num_bins=config.calibration_bins,
    )
    (folder / "quality.json").write_text(json.dumps(to_records(qualities), indent=2) + "\n")
    (folder / "quality.txt").write_text(to_text(quality_table(qualities)) + "\n")


def load_quality(run_dir: str, name: str) -> list[HeadQuality]:
    """How good a trained reward model is on held-out sessions.

    Raises:
      DataError: the stage is not done.
    """
    read_done(run_dir, name)
    path = stage_folder(run_dir, name) / "quality.json"
    return from_records(json.loads(path.read_text(encoding="utf-8")))
