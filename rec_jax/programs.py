"""What the OneRec jobs compile: the train step, the search for sessions, the preference step.

The catalogue is not known before its log is read; its size is assumed where the config does not
say it.

Dimension key: B batch, N history items, M session items, L code levels, P groups, Z samples per
group, G responses of a group, K beams, I items.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from core_jax.arrays import PyTree
from core_jax.mesh import MeshConfig, check_batch_divisible
from core_jax.nn.stack import Remat
from core_jax.programs import (
    Kind,
    Program,
    Setting,
    Training,
    abstract_batch,
    abstract_replicated,
    spread_settings,
    train_settings,
)
from rec_jax.align.batch import PreferenceBatch
from rec_jax.align.config import AlignConfig
from rec_jax.align.methods import uses_advantages, uses_token_weights
from rec_jax.align.run_config import AlignRunConfig
from rec_jax.batch import SessionBatch
from rec_jax.beam import beam_search
from rec_jax.config import PipelineConfig, PretrainConfig
from rec_jax.model import onerec
from rec_jax.model.config import OneRecConfig
from rec_jax.model.flops import generation_flops, session_flops, train_flops
from rec_jax.model.shardings import RULES
from rec_jax.semantic_ids.prefix_index import PrefixIndex
from rec_jax.session_decoding import BeamConfig
from rec_jax.stages import align, pretrain
from rec_jax.stages.groups import num_members

ASSUMED_ITEMS = 1_000_000
"""Items of a log that the config does not count."""
_UNEVEN = 2
"""The widest branching of a level over the even one."""


def pretrain_programs(config: PipelineConfig) -> tuple[Program, ...]:
    """The train step of next-token training."""
    model = sized(config)
    settings = config.pretrain
    training = Training(
        init_params=functools.partial(onerec.init_params, model),
        optimizer=pretrain.optimizer_of(config),
        rules=RULES,
        step=lambda mesh, shardings, _: pretrain.step_of(config, model, mesh, shardings),
        batch=_sessions(model, (settings.batch_size,)),
    )
    program = _train_program(
        "train step",
        training.lower,
        training.held,
        model=model,
        mesh=config.mesh,
        flops=train_flops(model, settings.batch_size),
        settings=settings,
        flags=("--mesh", "--pretrain.", "--model.remat"),
    )
    return (program,)


def generate_programs(config: PipelineConfig) -> tuple[Program, ...]:
    """The search for whole sessions, and for lists of first items."""
    model, settings = sized(config), config.generate
    searches = (
        ("sessions", settings.session_beams, model.session_items),
        ("first items", settings.item_beams, 1),
    )
    return tuple(
        _search(
            model,
            BeamConfig(num_beams=num_beams, num_items=num_items),
            name=f"{name}, {num_beams} beams",
            batch_size=settings.batch_size,
            mesh=config.mesh,
            num_catalogue=_num_items(config),
            flag="--generate",
            mesh_flag="--mesh",
        )
        for name, num_beams, num_items in searches
    )


def align_programs(config: AlignRunConfig) -> tuple[Program, ...]:
    """A round: candidates by beam search, and the preference step."""
    pipeline, settings = config.pipeline, config.align
    model = sized(pipeline)
    candidates = _search(
        model,
        BeamConfig(num_beams=settings.candidates.num_beams, num_items=model.session_items),
        name=f"candidates, {settings.candidates.num_beams} beams",
        batch_size=settings.candidates.batch_size,
        mesh=pipeline.mesh,
        num_catalogue=_num_items(pipeline),
        flag="--align.candidates",
        mesh_flag="--pipeline.mesh",
    )
    return (candidates, _preference_step(config, align.trained_model(model, settings)))


def sized(config: PipelineConfig) -> OneRecConfig:
    """The architecture with the level sizes that the clustering is to give."""
    return dataclasses.replace(config.model, level_sizes=config.semantic_ids.level_sizes)


def _preference_step(config: AlignRunConfig, model: OneRecConfig) -> Program:
    """The train step of a round; the number of its groups follows the mesh."""
    settings = config.align

    def training(mesh: Mesh) -> Training:
        slots = align.slots_of(settings, mesh)
        lead = (slots.per_batch, slots.samples)
        return Training(
            init_params=functools.partial(onerec.init_params, model),
            optimizer=align.optimizer_of(settings),
            rules=RULES,
            step=lambda mesh, shardings, _: align.step_of(settings, model, mesh, shardings),
            batch=_preferences(settings, model, _num_responses(config), lead),
        )

    num_groups = math.ceil(settings.preference_ratio * settings.batch_size)
    flops = train_flops(model, settings.batch_size)
    flops += 3.0 * num_groups * _num_responses(config) * session_flops(model)
    return _train_program(
        f"{settings.method.method.value} step",
        lambda mesh: training(mesh).lower(mesh),
        lambda mesh: training(mesh).held(mesh),
        model=model,
        mesh=config.pipeline.mesh,
        flops=flops,
        settings=settings,
        flags=("--pipeline.mesh", "--align.", "--pipeline.model.remat"),
    )


def _train_program(
    name: str,
    lower: Callable[[Mesh], jax.stages.Lowered],
    held: Callable[[Mesh], Mapping[Kind, PyTree]],
    *,
    model: OneRecConfig,
    mesh: MeshConfig,
    flops: float,
    settings: PretrainConfig | AlignConfig,
    flags: tuple[str, str, str],
) -> Program:
    """A train step; `flags` are those of the mesh, of the batch's part and of remat."""
    mesh_flag, part_flag, remat_flag = flags
    return Program(
        name=name,
        mesh=mesh,
        lower=lower,
        held=held,
        model_flops=flops,
        hardware_flops=_with_remat(model, flops),
        tokens=settings.batch_size * _tokens(model),
        batch_size=settings.batch_size,
        num_microbatches=settings.num_microbatches,
        settings=lambda mesh: train_settings(
            mesh,
            mesh_flag=mesh_flag,
            part_flag=part_flag,
            remat_flag=remat_flag,
            remat=model.remat,
            batch_size=settings.batch_size,
            num_microbatches=settings.num_microbatches,
        ),
    )


def _search(
    model: OneRecConfig,
    beam: BeamConfig,
    *,
    name: str,
    batch_size: int,
    mesh: MeshConfig,
    num_catalogue: int,
    flag: str,
    mesh_flag: str,
) -> Program:
    """Beam search for the histories of one compiled call."""

    def arguments(mesh: Mesh) -> tuple[PyTree, ...]:
        check_batch_divisible(batch_size, 1, mesh)
        inputs = _sessions(model, (batch_size,))
        items = jax.ShapeDtypeStruct((batch_size, model.history_items), jnp.int32)
        batch = (inputs.history_codes, inputs.history_mask, items)
        index = abstract_replicated(assumed_index(model, num_catalogue), mesh)
        return onerec.abstract_params(model, mesh), index, *abstract_batch(batch, mesh)

    def lower(mesh: Mesh) -> jax.stages.Lowered:
        def search(params: PyTree, index: PrefixIndex, *inputs: jax.Array) -> PyTree:
            return beam_search(model, beam, params, index, *inputs, mesh=mesh)

        return jax.jit(search).lower(*arguments(mesh))

    def held(mesh: Mesh) -> dict[Kind, PyTree]:
        params, *inputs = arguments(mesh)
        return {Kind.PARAMETERS: params, Kind.INPUTS: inputs}

    short = dataclasses.replace(model, session_items=beam.num_items)
    flops = batch_size * generation_flops(short, beam.num_beams)
    return Program(
        name=name,
        mesh=mesh,
        lower=lower,
        held=held,
        model_flops=flops,
        hardware_flops=flops,
        tokens=batch_size * beam.num_beams * short.decoder_tokens,
        batch_size=batch_size,
        num_microbatches=1,
        settings=lambda mesh: [
            Setting(
                flag=f"{flag}.batch-size {max(1, batch_size // 2)}",
                what="half the histories per call; twice the calls",
                keeps={Kind.TEMPORARIES: 0.5, Kind.INPUTS: 0.9},
            ),
            *spread_settings(mesh, mesh_flag),
        ],
    )


def assumed_index(model: OneRecConfig, num_items: int) -> PrefixIndex:
    """A catalogue's prefix tree in the abstract: items spread evenly, a semantic ID for each.

    A level branches as widely as its number of nodes asks for, twice that at its widest.
    """
    nodes, sizes = [1], model.level_sizes
    for size in sizes:
        nodes.append(min(nodes[-1] * size, num_items))

    def ints(*counts: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        return tuple(jax.ShapeDtypeStruct((count,), jnp.int32) for count in counts)

    even = [math.ceil(after / before) for before, after in itertools.pairwise(nodes)]
    return PrefixIndex(
        starts=ints(*(count + 1 for count in nodes[:-1])),
        codes=ints(*nodes[1:]),
        root_edges=ints(sizes[0])[0],
        leaf_starts=ints(*(count + 1 for count in nodes)),
        item_starts=ints(nodes[-1] + 1)[0],
        items=ints(num_items)[0],
        leaf_of_item=ints(num_items)[0],
        level_sizes=sizes,
        max_branching=tuple(
            min(size, _UNEVEN * wide) for size, wide in zip(sizes, even, strict=True)
        ),
        max_items_per_leaf=_UNEVEN * math.ceil(num_items / nodes[-1]),
    )


def _num_items(config: PipelineConfig) -> int:
    """Items of the catalogue."""
    return getattr(config.log, "num_items", ASSUMED_ITEMS)


def _num_responses(config: AlignRunConfig) -> int:
    """G: responses of a group, sampled ones included."""
    sampled = config.align.groups.legality_samples
    return num_members(config) + (sampled if uses_advantages(config.align.method.method) else 0)


def _sessions(model: OneRecConfig, lead: tuple[int, ...]) -> SessionBatch:
    """A batch of histories and sessions by shapes."""
    items, levels = (model.history_items, model.session_items), (model.num_levels,)
    return SessionBatch(
        history_codes=jax.ShapeDtypeStruct((*lead, items[0], *levels), jnp.int32),
        history_mask=jax.ShapeDtypeStruct((*lead, items[0]), jnp.bool_),
        target_codes=jax.ShapeDtypeStruct((*lead, items[1], *levels), jnp.int32),
        target_mask=jax.ShapeDtypeStruct((*lead, items[1]), jnp.bool_),
    )


def _preferences(
    settings: AlignConfig, model: OneRecConfig, num_responses: int, lead: tuple[int, int]
) -> PreferenceBatch:
    """A batch of samples and groups [P, Z, ...] by shapes."""
    shape_PGM = (lead[0], num_responses, model.session_items)
    shape_PGML = (*shape_PGM, model.num_levels)
    values = jax.ShapeDtypeStruct(shape_PGML, jnp.float32)
    return PreferenceBatch(
        sessions=_sessions(model, lead),
        response_codes=jax.ShapeDtypeStruct(shape_PGML, jnp.int32),
        response_mask=jax.ShapeDtypeStruct(shape_PGM, jnp.bool_),
        has_pair=jax.ShapeDtypeStruct(lead[:1], jnp.bool_),
        reference_log_probs=values,
        advantages=jax.ShapeDtypeStruct(shape_PGM[:2], jnp.float32),
        weights=values if uses_token_weights(settings.method.method) else None,
    )


def _tokens(model: OneRecConfig) -> int:
    """Tokens of a sample: its history and its session."""
    return model.history_items * (model.num_levels + 1) + model.decoder_tokens


def _with_remat(model: OneRecConfig, flops: float) -> float:
    """FLOPs of a step (3 forward passes) with the forward pass that `full` repeats."""
    return flops * 4 / 3 if model.remat is Remat.FULL else flops
