"""Stage `evaluate`: OneRec and the baselines on the held-out sessions.

Dimension key: U users, K beams, M session items, L code levels, H history items.
"""

import functools
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from core_jax.arrays import Params
from core_jax.config import from_dict, to_dict
from core_jax.errors import ConfigError
from core_jax.mesh import make_mesh
from core_jax.run_folder import DONE, run_stage, stage_folder
from rec_jax.baselines.item_knn import ItemKnnChoice
from rec_jax.baselines.methods import BaselineLists, baseline_lists
from rec_jax.catalogue import Catalogue, category_matrix, make_catalogue
from rec_jax.config import PipelineConfig
from rec_jax.data.inputs import SessionSource, batch_to_codes
from rec_jax.data.sessions import SessionData, histories
from rec_jax.evaluate import MethodLists, evaluate, make_case, save_report
from rec_jax.evaluation_tables import choice_table, report_text, to_text
from rec_jax.generate import generate_sessions
from rec_jax.model import onerec
from rec_jax.model.config import OneRecConfig
from rec_jax.ranking_metrics import legal_share, prediction_entropy
from rec_jax.recommend import make_sample, request_of_user, sample_to_dict
from rec_jax.semantic_ids.item_index import ItemIndex
from rec_jax.semantic_ids.prefix_index import PrefixIndex, build_prefix_index
from rec_jax.session_decoding import BeamConfig
from rec_jax.stages import prepare, pretrain, tokenize

NAME = "evaluate"
SESSIONWISE = "OneRec session-wise"
POINTWISE = "OneRec point-wise"
_LOGGER = logging.getLogger(__name__)


def run(config: PipelineConfig) -> bool:
    """Generates for every test user, measures all methods. Returns whether the stage is done."""

    def work(folder: pathlib.Path) -> Mapping[str, Any]:
        return _work(config, folder)

    parts = {
        "generate": config.generate,
        "baselines": config.baselines,
        "evaluate": config.evaluate,
        "sample_users": list(config.sample_users),
    }
    after = [prepare.NAME, tokenize.NAME, pretrain.NAME]
    if config.pretrain.pointwise_steps:
        after.append(pretrain.POINTWISE_NAME)
    return run_stage(config.run_dir, NAME, parts, work, after=after, repeatable=True)


def _work(config: PipelineConfig, folder: pathlib.Path) -> Mapping[str, Any]:
    """The stage's work."""
    log, data = prepare.load(config.run_dir)
    index = tokenize.load(config.run_dir)
    prefixes = build_prefix_index(index, data.train_item_counts)
    catalogue = make_catalogue(data.item_ids, log.items)
    mesh = make_mesh(config.mesh)
    longest = config.evaluate.ks[-1]
    model, params = pretrain.load(config.run_dir, mesh)
    onerec_lists, sessions = _model_lists(
        SESSIONWISE, config, data, index, prefixes, model, params, mesh
    )
    methods = [onerec_lists]
    if config.pretrain.pointwise_steps:
        pointwise = pretrain.load(config.run_dir, mesh, pointwise=True)
        methods.append(_model_lists(POINTWISE, config, data, index, prefixes, *pointwise, mesh)[0])
    baselines = baseline_lists(data, "test", config.baselines, k=longest)
    methods = [
        *(MethodLists(name=lists.name, items=lists.items) for lists in baselines),
        *methods,
    ]
    report = evaluate(
        methods,
        make_case(data, "test", categories=category_matrix(catalogue)),
        config.evaluate,
        compare=[
            (method.name, lists.name)
            for method in methods
            if method.name.startswith("OneRec")
            for lists in baselines
            if lists.choice is not None
        ],
        key=jax.random.key(config.evaluate.seed),
    )
    save_report(report, folder)
    _save_choices(baselines, folder)
    samples = _samples(config, data, catalogue, sessions)
    (folder / "samples.json").write_text(json.dumps(samples, indent=1))
    text = report_text(report)
    (folder / "report.txt").write_text(text + "\n")
    _LOGGER.info("test sessions of %s users\n%s", f"{report.num_users:,}", text)
    return {"num_users": report.num_users}


def _model_lists(
    name: str,
    config: PipelineConfig,
    data: SessionData,
    index: ItemIndex,
    prefixes: PrefixIndex,
    model: OneRecConfig,
    params: Params,
    mesh: Mesh,
) -> tuple[MethodLists, Any]:
    """What one model recommends to every test user, and its generated sessions."""
    generate = functools.partial(
        generate_sessions,
        model,
        params=params,
        index=prefixes,
        codes=index.codes,
        batch_size=config.generate.batch_size,
        mesh=mesh,
    )
    history_UH = histories(data, "test", 0)
    first = generate(
        config=BeamConfig(num_beams=config.generate.item_beams, num_items=1),
        histories=history_UH,
    )
    sessions, legality = None, None
    if model.session_items > 1:
        sessions = generate(
            config=BeamConfig(
                num_beams=config.generate.session_beams, num_items=model.session_items
            ),
            histories=history_UH,
        )
    if config.evaluate.legality_users:
        free = generate(
            config=BeamConfig(
                num_beams=config.generate.session_beams,
                num_items=model.session_items,
                constrained=False,
            ),
            histories=history_UH[: config.evaluate.legality_users],
        )
        legality = legal_share(free.codes[free.alive].reshape(-1, model.num_levels), index.codes)
    lists = MethodLists(
        name=name,
        items=first.items[:, : config.evaluate.ks[-1], 0],
        sessions=None if sessions is None else sessions.items[:, 0],
        legality=legality,
        code_entropy=_code_entropy(config, data, index, model, params, mesh),
    )
    return lists, sessions


def _code_entropy(
    config: PipelineConfig,
    data: SessionData,
    index: ItemIndex,
    model: OneRecConfig,
    params: Params,
    mesh: Mesh,
) -> tuple[float, ...]:
    """Mean entropy of the predicted codes per level on the test sessions (the paper's Fig. 5)."""
    source = SessionSource(data, "test", model.history_items, model.session_items)
    to_codes = batch_to_codes(index.codes)

    @jax.jit
    def totals(params: Params, batch: Any) -> Any:
        logits = onerec.apply(model, params, batch, mesh=None).logits
        where_BM = batch.target_mask
        sums = [(prediction_entropy(level) * where_BM).sum() for level in logits]
        return sums, where_BM.sum()

    size, sums, count = config.generate.batch_size, np.zeros(model.num_levels), 0.0
    for first in range(0, len(source), size):
        rows = np.arange(first, first + size)
        batch = dict(source.rows(np.minimum(rows, len(source) - 1)))
        batch["target"][rows >= len(source)] = -1
        batch_sums, batch_count = jax.device_get(totals(params, to_codes(batch)))
        sums += np.asarray(batch_sums)
        count += float(batch_count)
    return tuple((sums / count).tolist())


def _samples(
    config: PipelineConfig, data: SessionData, catalogue: Catalogue, sessions: Any
) -> list[dict[str, Any]]:
    """The generated sessions of the sample users, in words."""
    users = config.sample_users or tuple(data.user_ids[user] for user in data.test.user[:3])
    samples = []
    for user_id in users:
        request = request_of_user(data, user_id)
        rows = np.flatnonzero(data.test.user == data.user_ids.index(user_id))
        if not len(rows):
            raise ConfigError(
                f"sample_users names user '{user_id}', who has no test session; choose another"
            )
        row = rows[-1]
        sample = make_sample(
            catalogue,
            request,
            sessions=sessions.items[row],
            scores=sessions.scores[row],
            item_scores=sessions.item_scores[row],
        )
        samples.append(sample_to_dict(sample))
    return samples


def load_choices(run_dir: str) -> dict[str, ItemKnnChoice]:
    """What was tried on validation for every tuned baseline, by its name.

    Empty, and logged, for a run that was evaluated before it was kept.
    """
    path = stage_folder(run_dir, NAME) / "choices.json"
    if not path.is_file():
        _LOGGER.info(
            "'%s' is absent: evaluated before it was kept; to see what was tried, remove '%s' and "
            "run rec.evaluate",
            path,
            path.with_name(DONE),
        )
        return {}
    choices = json.loads(path.read_text(encoding="utf-8"))
    return {name: from_dict(ItemKnnChoice, choice) for name, choice in choices.items()}


def _save_choices(baselines: Sequence[BaselineLists], folder: pathlib.Path) -> None:
    """Writes every tuned baseline's trials, as data and as text."""
    choices = {lists.name: lists.choice for lists in baselines if lists.choice is not None}
    tables = [to_text(choice_table(name, choice)) for name, choice in choices.items()]
    (folder / "choices.txt").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    (folder / "choices.json").write_text(json.dumps(to_dict(choices), indent=1), encoding="utf-8")


def load_folder(run_dir: str) -> pathlib.Path:
    """Where the evaluation of a run lies."""
    return stage_folder(run_dir, NAME)
