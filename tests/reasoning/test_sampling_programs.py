"""What sampling tells the check before a run: the engine's own programs, with what lies there.

Nothing of a large model is made: programs are lowered from shapes.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from core_jax.errors import ConfigError
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.programs import Kind, held_bytes
from core_jax.sharding import match_rules
from launch import cli
from launch.jobs import JOBS
from reasoning_jax.contrastive_run import sampling_config
from reasoning_jax.model.shardings import RULES
from reasoning_jax.pod_presets import llama3_8b_pod
from reasoning_jax.presets import evaluate_tiny
from reasoning_jax.sampling import engine as engine_module
from reasoning_jax.sampling.rows import Rows, empty_rows, grow_rows
from reasoning_jax.sampling.weights import turner
from reasoning_jax.sampling_programs import assumed_prompt, assumed_slots, evaluate_programs
from reasoning_jax.weights.model_source import architecture_of
from tests.reasoning.model_cases import PLAIN, make_params

JITTED = ("read_prompts", "fill_rows", "decode_chunk")
ENDS = (5, 17)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:2])


@pytest.fixture(scope="module")
def config():
    """Responses of 101 tokens: some end early, so that rows are filled while others are full."""
    tiny = evaluate_tiny()
    return dataclasses.replace(
        tiny, sampling=dataclasses.replace(tiny.sampling, max_new_tokens=101)
    )


def bytes_of(program, mesh, kind):
    """Of a kind on a device while a program runs."""
    return sum(
        held_bytes(trees[kind])
        for trees in (program.held(mesh), program.beside(mesh))
        if kind in trees
    )


def chosen(job, preset, *flags):
    request = cli.parse(JOBS, [job, "--preset", preset, *flags], program="test")
    assert request is not None and request.job.programs is not None
    return {one.name.split(",")[0]: one for one in request.job.programs(request.config)}


def test_the_programs_are_those_that_the_engine_runs(config, mesh, monkeypatch):
    """To the last letter of their text: every array, sharding and constant at the assumed lengths.

    The engine samples from prompts of the assumed length. Each call of a jitted function at the
    assumed number of slots is lowered once more, as it was called.
    """
    texts = {}
    slots = assumed_slots(config)
    for name, function in [(name, getattr(engine_module, name)) for name in JITTED]:

        def spy(*arguments, name=name, jitted=function):
            rows = next((one for one in arguments if isinstance(one, Rows)), None)
            if name not in texts and (rows is None or rows.cache.num_slots == slots):
                texts[name] = jitted.lower(*arguments).as_text()
            return jitted(*arguments)

        monkeypatch.setattr(engine_module, name, spy)
    model = architecture_of(config.model)
    params = make_params(model)
    requests = [
        engine_module.SampleRequest(
            problem_id=f"p{problem}", sample=sample, prompt=(problem,) * assumed_prompt(config)
        )
        for problem in range(4)
        for sample in range(config.sampling.num_samples)
    ]
    turn = turner(model, params, mesh)
    found = engine_module.sample(
        model,
        turn(params),
        requests,
        sampling=config.sampling,
        engine=config.engine,
        decode=str,
        eos_ids=ENDS,
        mesh=mesh,
    )
    assert len(list(found)) == len(requests)
    turning, *others = evaluate_programs(config)
    lowered = [one.lower(mesh).as_text() for one in others]
    for name, text in zip(JITTED, lowered, strict=True):
        assert f"@jit_{name} " in text
        assert text == texts[name]
    placed = jax.device_put(params, match_rules(RULES, params, mesh))
    assert turning.lower(mesh).as_text() == turn.lower(placed).as_text()


@pytest.mark.parametrize("job", ["reasoning.rollout", "reasoning.evaluate"])
def test_arguments_are_counted(job, mesh):
    """Over data alone all is whole on a device but rows and prompts, of which it has half."""
    found = chosen(job, "tiny")
    assert list(found) == ["weights for decoding", "prefill", "filling of rows", "decoding"]
    for one in found.values():
        leaves = jax.tree.leaves(one.lower(mesh).args_info)
        arguments = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
        sizes = {kind: held_bytes(tree) for kind, tree in one.held(mesh).items()}
        split = sizes.get(Kind.CACHE, 0) + sizes.get(Kind.INPUTS, 0)
        # Entries of a filling are on both devices: 24 bytes for each of 4 rows, and a count.
        whole = sizes.get(Kind.PARAMETERS, 0) + 2 * split
        assert 0 <= whole - arguments <= 4 * 24 + 4 + 8


def test_a_pipeline_samples_with_its_own_settings():
    """256 rows; each slot has keys and values of 32 layers, 8 heads of 128 numbers.

    Keys and values are float32 on the CPU devices of this mesh (bfloat16 on chips).
    """
    mesh = make_mesh(MeshConfig(data=1, fsdp=8), jax.devices())
    found = chosen("reasoning.pipeline", "llama3_8b_pod")
    assert list(found)[:4] == ["weights for decoding", "prefill", "filling of rows", "decoding"]
    slots = assumed_slots(sampling_config(llama3_8b_pod(), 0))
    cache = 256 * slots * 2 * 32 * 8 * 128 * 4 / 8
    decoding = found["decoding"]
    assert held_bytes(decoding.held(mesh)[Kind.CACHE]) == pytest.approx(cache, rel=1e-5)
    # 8.03 billion parameters, of which the embedding table is only looked up; twice a
    # multiply-add; attention over all slots.
    products = 2 * (8_030_261_248 - 128_256 * 4096)
    attention = 4 * 32 * 32 * 128 * slots
    assert decoding.model_flops == pytest.approx(256 * 64 * (products + attention), rel=1e-9)
    assert decoding.tokens == 256 * decoding.loop_steps


@pytest.mark.parametrize("name", ["prefill", "filling of rows", "decoding"])
def test_settings_keep_of_the_cache_what_they_say(name):
    """Each is made as its flag says, and the cache counted again."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=8), jax.devices())
    job, preset = "reasoning.pipeline", "llama3_8b_pod"
    one = chosen(job, preset)[name]
    before = bytes_of(one, mesh, Kind.CACHE)
    settings = [setting for setting in one.settings(mesh) if Kind.CACHE in setting.keeps]
    assert {setting.flag.split()[0] for setting in settings} == {
        "--engine.prompts-per-prefill",
        "--engine.num-rows",
        "--engine.cache-dtype",
        "--sampling.max-new-tokens",
    }
    for setting in settings:
        changed = chosen(job, preset, *setting.flag.split())[name]
        kept = bytes_of(changed, mesh, Kind.CACHE) / before
        assert kept == pytest.approx(setting.keeps[Kind.CACHE], abs=1e-3)


def test_rows_that_the_mesh_does_not_divide_are_an_error(config):
    mesh = make_mesh(MeshConfig(), jax.devices()[:3])
    for one in evaluate_programs(config):
        with pytest.raises(ConfigError, match=r"num_rows is 4.*3 batch shards"):
            one.held(mesh)


def test_imported_samples_compile_nothing():
    with pytest.raises(ConfigError, match=r"imported is 'theirs\.jsonl'.*nothing is compiled"):
        chosen("reasoning.rollout", "tiny", "--imported", "theirs.jsonl")


def test_growing_rows_frees_what_it_copied():
    rows = empty_rows(PLAIN, 3, 5, jnp.dtype("float32"))
    old = rows.cache.keys + rows.cache.values
    grown = grow_rows(rows, 7)
    assert grown.cache.num_slots == 7
    assert all(part.is_deleted() for part in old)
    assert grown.tokens is rows.tokens
