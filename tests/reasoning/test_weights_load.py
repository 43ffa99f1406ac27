"""Hugging Face folders onto a mesh: values, shards, memory, and every refusal."""

import dataclasses
import math
import tracemalloc

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from safetensors.numpy import save_file

from core_jax.errors import ConfigError, DataError
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.sharding import match_rules
from reasoning_jax.model.config import LoraConfig
from reasoning_jax.model.decoder_lm import init_params
from reasoning_jax.model.lora import init_lora
from reasoning_jax.model.presets import llama3_8b, llama3_70b, qwen25_05b
from reasoning_jax.model.shardings import RULES
from reasoning_jax.weights import shard_load
from reasoning_jax.weights.hf_load import load_config, load_params
from reasoning_jax.weights.hf_names import adapter_leaves, model_leaves
from reasoning_jax.weights.safetensors_folder import SafetensorsFolder
from reasoning_jax.weights.shard_load import abstract_params, check_tensors, read_shard
from tests.reasoning.weight_cases import (
    BF16,
    assert_same_bits,
    expected_params,
    hf_tensors,
    small_config,
    write_folder,
)

VARIANTS = {
    "llama": {},
    "qwen2": {"qkv_bias": True},
    "tied": {"tied_embeddings": True},
    "tied_qwen2": {"qkv_bias": True, "tied_embeddings": True},
    "full_heads": {"num_kv_heads": 10},
}


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def divisible_config(**changes):
    """Sizes that a mesh of fsdp=2, tensor=2 divides: twice the primes."""
    sizes = {"vocab_size": 58, "model_dim": 52, "hidden_dim": 46, "num_kv_heads": 10}
    return small_config(**(sizes | changes))


class CountingSource:
    """A source that notes what is read."""

    def __init__(self, inner):
        self.inner, self.reads = inner, []

    origin = "counted"

    @property
    def specs(self):
        return self.inner.specs

    def read(self, name, bounds):
        part = self.inner.read(name, bounds)
        self.reads.append((name, part.nbytes))
        return part


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("num_files", [1, 3])
def test_parameters_are_the_tensors_by_the_reference_formulas(tmp_path, variant, num_files):
    config = small_config(**VARIANTS[variant])
    tensors = hf_tensors(config)
    folder = write_folder(tmp_path, config, tensors, num_files)
    assert load_config(folder) == config
    params = load_params(folder, config, mesh=one_device())
    assert_same_bits(params, expected_params(config, tensors))


@pytest.mark.parametrize("stored", [np.float32, np.float16, BF16])
@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_values_are_rounded_once_to_the_dtype_asked_for(tmp_path, stored, asked):
    config = small_config()
    tensors = hf_tensors(config, stored)
    params = load_params(
        write_folder(tmp_path, config, tensors), config, mesh=one_device(), dtype=asked
    )
    cast = {name: tensor.astype(np.dtype(asked)) for name, tensor in tensors.items()}
    assert_same_bits(params, expected_params(config, cast))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_tree_is_the_one_that_the_model_initialises(variant):
    config = small_config(**VARIANTS[variant])
    ours = abstract_params(model_leaves(config))
    theirs = jax.eval_shape(lambda key: init_params(config, key=key), jax.random.key(0))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), ours) == jax.tree.map(
        lambda a: (a.shape, a.dtype), theirs
    )


def test_the_tree_of_adapters_is_the_one_that_the_model_initialises():
    config, lora = small_config(), LoraConfig(rank=7, targets=("query", "out", "down"))
    ours = abstract_params(adapter_leaves(config, lora))
    theirs = jax.eval_shape(lambda key: init_lora(config, lora, key=key), jax.random.key(0))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), ours) == jax.tree.map(
        lambda a: (a.shape, a.dtype), theirs
    )


@pytest.mark.parametrize("sizes", [{"fsdp": 2, "tensor": 2}, {"fsdp": 4}, {"tensor": 2}])
def test_on_a_mesh_values_are_the_same_and_shardings_are_the_tables(tmp_path, sizes):
    config = divisible_config(qkv_bias=True)
    tensors = hf_tensors(config)
    mesh = make_mesh(MeshConfig(**sizes))
    params = load_params(write_folder(tmp_path, config, tensors, 2), config, mesh=mesh)
    assert_same_bits(params, expected_params(config, tensors))
    shardings = match_rules(RULES, abstract_params(model_leaves(config)), mesh)
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == shardings


def test_a_split_inner_dimension_of_the_heads_is_cut_out_too(tmp_path):
    """No rule of ours splits the width of a head, but one may: 14 over tensor=2."""
    config = divisible_config()
    tensors = hf_tensors(config)
    spec = jax.sharding.PartitionSpec
    rules = (
        (r"(query|key|value)/kernel$", spec(None, None, None, "tensor")),
        (r"out/kernel$", spec(None, None, "tensor", "fsdp")),
        *RULES,
    )
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    folder = write_folder(tmp_path, config, tensors)
    params = load_params(folder, config, mesh=mesh, rules=rules)
    assert_same_bits(params, expected_params(config, tensors))


def test_each_byte_is_read_once_and_only_a_layers_part_of_a_shard_at_a_time(tmp_path, monkeypatch):
    """Distinct shards tile a leaf, so what is read sums to the files' tensors."""
    config = divisible_config()
    tensors = hf_tensors(config, BF16)
    source = CountingSource(SafetensorsFolder(write_folder(tmp_path, config, tensors)))
    shards = []

    def watched(source, leaf, index, dtype):
        before = len(source.reads)
        shard = read_shard(source, leaf, index, dtype)
        shards.append((leaf, shard.nbytes, source.reads[before:]))
        return shard

    monkeypatch.setattr(shard_load, "read_shard", watched)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2, data=2))
    leaves = model_leaves(config)
    shard_load.load_leaves(source, leaves, mesh=mesh, rules=RULES, dtype="bfloat16")
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert sum(size for _, size in source.reads) == total
    shardings = match_rules(RULES, abstract_params(leaves), mesh)
    largest = max(
        2 * math.prod(sharding.shard_shape(leaf.shape))
        for sharding, leaf in zip(
            jax.tree.leaves(shardings), jax.tree.leaves(abstract_params(leaves)), strict=True
        )
    )
    assert max(size for _, size, _ in shards) == largest < total / 8
    for leaf, size, reads in shards:
        assert len(reads) == (leaf.num_layers or 1)
        assert {part for _, part in reads} == {size // (leaf.num_layers or 1)}


def test_a_shard_needs_its_own_bytes_and_one_layers_part(tmp_path):
    """Python's and NumPy's allocations at the peak; a fourth of a leaf of 7 layers is read."""
    config = small_config(num_layers=7, model_dim=128, hidden_dim=512)
    leaf = next(leaf for leaf in model_leaves(config) if leaf.path.endswith("up/kernel"))
    tensors = dict.fromkeys(leaf.names, np.ones((512, 128), np.float32))
    save_file(
        {name: t + i for i, (name, t) in enumerate(tensors.items())}, tmp_path / "model.safetensors"
    )
    source = SafetensorsFolder(tmp_path)
    index = (slice(None), slice(64, 128), slice(0, 256))
    read_shard(source, leaf, index, "float32")
    tracemalloc.start()
    shard = read_shard(source, leaf, index, "float32")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert shard.shape == (7, 64, 256)
    assert shard[:, 0, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert shard.nbytes <= peak <= shard.nbytes * (1 + 2 / 7) + 20_000


def test_llama_3_70b_on_16_devices_is_never_whole_on_a_host():
    """Two hosts of 8 devices, fsdp=8 x tensor=2, bfloat16.

    Each device holds a 16th of all but the norms, a host's own thus half of the 141 GB. Beside
    that, a host needs one shard, at most 80 x 8192 x 28672 / 16 numbers of 2 bytes = 2.35 GB,
    and one layer's part of it.
    """
    leaves = model_leaves(llama3_70b())
    abstract = abstract_params(leaves, "bfloat16")
    specs = jax.tree.map(
        lambda sharding: sharding.spec,
        match_rules(RULES, abstract, make_mesh(MeshConfig(fsdp=4, tensor=2))),
    )
    mesh = AbstractMesh((8, 2), ("fsdp", "tensor"))
    whole, shard_sizes = 0, []
    for leaf, spec in zip(jax.tree.leaves(abstract), jax.tree.leaves(specs), strict=True):
        whole += 2 * math.prod(leaf.shape)
        shard_sizes.append(2 * math.prod(NamedSharding(mesh, spec).shard_shape(leaf.shape)))
    assert whole == 2 * llama3_70b().num_params > 141e9
    assert max(shard_sizes) == 2 * 80 * 8192 * 28672 // 16
    assert max(shard_sizes) * (1 + 1 / 80) < whole / 50
    norms = 2 * 161 * 8192
    assert sum(shard_sizes) == (whole - norms) // 16 + norms


@pytest.mark.parametrize("preset", [llama3_8b, qwen25_05b])
def test_the_leaves_hold_every_parameter(preset):
    assert sum(math.prod(leaf.shape) for leaf in model_leaves(preset())) == preset().num_params


def test_missing_unexpected_and_misshapen_tensors_are_all_named(tmp_path):
    config = small_config()
    tensors = hf_tensors(config)
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(3, np.float32)
    tensors["model.layers.3.mlp.up_proj.weight"] = np.ones((23, 13), np.float32)
    tensors["lm_head.weight"] = np.ones((13, 29), np.float32)
    with pytest.raises(DataError) as caught:
        load_params(write_folder(tmp_path, config, tensors), config, mesh=one_device())
    for row in (
        "missing: 'model.layers.1.mlp.up_proj.weight'",
        "missing: 'model.norm.weight'",
        "unexpected: 'model.layers.0.self_attn.q_norm.weight'",
        "unexpected: 'model.layers.3.mlp.up_proj.weight'",
        "misshapen: 'lm_head.weight' is (13, 29), expected (29, 13)",
    ):
        assert f"\n  {row}\n" in str(caught.value)


def test_biases_without_a_config_that_has_them_are_unexpected(tmp_path):
    config = small_config(qkv_bias=True)
    folder = write_folder(tmp_path, config, hf_tensors(config))
    with pytest.raises(DataError, match=r"unexpected: 'model.layers.0.self_attn.q_proj.bias'"):
        load_params(folder, dataclasses.replace(config, qkv_bias=False), mesh=one_device())


def test_a_repeated_output_matrix_of_a_tied_model_is_accepted_if_equal(tmp_path, caplog):
    config = small_config(tied_embeddings=True)
    tensors = hf_tensors(config)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    folder = write_folder(tmp_path / "equal", config, tensors)
    with caplog.at_level("INFO"):
        params = load_params(folder, config, mesh=one_device())
    assert "head" not in params
    assert "repeats the tied embedding table" in caplog.text
    tensors["lm_head.weight"][28, 12] += 1
    folder = write_folder(tmp_path / "other", config, tensors)
    with pytest.raises(DataError, match=r"embeddings are tied, but 'lm_head.weight' is not"):
        load_params(folder, config, mesh=one_device())


def test_rotary_tables_of_old_files_are_counted_and_passed_over(tmp_path, caplog):
    config = small_config()
    tensors = hf_tensors(config)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(7, np.float32)
    with caplog.at_level("INFO"):
        load_params(write_folder(tmp_path, config, tensors), config, mesh=one_device())
    assert "passed over 1 tensors: model.layers.0.self_attn.rotary_emb.inv_freq" in caplog.text


def test_a_dtype_that_parameters_cannot_have_is_an_error(tmp_path):
    config = small_config()
    folder = write_folder(tmp_path, config, hf_tensors(config))
    with pytest.raises(ConfigError, match="dtype int8 were asked for; they can be float32 or bfl"):
        load_params(folder, config, mesh=one_device(), dtype="int8")


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[]", "holds a list")])
def test_a_config_that_cannot_be_read_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DataError, match=message):
        load_config(tmp_path)


def test_check_tensors_is_silent_on_what_fits(tmp_path):
    config = small_config()
    source = SafetensorsFolder(write_folder(tmp_path, config, hf_tensors(config)))
    check_tensors(source, model_leaves(config))
