"""Reading and writing `config.json`: both forms of rotary fields, and what is refused."""

import math

import numpy as np
import pytest

from core_jax.errors import ConfigError
from reasoning_jax.model.config import Llama3Scaling
from reasoning_jax.model.hf_config import decoder_config, to_hf_config
from reasoning_jax.model.presets import MODELS
from reasoning_jax.model.rope import inverse_frequencies

LLAMA = {
    "model_type": "llama",
    "vocab_size": 263,
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 127,
    "hidden_act": "silu",
}
SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize("name", MODELS)
def test_every_preset_survives_the_round_trip(name):
    assert decoder_config(to_hf_config(MODELS[name]())) == MODELS[name]()


def test_absent_fields_mean_what_the_reference_means():
    config = decoder_config(LLAMA)
    assert (config.num_kv_heads, config.head_dim) == (4, 6)
    assert (config.rope_theta, config.rope_scaling) == (10_000.0, None)
    assert not config.tied_embeddings and not config.qkv_bias


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 500.0, "rope_scaling": {"rope_type": "llama3", **SCALING}},
        {"rope_theta": 500.0, "rope_scaling": {"type": "llama3", **SCALING}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **SCALING}},
    ],
)
def test_rotary_fields_of_transformers_4_and_5_mean_the_same(rope):
    config = decoder_config(LLAMA | rope)
    assert config.rope_theta == 500.0
    assert config.rope_scaling == Llama3Scaling(factor=8.0, original_max_positions=64)


def test_qwen2_has_biases_and_an_unused_window():
    qwen = {**LLAMA, "model_type": "qwen2", "use_sliding_window": False, "sliding_window": 4096}
    assert decoder_config(qwen).qkv_bias


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; supported: llama, qwen2"),
        ({"model_type": "lama"}, "Did you mean 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"hidden_size": None}, "has no 'hidden_size'"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"mlp_bias": True}, "mlp_bias is true"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"use_sliding_window": True}, "asks for sliding-window attention"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
        ({"pretraining_tp": 2}, "pretraining_tp is 2"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [1]}}, "'mrope_section'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks low_freq_factor"),
        ({"rope_scaling": {"rope_type": "llama3", **SCALING, "beta": 3.0}}, "field 'beta'"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(change, message):
    with pytest.raises(ConfigError, match=message):
        decoder_config(LLAMA | change)


def test_stretched_wavelengths_follow_the_three_bands():
    """Each frequency from its own wavelength, as the formula's three cases say."""
    scaling = Llama3Scaling(factor=8.0, original_max_positions=64)
    plain = inverse_frequencies(16, 500.0).astype(np.float64)
    found = inverse_frequencies(16, 500.0, scaling)
    cases = set()
    for frequency, stretched in zip(plain, found, strict=True):
        wavelength = 2 * math.pi / frequency
        if wavelength > 64 / 1.0:
            case, expected = "long", frequency / 8
        elif wavelength < 64 / 4.0:
            case, expected = "short", frequency
        else:
            share = (64 / wavelength - 1.0) / (4.0 - 1.0)
            case, expected = "between", (1 - share) * frequency / 8 + share * frequency
        cases.add(case)
        assert stretched == pytest.approx(expected, rel=1e-6)
    assert cases == {"long", "short", "between"}
