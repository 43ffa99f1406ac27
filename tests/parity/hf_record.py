"""The small models that are compared with transformers, and what ours make of them.

Dimension key: B rows, T tokens, V vocabulary.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

from core_jax.mesh import MeshConfig, make_mesh
from reasoning_jax.model import decoder_lm, lora
from reasoning_jax.model.config import LoraConfig
from reasoning_jax.model.hf_config import decoder_config
from reasoning_jax.weights.hf_load import load_config, load_params
from reasoning_jax.weights.peft import export_adapter, load_adapter
from tests.reasoning.weight_cases import hf_tensors, made_up_adapter, write_folder

GOLDEN = "hf_logits.json"
ADAPTER_GOLDEN = "hf_peft_logits.json"

# In the words of transformers' own configs; sizes are primes where the architecture allows. The
# wavelengths of the first, 6 to 250 tokens, are on both sides of the bounds 16 and 64 and between.
CASES = {
    "llama3.1": {
        "model_type": "llama",
        "vocab_size": 37,
        "hidden_size": 18,
        "intermediate_size": 29,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 100.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "tie_word_embeddings": False,
    },
    "qwen2.5": {
        "model_type": "qwen2",
        "vocab_size": 41,
        "hidden_size": 28,
        "intermediate_size": 31,
        "num_hidden_layers": 3,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": False,
    },
    "smollm2": {
        "model_type": "llama",
        "vocab_size": 43,
        "hidden_size": 36,
        "intermediate_size": 23,
        "num_hidden_layers": 2,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
        "tie_word_embeddings": True,
    },
    "deepseek": {
        "model_type": "llama",
        "vocab_size": 47,
        "hidden_size": 30,
        "intermediate_size": 19,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "tie_word_embeddings": False,
    },
}

LORA = LoraConfig(rank=3, alpha=7.0)
ADAPTED = ("qwen2.5", "smollm2")
"""Compared with an adapter too: one with biases, and one with a tied table."""


def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def tokens_of(case):
    """One row of 13 tokens."""
    return [((np.arange(13) * 11 + 5) % CASES[case]["vocab_size"]).tolist()]


def write_case(folder, case):
    """A model's folder with weights by arithmetic, and an adapter's below it."""
    config = decoder_config(CASES[case])
    write_folder(folder, config, hf_tensors(config))
    export_adapter(folder / "adapter", config, made_up_adapter(config, LORA))
    return folder


def our_logits(folder, tokens, adapter_folder=None, is_merged=False):
    """Float32 [B, T, V] by our loaders and model."""
    config = load_config(folder)
    params = load_params(folder, config, mesh=mesh())
    if adapter_folder is not None:
        adapter = load_adapter(adapter_folder, config, mesh=mesh())
        join = lora.merge if is_merged else lora.attach
        params = join(params, adapter.params, adapter.config.scale)
    inputs = decoder_lm.whole_rows(jnp.asarray(tokens, jnp.int32))
    hidden_BTD = decoder_lm.apply(config, params, inputs).hidden
    return np.asarray(decoder_lm.logits(config, params, hidden_BTD))


def record_text(logits):
    """A golden file's text: each case's logits to 6 decimals, a row of tokens per line."""
    rows = {
        case: [np.asarray(row).round(6).tolist() for row in values]
        for case, values in logits.items()
    }
    lines = [
        f' "{case}": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in values) + "\n ]"
        for case, values in rows.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"
