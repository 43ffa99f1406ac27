"""What sampling compiles: the turning of weights, reading prompts, filling rows, decoding a chunk.

The functions are the engine's own. They run on the mesh of one process; a slice of several hosts
samples with one run per host, so that the mesh to check is a host's (v5e:2x2, v5e:2x4).

Lengths depend on the data and are assumed: prompts of `QUESTION_TOKENS` and, before them, the
worked examples of the prompt's style; rows that are as long as the longest response lets them be.
Shares of memory that a program does not read but that lie there meanwhile are counted
(`Program.beside`): rows while prompts are read, weights while rows are filled, the prompts of a
group while their samples are decoded.

Dimension key: B rows, P prompts, T tokens of a prompt, S cache slots, V vocabulary, I rows to fill,
E tokens that end a response.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from core_jax.arrays import Params, PyTree
from core_jax.errors import ConfigError
from core_jax.mesh import BATCH_AXES
from core_jax.programs import (
    Kind,
    Program,
    Setting,
    abstract_batch,
    abstract_params,
    abstract_replicated,
    placed,
    spread_settings,
)
from reasoning_jax.align_config import PipelineConfig
from reasoning_jax.config import EvaluateConfig
from reasoning_jax.contrastive_run import sampling_config
from reasoning_jax.data.prompts import example_text
from reasoning_jax.model.config import DecoderConfig
from reasoning_jax.model.decoding import DecodingWeights, for_decoding
from reasoning_jax.model.flops import token_flops
from reasoning_jax.model.kv_cache import KvCache, empty_cache
from reasoning_jax.model.shardings import CACHE_SPEC, DECODING_RULES, RULES
from reasoning_jax.sampling.rows import (
    Filling,
    Rows,
    decode_chunk,
    empty_rows,
    fill_rows,
    read_prompts,
    row_shardings,
)
from reasoning_jax.sampling.shapes import (
    batch_shards,
    cache_dtype,
    check_rows,
    grown_slots,
    needed_slots,
    prompts_shape,
)
from reasoning_jax.sampling.weights import turner
from reasoning_jax.weights.model_source import architecture_of, initialiser

QUESTION_TOKENS = 192
"""The longest question of a group with what its prompt puts around it."""
_CHARACTERS_PER_TOKEN = 3.5
"""Of worked examples, which are full of numbers."""
_NUM_ENDS = 2
"""Tokens that end a response: the end of the sequence, and that of a turn."""


def evaluate_programs(config: EvaluateConfig) -> tuple[Program, ...]:
    """What `reasoning.rollout` and `reasoning.evaluate` compile, in the order in which it runs.

    Raises:
      ConfigError: samples are imported, so that nothing is compiled.
    """
    if config.imported:
        raise ConfigError(
            f"imported is '{config.imported}', whose samples are graded; nothing is compiled. "
            "Leave it out to check the sampling of the model"
        )
    engine = _Engine(config=config)
    return (engine.turning(), engine.reading(), engine.filling(), engine.decoding())


def pipeline_sampling(config: PipelineConfig) -> tuple[Program, ...]:
    """The same for the training solutions of a contrastive pipeline."""
    return evaluate_programs(sampling_config(config, config.seeds[0]))


def assumed_prompt(config: EvaluateConfig) -> int:
    """Tokens of the longest prompt; one that leaves room for the longest response.

    Args:
      config: the prompt's style, the longest response, the model's context.
    """
    examples = len(example_text(config.prompt.style)) / _CHARACTERS_PER_TOKEN
    room = architecture_of(config.model).max_positions - config.sampling.max_new_tokens
    return max(1, min(round(examples) + QUESTION_TOKENS, room))


def assumed_slots(config: EvaluateConfig) -> int:
    """Slots per row once the longest response of the longest prompt takes its last chunk."""
    longest = assumed_prompt(config) + config.sampling.max_new_tokens - 1
    needed = needed_slots(architecture_of(config.model), config.engine, longest)
    return grown_slots(config.engine, needed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Engine:
    """The programs of a rollout, and the abstract values that go from one to the next."""

    config: EvaluateConfig

    @property
    def model(self) -> DecoderConfig:
        """The architecture."""
        return architecture_of(self.config.model)

    def turning(self) -> Program:
        """Both copies of the weights are there at once here, and here alone."""

        def params(mesh: Mesh) -> Params:
            return abstract_params(self._make_params, RULES, mesh)

        def lower(mesh: Mesh) -> jax.stages.Lowered:
            whole = params(mesh)
            return cast(Any, turner(self.model, whole, mesh)).lower(whole)

        return self._program(
            "weights for decoding",
            lower,
            held=lambda mesh: {Kind.PARAMETERS: params(mesh)},
            beside=lambda mesh: {},
            tokens=0,
            flops=0.0,
            settings=self._turning_settings,
        )

    def reading(self) -> Program:
        """A group of prompts is read while all rows but one are in use."""
        engine = self.config.engine

        def lower(mesh: Mesh) -> jax.stages.Lowered:
            tokens, lengths = self._prompts(mesh)
            dtype = cache_dtype(self.model, engine, mesh)
            return read_prompts.lower(self.model, self._weights(mesh), tokens, lengths, dtype, mesh)

        num_prompts, length = prompts_shape(engine, assumed_prompt(self.config), None)
        products, attention = token_flops(self.model, length)
        head = 2.0 * self.model.vocab_size * self.model.model_dim
        return self._program(
            f"prefill, {num_prompts} prompts",
            lower,
            held=lambda mesh: {
                Kind.PARAMETERS: self._weights(mesh),
                Kind.INPUTS: self._prompts(mesh),
            },
            beside=lambda mesh: {Kind.CACHE: self._rows(mesh)},
            tokens=num_prompts * length,
            # The output matrix is read for the last token of each prompt alone.
            flops=num_prompts * (length * (products - head + attention) + head),
            settings=functools.partial(self._settings, reads=True),
        )

    def filling(self) -> Program:
        """Prompts are copied into all rows, and the first token of each is drawn."""
        config = self.config

        def arguments(mesh: Mesh) -> tuple[PyTree, ...]:
            return (self._rows(mesh), *self._group(mesh), self._filling(mesh), self._ends(mesh))

        def lower(mesh: Mesh) -> jax.stages.Lowered:
            return fill_rows.lower(self.model, config.sampling, *arguments(mesh), mesh)

        def held(mesh: Mesh) -> dict[Kind, PyTree]:
            rows, logits, cache, *inputs = arguments(mesh)
            return {Kind.CACHE: (rows, cache), Kind.INPUTS: (logits, inputs)}

        return self._program(
            "filling of rows",
            lower,
            held=held,
            beside=lambda mesh: {Kind.PARAMETERS: self._weights(mesh)},
            tokens=config.engine.num_rows,
            flops=0.0,
            loop_steps=config.engine.num_rows,
            settings=self._settings,
        )

    def decoding(self) -> Program:
        """All rows get tokens, at their full length; the loop over a chunk's steps is one call."""
        config = self.config
        rows, steps = config.engine.num_rows, config.engine.steps_per_chunk

        def arguments(mesh: Mesh) -> tuple[DecodingWeights, Rows, PyTree]:
            return self._weights(mesh), self._rows(mesh), self._ends(mesh)

        def lower(mesh: Mesh) -> jax.stages.Lowered:
            return decode_chunk.lower(self.model, config.sampling, steps, *arguments(mesh), mesh)

        def held(mesh: Mesh) -> dict[Kind, PyTree]:
            weights, rows, ends = arguments(mesh)
            return {Kind.PARAMETERS: weights, Kind.CACHE: rows, Kind.INPUTS: ends}

        slots = assumed_slots(config)
        # `token_flops` takes a token to see half of a row; here each sees nearly all of it.
        products, attention = token_flops(self.model, 2 * slots)
        return self._program(
            f"decoding, {rows} rows, {steps} steps",
            lower,
            held=held,
            beside=lambda mesh: {Kind.CACHE: self._group(mesh)},
            tokens=rows * steps,
            flops=rows * steps * (products + attention),
            loop_steps=steps,
            settings=self._settings,
        )

    def _program(
        self,
        name: str,
        lower: Callable[[Mesh], jax.stages.Lowered],
        *,
        held: Callable[[Mesh], Mapping[Kind, PyTree]],
        beside: Callable[[Mesh], Mapping[Kind, PyTree]],
        tokens: int,
        flops: float,
        settings: Callable[[Mesh], list[Setting]],
        loop_steps: int = 1,
    ) -> Program:
        """A program whose FLOPs are all needed."""

        def checked(mesh: Mesh) -> Mapping[Kind, PyTree]:
            check_rows(self.config.engine, mesh)
            return held(mesh)

        return Program(
            name=name,
            mesh=self.config.mesh,
            lower=lower,
            held=checked,
            beside=beside,
            model_flops=flops,
            hardware_flops=flops,
            tokens=tokens,
            batch_size=self.config.engine.num_rows,
            num_microbatches=1,
            settings=settings,
            loop_steps=loop_steps,
        )

    def _make_params(self) -> Params:
        return initialiser(self.config.model, self.model)(jax.random.key(0))

    def _weights(self, mesh: Mesh) -> DecodingWeights:
        def make() -> Any:
            return for_decoding(self.model, self._make_params())

        return cast(DecodingWeights, abstract_params(make, DECODING_RULES, mesh))

    def _prompts(self, mesh: Mesh) -> PyTree:
        """Tokens [P, T] and lengths [P]."""
        shape = prompts_shape(self.config.engine, assumed_prompt(self.config), mesh)
        both = tuple(jax.ShapeDtypeStruct(one, jnp.int32) for one in (shape, shape[:1]))
        return abstract_batch(both, mesh)

    def _group(self, mesh: Mesh) -> tuple[PyTree, KvCache]:
        """Logits [V, P] and the cache of P prompts, as `read_prompts` leaves them."""
        num_prompts, length = prompts_shape(self.config.engine, assumed_prompt(self.config), mesh)
        logits = jax.ShapeDtypeStruct(
            (self.model.vocab_size, num_prompts),
            jnp.float32,
            sharding=NamedSharding(mesh, PartitionSpec(None, BATCH_AXES)),
        )
        dtype = cache_dtype(self.model, self.config.engine, mesh)
        cache = jax.eval_shape(
            functools.partial(empty_cache, self.model, num_prompts, length, dtype)
        )
        spread = jax.tree.map(lambda _: NamedSharding(mesh, CACHE_SPEC), cache)
        return logits, placed(cache, spread)

    def _rows(self, mesh: Mesh) -> Rows:
        """Rows at their full length."""
        engine = self.config.engine
        dtype = cache_dtype(self.model, engine, mesh)
        slots = assumed_slots(self.config)
        rows = jax.eval_shape(
            functools.partial(empty_rows, self.model, engine.num_rows, slots, dtype)
        )
        return placed(rows, row_shardings(rows, mesh))

    def _filling(self, mesh: Mesh) -> Filling:
        """Entries for all rows."""
        signed = jax.ShapeDtypeStruct((self.config.engine.num_rows,), jnp.int32)
        unsigned = jax.ShapeDtypeStruct(signed.shape, jnp.uint32)
        filling = Filling(
            prompts=signed,
            rows=signed,
            lengths=signed,
            last_positions=signed,
            problems=unsigned,
            samples=unsigned,
            count=jax.ShapeDtypeStruct((), jnp.int32),
        )
        return cast(Filling, abstract_replicated(filling, mesh))

    def _ends(self, mesh: Mesh) -> PyTree:
        """Tokens [E] that end a response."""
        return abstract_replicated(jax.ShapeDtypeStruct((_NUM_ENDS,), jnp.int32), mesh)

    def _settings(self, mesh: Mesh, *, reads: bool = False) -> list[Setting]:
        """Changes that take less memory.

        Args:
          mesh: where it is to run.
          reads: whether prompts are read, which has the rows' cache beside it and no other yet.
        """
        engine, model = self.config.engine, self.config.model
        rows, group = _num_bytes(self._rows(mesh).cache), _num_bytes(self._group(mesh)[1])
        group = 0 if reads else group
        fewer_rows, fewer_prompts = (
            {Kind.CACHE: 1 - 0.5 * part / (rows + group)} for part in (rows, group)
        )
        busy = {Kind.TEMPORARIES: 0.5}
        found = [
            Setting(
                flag=f"--engine.prompts-per-prefill {max(1, engine.prompts_per_prefill // 2)}",
                what="half the prompts in one reading; samples of the same distribution",
                keeps=fewer_prompts | (busy | {Kind.INPUTS: 0.5} if reads else {}),
            ),
            *self._shorter(rows / (rows + group)),
            *spread_settings(mesh, "--mesh"),
        ]
        if engine.num_rows % 2 == 0 and engine.num_rows // 2 % batch_shards(mesh) == 0:
            found.append(
                Setting(
                    flag=f"--engine.num-rows {engine.num_rows // 2}",
                    what="half the rows side by side, twice the steps; the same distribution",
                    keeps=fewer_rows | ({} if reads else busy),
                )
            )
        if cache_dtype(self.model, engine, mesh).itemsize > 2:
            found.append(
                Setting(
                    flag="--engine.cache-dtype bfloat16",
                    what="keys and values in half the bytes; lower precision",
                    keeps={Kind.CACHE: 0.5},
                )
            )
        if model.dtype.dtype.itemsize > 2:
            found.append(
                Setting(
                    flag="--model.dtype bfloat16",
                    what="weights and activations in half the bytes; lower precision",
                    keeps={Kind.PARAMETERS: 0.5, Kind.TEMPORARIES: 0.6},
                )
            )
        return found

    def _turning_settings(self, mesh: Mesh) -> list[Setting]:
        """Changes of the dtypes of the two copies, and devices that share them."""
        found = spread_settings(mesh, "--mesh")
        for name, kind in (("dtype", Kind.TEMPORARIES), ("param_dtype", Kind.PARAMETERS)):
            if getattr(self.config.model, name).dtype.itemsize > 2:
                found.append(
                    Setting(
                        flag=f"--model.{name.replace('_', '-')} bfloat16",
                        what="one of the two copies in half the bytes; lower precision",
                        keeps={kind: 0.5},
                    )
                )
        return found

    def _shorter(self, share: float) -> list[Setting]:
        """Half the longest response; `share` of the cache is that of rows."""
        half = self.config.sampling.max_new_tokens // 2
        if not half:
            return []
        sampling = dataclasses.replace(self.config.sampling, max_new_tokens=half)
        slots = assumed_slots(dataclasses.replace(self.config, sampling=sampling))
        kept = slots / assumed_slots(self.config)
        return [
            Setting(
                flag=f"--sampling.max-new-tokens {half}",
                what="longer responses are cut off; another sampling",
                keeps={Kind.CACHE: 1 - share * (1 - kept)},
            )
        ]


def _num_bytes(tree: PyTree) -> int:
    """Bytes of arrays or their shapes, over all devices."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
