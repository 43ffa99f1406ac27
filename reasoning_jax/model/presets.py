"""Architectures by name. Sizes are the published models'; weights come from their folders.

Dimension key: none.
"""

import dataclasses
from collections.abc import Callable

from reasoning_jax.model.config import DecoderConfig, Llama3Scaling


def tiny() -> DecoderConfig:
    """Two layers of small odd sizes over bytes: 19 thousand parameters, for tests."""
    return DecoderConfig(
        vocab_size=263,
        model_dim=17,
        hidden_dim=37,
        num_layers=2,
        num_heads=6,
        num_kv_heads=3,
        head_dim=10,
        max_positions=1021,
    )


def smollm2_135m() -> DecoderConfig:
    """SmolLM2-135M: 134.5 million parameters, tied embeddings, 9 heads on 3."""
    return DecoderConfig(
        vocab_size=49152,
        model_dim=576,
        hidden_dim=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        norm_eps=1e-5,
        rope_theta=100_000.0,
        tied_embeddings=True,
        max_positions=8192,
    )


def llama3_8b() -> DecoderConfig:
    """Llama-3-8B: 8.03 billion parameters, context 8,192."""
    return DecoderConfig(
        vocab_size=128_256,
        model_dim=4096,
        hidden_dim=14_336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        norm_eps=1e-5,
        rope_theta=500_000.0,
        max_positions=8192,
    )


def llama3_70b() -> DecoderConfig:
    """Llama-3-70B: 70.6 billion parameters, context 8,192."""
    return dataclasses.replace(
        llama3_8b(), model_dim=8192, hidden_dim=28_672, num_layers=80, num_heads=64
    )


def llama31_8b() -> DecoderConfig:
    """Llama-3.1-8B: as Llama-3-8B with wavelengths stretched to a context of 131,072."""
    return dataclasses.replace(
        llama3_8b(), rope_scaling=Llama3Scaling(factor=8.0), max_positions=131_072
    )


def llama32_1b() -> DecoderConfig:
    """Llama-3.2-1B: 1.24 billion parameters, tied embeddings, context 131,072."""
    return dataclasses.replace(
        llama31_8b(),
        model_dim=2048,
        hidden_dim=8192,
        num_layers=16,
        head_dim=64,
        rope_scaling=Llama3Scaling(factor=32.0),
        tied_embeddings=True,
    )


def deepseek_math_7b() -> DecoderConfig:
    """DeepSeek-math-7B: 6.9 billion parameters, full multi-head attention, context 4,096."""
    return DecoderConfig(
        vocab_size=102_400,
        model_dim=4096,
        hidden_dim=11_008,
        num_layers=30,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        norm_eps=1e-6,
        rope_theta=10_000.0,
        max_positions=4096,
    )


def qwen25_05b() -> DecoderConfig:
    """Qwen2.5-0.5B: 494 million parameters, biases on queries, keys and values, tied."""
    return DecoderConfig(
        vocab_size=151_936,
        model_dim=896,
        hidden_dim=4864,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        norm_eps=1e-6,
        rope_theta=1_000_000.0,
        tied_embeddings=True,
        qkv_bias=True,
        max_positions=32_768,
    )


def qwen25_7b() -> DecoderConfig:
    """Qwen2.5-7B: 7.62 billion parameters, biases on queries, keys and values."""
    return dataclasses.replace(
        qwen25_05b(),
        vocab_size=152_064,
        model_dim=3584,
        hidden_dim=18_944,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        head_dim=128,
        tied_embeddings=False,
        max_positions=131_072,
    )


MODELS: dict[str, Callable[[], DecoderConfig]] = {
    "tiny": tiny,
    "smollm2-135m": smollm2_135m,
    "llama3-8b": llama3_8b,
    "llama3-70b": llama3_70b,
    "llama3.1-8b": llama31_8b,
    "llama3.2-1b": llama32_1b,
    "deepseek-math-7b": deepseek_math_7b,
    "qwen2.5-0.5b": qwen25_05b,
    "qwen2.5-7b": qwen25_7b,
}
"""Every architecture by name."""
