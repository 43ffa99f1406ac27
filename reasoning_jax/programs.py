"""What the reasoning jobs compile: train steps and the scoring of tokens.

Sampling's programs stand in `reasoning_jax.sampling_programs`.

Rows of pairs depend on the data; their number and size are assumed, see `_pair_batch`.

Dimension key: B rows, T tokens of a row, P response tokens of a row, K pairs of a row, U tokens of
a response.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from core_jax.arrays import Params, PyTree
from core_jax.mesh import check_batch_divisible
from core_jax.nn.stack import Remat
from core_jax.optim import make_optimizer
from core_jax.programs import (
    Kind,
    Program,
    Setting,
    Training,
    abstract_batch,
    abstract_params,
    spread_settings,
    train_settings,
)
from reasoning_jax.align.contrast_model import NUM_STREAMS, AdapterPair, FullPair, score_batch
from reasoning_jax.align.methods import Row, row_method
from reasoning_jax.align.pair_rows import SIDES, PairBatch
from reasoning_jax.align_config import PipelineConfig, PreferConfig
from reasoning_jax.config import SftConfig
from reasoning_jax.contrastive_run import contrast_model, method_config
from reasoning_jax.data.packing import PackedBatch
from reasoning_jax.model import lora
from reasoning_jax.model.config import DecoderConfig, LoraConfig
from reasoning_jax.model.flops import token_flops, train_flops
from reasoning_jax.model.shardings import RULES
from reasoning_jax.sampling_programs import pipeline_sampling
from reasoning_jax.stages import prefer, sft
from reasoning_jax.stages.trainee import initialiser as trained_initialiser
from reasoning_jax.weights.model_source import ModelConfig, architecture_of, initialiser

TOKENS_OF_A_PAIR = 600
"""Both solutions with their prompts: about what GSM8K's have."""
_RESPONSE_SHARE = 0.75
"""Of a row's tokens that belong to responses and not to prompts."""
_ASSUMED_STEPS = 1000
"""Of a training whose number of steps follows from its data; only the schedule knows it."""


def sft_programs(config: SftConfig) -> tuple[Program, ...]:
    """The train step of supervised fine-tuning."""
    return (_sft_step(config, "train step", ""),)


def prefer_programs(config: PreferConfig) -> tuple[Program, ...]:
    """The train step of preference training."""
    return (_prefer_step(config, "--train."),)


def pipeline_programs(config: PipelineConfig) -> tuple[Program, ...]:
    """Of the contrastive pipeline: sampling, a contrast model's step, the scoring, a method's step.

    The method is the last of the rows that trains on pairs: all of them have one shape.
    """
    contrast = contrast_model(config, config.seeds[0], "positive")
    programs = [
        *pipeline_sampling(config),
        _sft_step(contrast, "contrast model step", "--contrast."),
        _scoring(config),
    ]
    row = next((row for row in reversed(config.rows) if _trains_pairs(row)), None)
    if row is not None:
        programs.append(_prefer_step(method_config(config, config.seeds[0], row), "--train."))
    return tuple(programs)


def _trains_pairs(row: Row) -> bool:
    """Whether a row of the table trains on pairs."""
    return row_method(row) is not None and row is not Row.SFT


def _sft_step(config: SftConfig, name: str, flag: str) -> Program:
    """A step of fine-tuning."""
    model, length = architecture_of(config.model), config.packing.row_length
    num_steps = config.loop.num_steps if not config.epochs else _ASSUMED_STEPS
    training = Training(
        init_params=trained_initialiser(model, config.lora),
        optimizer=make_optimizer(config.optim, num_steps),
        rules=RULES,
        step=lambda mesh, shardings, frozen: sft.step_of(
            config, num_steps, model, mesh, shardings, frozen
        ),
        batch=_packed_batch(config.batch_size, length),
        frozen=_held_base(config.model, model) if config.lora.rank else None,
    )
    return _training_program(
        training,
        name=f"{name}, {_trained(config.lora)}",
        config=config,
        model=model,
        length=length,
        lora=config.lora,
        remat=config.remat,
        num_microbatches=config.num_microbatches,
        batch_size=config.batch_size,
        flag=flag,
    )


def _prefer_step(config: PreferConfig, flag: str) -> Program:
    """A step of preference training."""
    train = config.train
    model, length = architecture_of(config.model), train.rows.row_length
    training = Training(
        init_params=trained_initialiser(model, train.lora),
        optimizer=make_optimizer(train.optim, _ASSUMED_STEPS),
        rules=RULES,
        step=lambda mesh, shardings, frozen: prefer.step_of(
            config, _ASSUMED_STEPS, model, mesh, shardings, frozen
        ),
        batch=_pair_batch(train.batch_size, length),
        frozen=_held_base(config.model, model) if config.holds_reference else None,
    )
    return _training_program(
        training,
        name=f"{config.method.loss.value} step, {_trained(train.lora)}",
        config=config,
        model=model,
        length=length,
        lora=train.lora,
        remat=train.remat,
        num_microbatches=train.num_microbatches,
        batch_size=train.batch_size,
        flag=flag,
    )


def _training_program(
    training: Training,
    *,
    name: str,
    config: SftConfig | PreferConfig,
    model: DecoderConfig,
    length: int,
    lora: LoraConfig,
    remat: Remat,
    num_microbatches: int,
    batch_size: int,
    flag: str,
) -> Program:
    """A train step as a program."""
    tokens = batch_size * length
    needed, done = train_flops(
        model, tokens, length, adapters=lora.rank > 0, repeats=remat is Remat.FULL
    )

    def settings(mesh: Mesh) -> list[Setting]:
        found = train_settings(
            mesh,
            mesh_flag="--mesh",
            part_flag=flag or "--",
            remat_flag=f"{flag or '--'}remat",
            remat=remat,
            batch_size=batch_size,
            num_microbatches=num_microbatches,
        )
        if not lora.rank:
            found.append(
                Setting(
                    flag=f"{flag or '--'}lora.rank 16",
                    what="adapters: moments and gradients of them alone; another training",
                    keeps={Kind.OPTIMIZER: 0.02, Kind.PARAMETERS: 0.55, Kind.TEMPORARIES: 0.7},
                )
            )
        if config.model.param_dtype.dtype.itemsize > 2 and lora.rank:
            found.append(
                Setting(
                    flag="--model.param-dtype bfloat16",
                    what="the model under the adapters in half the bytes",
                    keeps={Kind.PARAMETERS: 0.5},
                )
            )
        if config.model.dtype.dtype.itemsize > 2:
            found.append(
                Setting(
                    flag="--model.dtype bfloat16",
                    what="activations in half the bytes; lower precision",
                    keeps={Kind.TEMPORARIES: 0.6},
                )
            )
        return found

    return Program(
        name=name,
        mesh=config.mesh,
        lower=training.lower,
        held=training.held,
        model_flops=needed,
        hardware_flops=done,
        tokens=tokens,
        batch_size=batch_size,
        num_microbatches=num_microbatches,
        settings=settings,
    )


def _scoring(config: PipelineConfig) -> Program:
    """Contrastive scores of a batch of rows, two models over one base or two whole ones."""
    rows, contrast = config.scoring.rows, config.contrast
    model_config = contrast_model(config, config.seeds[0], "positive").model
    model = architecture_of(model_config)

    def arguments(mesh: Mesh) -> tuple[AdapterPair | FullPair, PyTree]:
        check_batch_divisible(rows.batch_size, 1, mesh)
        batch = abstract_batch(_packed_batch(rows.batch_size, rows.row_length), mesh)
        whole = abstract_params(_held_base(model_config, model), RULES, mesh)
        if not contrast.lora.rank:
            return FullPair(positive=whole, negative=whole), batch
        stacked = abstract_params(_stacked(model, contrast.lora), RULES, mesh)
        return AdapterPair(base=whole, adapters=stacked), batch

    def lower(mesh: Mesh) -> jax.stages.Lowered:
        pair, batch = arguments(mesh)
        # How many response tokens a row has is known with the data: at most all of it.
        return score_batch.lower(
            model,
            pair,
            batch,
            rows.row_length,
            chunk=rows.chunk,
            betas=config.scoring.betas,
            mesh=mesh,
        )

    def held(mesh: Mesh) -> dict[Kind, PyTree]:
        pair, batch = arguments(mesh)
        return {Kind.PARAMETERS: pair, Kind.INPUTS: batch}

    def settings(mesh: Mesh) -> list[Setting]:
        fewer = Setting(
            flag=f"--scoring.rows.batch-size {max(1, rows.batch_size // 2)}",
            what="half the rows per call; the same scores",
            keeps={Kind.TEMPORARIES: 0.5, Kind.INPUTS: 0.5},
        )
        return [fewer, *spread_settings(mesh, "--mesh")]

    tokens = rows.batch_size * rows.row_length
    flops = NUM_STREAMS * tokens * sum(token_flops(model, rows.row_length))
    return Program(
        name="contrastive scoring",
        mesh=config.mesh,
        lower=lower,
        held=held,
        model_flops=flops,
        hardware_flops=flops,
        tokens=tokens,
        batch_size=rows.batch_size,
        num_microbatches=1,
        settings=settings,
    )


def _held_base(config: ModelConfig, model: DecoderConfig) -> Callable[[], Params]:
    """Makes the parameters of a loaded model, in the abstract."""
    return lambda: initialiser(config, model)(jax.random.key(0))


def _stacked(model: DecoderConfig, config: LoraConfig) -> Callable[[], Params]:
    """Makes the adapters of both contrast models side by side, in the abstract."""
    init = functools.partial(lora.init_lora, model, config)
    scales = (config.scale, config.scale)
    return lambda: lora.stack_adapters(
        init(key=jax.random.key(0)), init(key=jax.random.key(1)), scales=scales
    )


def _trained(config: LoraConfig) -> str:
    """What is trained, in words."""
    return f"LoRA rank {config.rank}" if config.rank else "all parameters"


def _packed_batch(batch_size: int, length: int) -> PackedBatch:
    """Rows of tokens by shapes."""
    ints = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
    mask = jax.ShapeDtypeStruct((batch_size, length), jnp.bool_)
    return PackedBatch(tokens=ints, segment_ids=ints, positions=ints, targets=ints, loss_mask=mask)


def _pair_batch(batch_size: int, length: int) -> PairBatch:
    """Rows of pairs by shapes: pairs of `TOKENS_OF_A_PAIR`, the longest response twice the mean."""
    num_pairs = max(1, length // TOKENS_OF_A_PAIR)
    num_predicted = max(1, int(_RESPONSE_SHARE * length))
    longest = max(1, num_predicted // num_pairs)
    rows = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
    shape_BKSU = (batch_size, num_pairs, len(SIDES), longest)
    values = jax.ShapeDtypeStruct(shape_BKSU, jnp.float32)
    return PairBatch(
        tokens=rows,
        segment_ids=rows,
        positions=rows,
        targets=rows,
        predictions=jax.ShapeDtypeStruct((batch_size, num_predicted), jnp.int32),
        places=jax.ShapeDtypeStruct(shape_BKSU, jnp.int32),
        is_token=jax.ShapeDtypeStruct(shape_BKSU, jnp.bool_),
        reference=values,
        weights=values,
    )
