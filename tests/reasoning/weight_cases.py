"""Small models of prime sizes under Hugging Face's names, with made-up weights."""

import json
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from reasoning_jax.model.config import DecoderConfig
from reasoning_jax.model.hf_config import to_hf_config
from reasoning_jax.model.lora import init_lora
from reasoning_jax.weights.peft import Adapter

BF16 = np.dtype(ml_dtypes.bfloat16)


def small_config(**changes):
    """3 layers; every size that occurs is another number."""
    sizes = {
        "vocab_size": 29,
        "model_dim": 13,
        "hidden_dim": 23,
        "num_layers": 3,
        "num_heads": 10,
        "num_kv_heads": 5,
        "head_dim": 14,
    }
    return DecoderConfig(**(sizes | changes))


def hf_shapes(config):
    """Name to shape as the reference documents them, written without our table of leaves."""
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    model, hidden = config.model_dim, config.hidden_dim
    shapes = {"model.embed_tokens.weight": (config.vocab_size, model)}
    for layer in range(config.num_layers):
        place = f"model.layers.{layer}"
        shapes |= {
            f"{place}.input_layernorm.weight": (model,),
            f"{place}.post_attention_layernorm.weight": (model,),
            f"{place}.self_attn.q_proj.weight": (queries, model),
            f"{place}.self_attn.k_proj.weight": (keys, model),
            f"{place}.self_attn.v_proj.weight": (keys, model),
            f"{place}.self_attn.o_proj.weight": (model, queries),
            f"{place}.mlp.gate_proj.weight": (hidden, model),
            f"{place}.mlp.up_proj.weight": (hidden, model),
            f"{place}.mlp.down_proj.weight": (model, hidden),
        }
        if config.qkv_bias:
            for name, size in (("q", queries), ("k", keys), ("v", keys)):
                shapes[f"{place}.self_attn.{name}_proj.bias"] = (size,)
    shapes["model.norm.weight"] = (model,)
    if not config.tied_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, model)
    return shapes


def made_up(shape, number, scale=0.3):
    """Values by arithmetic, no two tensors alike, the same on every machine."""
    places = np.arange(math.prod(shape), dtype=np.int64)
    mixed = (places * 7919 + number * 104729 + places * places * 31) % 10007
    return ((mixed / 10007 - 0.5) * 2 * scale).astype(np.float32).reshape(shape)


def hf_tensors(config, dtype=np.float32):
    """Every tensor; norms around one."""
    tensors = {}
    for number, (name, shape) in enumerate(hf_shapes(config).items()):
        values = made_up(shape, number) + (1.0 if "norm" in name else 0.0)
        tensors[name] = values.astype(dtype)
    return tensors


def made_up_adapter(config, lora):
    """Adapters by arithmetic, A and B both far from zero."""
    shapes = jax.eval_shape(lambda key: init_lora(config, lora, key=key), jax.random.key(0))
    leaves, structure = jax.tree.flatten(shapes)
    values = [jnp.asarray(made_up(leaf.shape, n)) for n, leaf in enumerate(leaves)]
    return Adapter(config=lora, params=jax.tree.unflatten(structure, values))


def write_folder(folder, config, tensors, num_files=1):
    """A model's folder: config.json, and one file or several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_hf_config(config)))
    if num_files == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {}
    names = list(tensors)
    for number in range(num_files):
        file_name = f"model-{number + 1:05d}-of-{num_files:05d}.safetensors"
        part = {name: tensors[name] for name in names[number::num_files]}
        save_file(part, folder / file_name)
        weight_map |= dict.fromkeys(part, file_name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def expected_params(config, tensors):
    """Our tree from the tensors by the formulas of the reference, whole and in NumPy."""
    heads = {"query": config.num_heads, "key": config.num_kv_heads, "value": config.num_kv_heads}
    model, head_dim = config.model_dim, config.head_dim

    def stacked(name, turn=lambda tensor: tensor):
        return np.stack(
            [turn(tensors[f"model.layers.{i}.{name}"]) for i in range(config.num_layers)]
        )

    attention = {}
    for target, count in heads.items():
        name = f"self_attn.{target[0]}_proj"
        attention[target] = {
            "kernel": stacked(f"{name}.weight", lambda t, n=count: t.T.reshape(model, n, head_dim))
        }
        if config.qkv_bias:
            attention[target]["bias"] = stacked(
                f"{name}.bias", lambda t, n=count: t.reshape(n, head_dim)
            )
    attention["out"] = {
        "kernel": stacked(
            "self_attn.o_proj.weight", lambda t: t.T.reshape(config.num_heads, head_dim, model)
        )
    }
    params = {
        "embed": {"table": tensors["model.embed_tokens.weight"]},
        "layers": {
            "attention_norm": {"scale": stacked("input_layernorm.weight")},
            "attention": attention,
            "mlp_norm": {"scale": stacked("post_attention_layernorm.weight")},
            "mlp": {
                name: {"kernel": stacked(f"mlp.{name}_proj.weight", lambda t: t.T)}
                for name in ("gate", "up", "down")
            },
        },
        "final_norm": {"scale": tensors["model.norm.weight"]},
    }
    if not config.tied_embeddings:
        params["head"] = {"kernel": tensors["lm_head.weight"].T}
    return params


def assert_same_bits(found, expected):
    """Both trees have the same structure, shapes, dtypes and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert ours.dtype == theirs.dtype, name
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs), err_msg=name)
