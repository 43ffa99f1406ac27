"""Export: the files have the same bits as those that were loaded, and every refusal."""

import itertools
import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from core_jax.errors import ConfigError, DataError
from core_jax.mesh import MeshConfig, make_mesh
from reasoning_jax.model.config import LoraConfig
from reasoning_jax.model.decoder_lm import init_params
from reasoning_jax.model.lora import attach, init_lora
from reasoning_jax.weights.hf_export import TOKENIZER_FILES, export_model
from reasoning_jax.weights.hf_load import load_config, load_params
from tests.reasoning.weight_cases import (
    BF16,
    assert_same_bits,
    hf_tensors,
    small_config,
    write_folder,
)

VARIANTS = [{}, {"qkv_bias": True}, {"tied_embeddings": True, "qkv_bias": True}]


def mesh_of(num_devices, **sizes):
    return make_mesh(MeshConfig(**sizes), jax.devices()[:num_devices])


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("dtype", [np.dtype("float32"), BF16])
def test_load_then_export_gives_the_same_bits(tmp_path, changes, dtype):
    config = small_config(**changes)
    tensors = hf_tensors(config, dtype)
    folder = write_folder(tmp_path / "in", config, tensors, num_files=2)
    params = load_params(folder, config, mesh=mesh_of(1), dtype=dtype)
    export_model(tmp_path / "out", config, params)
    assert_same_bits(load_file(tmp_path / "out" / "model.safetensors"), tensors)
    assert load_config(tmp_path / "out") == config
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["dtype"] == written["torch_dtype"] == dtype.name


def test_export_then_load_gives_the_same_parameters_from_a_mesh_of_shards(tmp_path):
    config = small_config(vocab_size=58, model_dim=52, hidden_dim=46, num_kv_heads=10)
    folder = write_folder(tmp_path / "in", config, hf_tensors(config, BF16))
    params = load_params(folder, config, mesh=mesh_of(4, fsdp=2, tensor=2), dtype="bfloat16")
    export_model(tmp_path / "out", config, params)
    loaded = load_params(tmp_path / "out", config, mesh=mesh_of(1), dtype="bfloat16")
    assert_same_bits(loaded, jax.device_get(params))


def test_fresh_parameters_come_back(tmp_path):
    config = small_config(qkv_bias=True)
    params = init_params(config, key=jax.random.key(3))
    export_model(tmp_path, config, params)
    assert_same_bits(load_params(tmp_path, config, mesh=mesh_of(1)), params)


def test_files_hold_at_most_the_bytes_asked_for_and_the_index_finds_all(tmp_path):
    config = small_config()
    tensors = hf_tensors(config)
    largest = max(tensor.nbytes for tensor in tensors.values())
    params = load_params(write_folder(tmp_path / "in", config, tensors), config, mesh=mesh_of(1))
    export_model(tmp_path / "out", config, params, max_shard_bytes=largest)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    found, sizes = {}, []
    for name in files:
        part = load_file(tmp_path / "out" / name)
        sizes.append(sum(tensor.nbytes for tensor in part.values()))
        found |= part
        with safe_open(tmp_path / "out" / name, framework="np") as file:
            assert file.metadata() == {"format": "pt"}
    assert max(sizes) <= largest
    assert all(first + second > largest for first, second in itertools.pairwise(sizes))
    assert_same_bits(found, tensors)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert_same_bits(load_params(tmp_path / "out", config, mesh=mesh_of(1)), params)


def test_a_tensor_larger_than_a_file_has_one_to_itself(tmp_path):
    config = small_config()
    tensors = hf_tensors(config)
    params = load_params(write_folder(tmp_path / "in", config, tensors), config, mesh=mesh_of(1))
    export_model(tmp_path / "out", config, params, max_shard_bytes=1)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == len(tensors)


def test_tokenizer_files_and_token_ids_come_along(tmp_path):
    config = small_config()
    source = write_folder(tmp_path / "in", config, hf_tensors(config))
    for name in TOKENIZER_FILES:
        (source / name).write_text(f"content of {name}")
    (source / "README.md").write_text("stays")
    fields = json.loads((source / "config.json").read_text())
    ids = {"bos_token_id": 3, "eos_token_id": [5, 7], "pad_token_id": None}
    (source / "config.json").write_text(json.dumps(fields | ids))
    params = load_params(source, config, mesh=mesh_of(1))
    export_model(tmp_path / "out", config, params, source_folder=source)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {name: written[name] for name in ids} == ids
    for name in TOKENIZER_FILES:
        assert (tmp_path / "out" / name).read_text() == f"content of {name}"
    assert not (tmp_path / "out" / "README.md").exists()


def test_old_weights_are_not_mixed_with_new_ones(tmp_path):
    config = small_config()
    params = init_params(config, key=jax.random.key(0))
    export_model(tmp_path, config, params)
    with pytest.raises(DataError, match=r"already holds weights \(model.safetensors\); export to"):
        export_model(tmp_path, config, params)


def test_parameters_of_another_architecture_are_named(tmp_path):
    params = init_params(small_config(), key=jax.random.key(0))
    with pytest.raises(DataError) as caught:
        export_model(tmp_path, small_config(hidden_dim=31, tied_embeddings=True), params)
    assert "misshapen: 'layers/mlp/up/kernel' is (3, 13, 23), expected (3, 13, 31)" in str(
        caught.value
    )
    assert "unexpected: 'head/kernel'" in str(caught.value)
    with pytest.raises(DataError, match="missing: 'layers/attention/query/bias'"):
        export_model(tmp_path, small_config(qkv_bias=True), params)
    adapters = init_lora(small_config(), LoraConfig(rank=2), key=jax.random.key(1))
    with pytest.raises(DataError, match=r"query/lora_a'(.|\n)*or merged first"):
        export_model(tmp_path, small_config(), attach(params, adapters, 1.0))
    assert not list(tmp_path.iterdir())


def test_a_file_size_that_cannot_be_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="max_shard_bytes is 0; it must be positive"):
        export_model(tmp_path, small_config(), {}, max_shard_bytes=0)
