"""What jobs say that they compile: on CPU devices, and with the TPU's compiler if it is here."""

import dataclasses
import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import ConfigError
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.programs import Kind, held_bytes
from launch import cli
from launch.compile_check import main
from launch.jobs import JOBS
from reasoning_jax.weights.model_source import ModelConfig, architecture_of
from rec_jax.presets import onerec_1b
from rec_jax.programs import assumed_index
from rec_jax.semantic_ids.item_index import ItemIndex
from rec_jax.semantic_ids.prefix_index import build_prefix_index

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU's compiler is not installed (extra 'tpu'); nothing is compiled for TPUs",
)

TINY_REC = ["--preset", "demo_tiny", "--semantic-ids.level-sizes", "13", "17"]
TINY_ALIGN = ["--preset", "demo_tiny", "--align.candidates.batch-size", "16"]


def programs(job, *flags):
    request = cli.parse(JOBS, [job, *flags], program="test")
    assert request is not None and request.job.programs is not None
    return request.job.programs(request.config)


@pytest.mark.parametrize(
    ("job", "flags", "names"),
    [
        ("rec.pretrain", TINY_REC, ["train step"]),
        ("rec.evaluate", TINY_REC, ["sessions, 4 beams", "first items, 16 beams"]),
        ("rec.align", TINY_ALIGN, ["candidates, 8 beams", "dpo step"]),
        ("reasoning.sft", ["--preset", "tiny"], ["train step, all parameters"]),
        (
            "reasoning.sft",
            ["--preset", "tiny", "--lora.rank", "3"],
            ["train step, LoRA rank 3"],
        ),
        (
            "reasoning.prefer",
            [
                "--preset",
                "smollm2",
                "--model.source",
                "fresh:tiny",
                "--train.rows.row-length",
                "128",
            ],
            ["dpo step, LoRA rank 16"],
        ),
    ],
)
def test_programs_lower_for_a_mesh(job, flags, names):
    """On two devices: each argument's bytes are counted, a step needs FLOPs and does no fewer."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    found = programs(job, *flags)
    assert [one.name for one in found] == names
    for one in found:
        lowered = one.lower(mesh)
        sizes = {kind: held_bytes(tree) for kind, tree in one.held(mesh).items()}
        arguments = sum(
            math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize
            for leaf in jax.tree.leaves(lowered.args_info)
            if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        )
        # Over data alone: all is whole on a device but the batch.
        assert 0 <= arguments - sum(sizes.values()) <= 2 * sizes[Kind.INPUTS] + 64
        assert 0 < one.model_flops <= one.hardware_flops
        assert one.tokens > 0


def test_a_contrastive_pipeline_samples_and_has_three_more_programs():
    found = programs("reasoning.pipeline", "--preset", "llama3_8b_pod")[4:]
    assert [one.name for one in found] == [
        "contrast model step, LoRA rank 8",
        "contrastive scoring",
        "position step, LoRA rank 16",
    ]
    mesh = make_mesh(MeshConfig(data=1, fsdp=8), jax.devices())
    held = found[2].held(mesh)
    # 8.03 billion bfloat16 parameters over 8 devices, but for the norms, which each holds whole;
    # beside them float32 adapters, which have two moments.
    norms = 65 * 4096
    base = 2 * ((8_030_261_248 - norms) / 8 + norms)
    adapters = held_bytes(held[Kind.OPTIMIZER]) / 2
    assert held_bytes(held[Kind.PARAMETERS]) == pytest.approx(base + adapters, rel=1e-4)
    assert 41_943_040 * 4 / 8 < adapters < 41_943_040 * 4


def test_an_unknown_architecture_is_an_error():
    with pytest.raises(ConfigError, match=r"'models/mine' is not known.*llama3-8b"):
        architecture_of(ModelConfig(source="models/mine"))


def test_the_assumed_catalogue_has_the_form_of_a_real_one():
    """Of 60 items over 4 x 5 x 6 codes, evenly: same structure, types and number of leaves."""
    model = dataclasses.replace(onerec_1b().model, level_sizes=(4, 5, 6))
    codes = np.stack(np.unravel_index(np.arange(0, 120, 2), (4, 5, 6)), axis=1).astype(np.int32)
    real = build_prefix_index(ItemIndex(codes=codes, level_sizes=(4, 5, 6), fingerprint=""))
    assumed = assumed_index(model, 60)
    kinds = [[leaf.dtype for leaf in jax.tree.leaves(one)] for one in (real, assumed)]
    assert kinds[0] == kinds[1]
    assert (assumed.num_leaves, assumed.num_items) == (real.num_leaves, real.num_items)
    for name in ("starts", "codes", "leaf_starts"):
        ours, theirs = getattr(assumed, name), getattr(real, name)
        assert [leaf.shape for leaf in ours] == [leaf.shape for leaf in theirs]
    assert all(
        wide >= seen for wide, seen in zip(assumed.max_branching, real.max_branching, strict=True)
    )


def test_frozen_parameters_are_lowered_with_the_step():
    """The same arguments as the call: state, batch, key, and what nobody trains."""
    (one,) = programs("reasoning.sft", "--preset", "tiny", "--lora.rank", "3")
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    assert len(one.lower(mesh).args_info[0]) == 4


@needs_libtpu
def test_a_tiny_step_compiles_for_a_slice(capsys):
    line = ["rec.pretrain", *TINY_REC, "--topology", "v5e:2x2"]
    assert main(line) == 0
    out = capsys.readouterr().out
    assert "train step on v5e:2x2 (data=4): FITS" in out
    assert "ragged-dot-none" in out  # the grouped product, though this process runs on a CPU


@needs_libtpu
def test_the_least_slice_of_a_tiny_step_is_one_chip(capsys):
    assert main(["rec.pretrain", *TINY_REC, "--topology", "v5e:2x2", "--least"]) == 0
    out, err = capsys.readouterr()
    assert "least slice of this family: v5e:1x1" in out
    assert "v5e:1x1: fits" in err and "2x2" not in err


@needs_libtpu
def test_a_step_that_is_too_large_says_so(capsys):
    line = ["rec.pretrain", "--preset", "onerec_1b", "--topology", "v5e:1x1"]
    assert main(line) == 3
    assert "DOES NOT FIT" in capsys.readouterr().out
