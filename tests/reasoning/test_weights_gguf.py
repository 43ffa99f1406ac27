"""GGUF files: config, types, the order of query and key rows, and every refusal."""

import dataclasses

import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize

from core_jax.errors import ConfigError, DataError
from core_jax.mesh import MeshConfig, make_mesh
from reasoning_jax.weights.gguf_load import GgufFile, half_order, load_gguf
from tests.reasoning.weight_cases import (
    assert_same_bits,
    expected_params,
    hf_tensors,
    small_config,
)

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name):
    stem, _, kind = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    _, _, layer, module = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[module]}.{kind}"


def quantisable_config(**changes):
    """Rows of 32 numbers, the size of a block; the rest primes or twice primes."""
    sizes = {"model_dim": 32, "hidden_dim": 64, "num_heads": 10, "num_kv_heads": 5, "head_dim": 32}
    return small_config(**(sizes | changes))


def stored_order(weight, num_heads):
    """What a converter to GGUF does to query and key rows: halves of a head become pairs."""
    head_dim = weight.shape[0] // num_heads
    halves = weight.reshape(num_heads, 2, head_dim // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, config, tensors, kind="F32", metadata=(), extra=(), drop=()):
    """Writes a file as converters do; returns the tensors that its types can represent."""
    architecture = "qwen2" if config.qkv_bias else "llama"
    writer = GGUFWriter(path, architecture)
    numbers = {
        "block_count": config.num_layers,
        "context_length": config.max_positions,
        "embedding_length": config.model_dim,
        "feed_forward_length": config.hidden_dim,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
    }
    numbers = {name: value for name, value in numbers.items() if name not in drop}
    for name, value in numbers.items():
        writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", config.norm_eps)
    writer.add_float32(f"{architecture}.rope.freq_base", config.rope_theta)
    for add, name, value in metadata:
        getattr(writer, add)(f"{architecture}.{name}", value)
    represented = {}
    for name, tensor in [*tensors.items(), *extra]:
        written = gguf_name(name) if name in tensors else name
        heads = {"q": config.num_heads, "k": config.num_kv_heads}.get(name[-13:-12])
        is_turned = heads and name.endswith("_proj.weight") and not config.qkv_bias
        stored = stored_order(tensor, heads) if is_turned else tensor
        if tensor.ndim == 1 or kind == "F32":
            writer.add_tensor(written, np.ascontiguousarray(stored))
            represented[name] = tensor
            continue
        if kind == "F16":
            writer.add_tensor(written, stored.astype(np.float16))
            represented[name] = tensor.astype(np.float16).astype(np.float32)
            continue
        code = GGMLQuantizationType[kind]
        writer.add_tensor(written, quantize(stored, code), raw_dtype=code)
        represented[name] = dequantize(quantize(tensor, code), code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return represented


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize(
    "changes", [{}, {"tied_embeddings": True}, {"qkv_bias": True}, {"num_kv_heads": 10}]
)
def test_a_file_gives_back_what_its_types_can_represent(tmp_path, kind, changes):
    """Quantisation works on blocks within a row, so the order of rows does not alter it."""
    config = quantisable_config(**changes)
    represented = write_gguf(tmp_path / "m.gguf", config, hf_tensors(config), kind)
    file = GgufFile(tmp_path / "m.gguf")
    assert file.config == config
    assert_same_bits(load_gguf(file, mesh=one_device()), expected_params(config, represented))


def test_shards_are_those_of_the_whole(tmp_path):
    config = quantisable_config(vocab_size=58, num_kv_heads=10)
    represented = write_gguf(tmp_path / "m.gguf", config, hf_tensors(config), "Q8_0")
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    params = load_gguf(GgufFile(tmp_path / "m.gguf"), mesh=mesh)
    assert_same_bits(params, expected_params(config, represented))
    assert not params["layers"]["mlp"]["up"]["kernel"].is_fully_replicated


def test_the_rows_of_heads_are_put_back():
    """`half_order` undoes the converter's reordering, for any rows."""
    rows = np.arange(5 * 14)[:, None] * np.asarray([[1, 100]])
    assert not np.array_equal(stored_order(rows, 5), rows)
    np.testing.assert_array_equal(stored_order(rows, 5)[half_order(5, 14)], rows)


def test_what_metadata_leaves_out_follows_from_the_rest(tmp_path):
    config = quantisable_config(num_heads=5, head_dim=2, model_dim=10, hidden_dim=23)
    left_out = ("attention.head_count_kv", "attention.key_length", "rope.dimension_count")
    write_gguf(tmp_path / "m.gguf", config, hf_tensors(config), drop=left_out)
    assert GgufFile(tmp_path / "m.gguf").config == config


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (("add_string", "rope.scaling.type", "yarn"), "scaled by 'yarn', which is not read"),
        (("add_uint32", "expert_count", 7), "llama.expert_count is 7, which is not computed"),
        (("add_uint32", "attention.sliding_window", 11), "sliding_window is 11"),
        (("add_uint32", "rope.dimension_count", 16), "rope.dimension_count is 16 for heads of 32"),
        (("add_array", "attention.head_count", [10, 5, 10]), "needs one number"),
    ],
)
def test_mathematics_that_is_not_computed_is_refused(tmp_path, metadata, message):
    config = quantisable_config()
    path = tmp_path / "m.gguf"
    write_gguf(path, config, hf_tensors(config), metadata=[metadata], drop=metadata[1:2])
    with pytest.raises(ConfigError, match=message):
        GgufFile(path)


def test_a_table_of_rotary_factors_is_refused(tmp_path):
    config = quantisable_config()
    extra = [("rope_freqs.weight", np.ones(16, np.float32))]
    write_gguf(tmp_path / "m.gguf", config, hf_tensors(config), extra=extra)
    with pytest.raises(ConfigError, match=r"table 'rope_freqs.weight', which is not read from"):
        GgufFile(tmp_path / "m.gguf")


def test_absent_metadata_is_named(tmp_path):
    config = quantisable_config()
    write_gguf(tmp_path / "m.gguf", config, hf_tensors(config), drop=["block_count"])
    with pytest.raises(ConfigError, match=r"llama.block_count is None; the architecture needs"):
        GgufFile(tmp_path / "m.gguf")


def test_another_architecture_is_refused(tmp_path):
    writer = GGUFWriter(tmp_path / "m.gguf", "qwen3")
    writer.add_tensor("a", np.ones(7, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ConfigError, match=r"architecture is 'qwen3'. Did you mean 'qwen2'"):
        GgufFile(tmp_path / "m.gguf")


@pytest.mark.parametrize("kind", ["Q5_1", "BF16"])
def test_a_type_that_is_not_read_is_named(tmp_path, kind):
    config = quantisable_config()
    write_gguf(tmp_path / "m.gguf", config, hf_tensors(config), kind)
    with pytest.raises(DataError, match=rf"'blk.2.ffn_up.weight' \({kind}\).*known are F32, F16"):
        GgufFile(tmp_path / "m.gguf")


def test_missing_and_unexpected_tensors_are_named(tmp_path):
    config = quantisable_config()
    tensors = hf_tensors(config)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    extra = [("blk.0.attn_q_norm.weight", np.ones(7, np.float32))]
    write_gguf(tmp_path / "m.gguf", config, tensors, extra=extra)
    with pytest.raises(DataError) as caught:
        load_gguf(GgufFile(tmp_path / "m.gguf"), mesh=one_device())
    assert "missing: 'model.layers.1.mlp.up_proj.weight'" in str(caught.value)
    assert "unexpected: 'blk.0.attn_q_norm.weight'" in str(caught.value)


def test_a_file_without_an_embedding_table_is_no_language_model(tmp_path):
    config = quantisable_config()
    tensors = hf_tensors(config)
    del tensors["model.embed_tokens.weight"]
    write_gguf(tmp_path / "m.gguf", config, tensors)
    with pytest.raises(DataError, match=r"has no tensor 'token_embd.weight'"):
        GgufFile(tmp_path / "m.gguf")


@pytest.mark.parametrize("keep", [0, 3, 100, -1000])
def test_a_file_that_was_cut_off_is_named(tmp_path, keep):
    config = quantisable_config()
    path = tmp_path / "m.gguf"
    write_gguf(path, config, hf_tensors(config))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"m.gguf' is not a whole GGUF file"):
        GgufFile(path)
    with pytest.raises(DataError, match="is not a whole GGUF file"):
        GgufFile(tmp_path / "absent.gguf")


def test_parameters_can_be_had_in_bfloat16(tmp_path):
    config = dataclasses.replace(quantisable_config(), tied_embeddings=True)
    write_gguf(tmp_path / "m.gguf", config, hf_tensors(config))
    params = load_gguf(GgufFile(tmp_path / "m.gguf"), mesh=one_device(), dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
