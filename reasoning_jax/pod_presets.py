"""Presets of contrastive cDPO for GPUs and TPU slices: what fits is in docs/compile_check.md.

Dimension key: none.
"""

import dataclasses

from core_jax.mesh import MeshConfig
from core_jax.nn.flash_attention import SPLASH_BLOCK
from reasoning_jax.align.scoring import RowsConfig, ScoringConfig
from reasoning_jax.align_config import PipelineConfig
from reasoning_jax.align_presets import PAPER_PRESETS, paper
from reasoning_jax.model.config import LoraConfig


def _pod(model: str, *, full: bool = False) -> PipelineConfig:
    """The paper's settings on GSM8K for a slice: 8 parts of the batch, the rest shares layers.

    Every step keeps the paper's 8 rows, whatever the slice.
    """
    config = paper(model, "gsm8k")
    whole = LoraConfig(rank=0)
    kind = "full" if full else "pod"
    return dataclasses.replace(
        config,
        run_dir=f"runs/cdpo_{model}_{kind}",
        mesh=MeshConfig(data=1, fsdp=8, tensor=-1),
        # Whole blocks of the attention kernel on TPUs.
        engine=dataclasses.replace(config.engine, prompt_multiple=SPLASH_BLOCK),
        contrast=dataclasses.replace(config.contrast, lora=whole) if full else config.contrast,
        train=dataclasses.replace(config.train, lora=whole) if full else config.train,
    )


def llama3_8b_pod() -> PipelineConfig:
    """Llama-3-8B on GSM8K, adapters, on a slice of 8 or more chips (docs/compile_check.md)."""
    return _pod("llama3-8b")


def llama3_8b_full() -> PipelineConfig:
    """Llama-3-8B on GSM8K, all parameters, on 8 GPUs of 80 GB or a slice of as much memory."""
    return _pod("llama3-8b", full=True)


def deepseek_math_7b_pod() -> PipelineConfig:
    """DeepSeek-math-7B on GSM8K, adapters, on 8 GPUs of 80 GB or a slice of 8 chips or more."""
    return _pod("deepseek-math-7b")


def deepseek_math_7b_full() -> PipelineConfig:
    """DeepSeek-math-7B on GSM8K, all parameters, on 8 GPUs of 80 GB or a slice of as much."""
    return _pod("deepseek-math-7b", full=True)


def llama3_70b_pod() -> PipelineConfig:
    """Llama-3-70B on GSM8K, adapters, on 8 GPUs of 80 GB or a slice of as much memory."""
    return _pod("llama3-70b")


def llama3_8b_gpu() -> PipelineConfig:
    """Llama-3-8B on GSM8K, adapters, on one GPU: the paper's 8 rows one by one.

    Training fits 24 GB, sampling 80 GB: there the weights are held twice while they are turned.
    """
    config = paper("llama3-8b", "gsm8k")
    return dataclasses.replace(
        config,
        run_dir="runs/cdpo_llama3-8b_gpu",
        contrast=dataclasses.replace(config.contrast, num_microbatches=8),
        engine=dataclasses.replace(config.engine, num_rows=128, prompts_per_prefill=16),
        scoring=ScoringConfig(rows=RowsConfig(batch_size=2, row_length=2048)),
        train=dataclasses.replace(config.train, num_microbatches=8),
    )


PIPELINE_PRESETS = PAPER_PRESETS | {
    "llama3_8b_pod": llama3_8b_pod,
    "llama3_8b_full": llama3_8b_full,
    "llama3_8b_gpu": llama3_8b_gpu,
    "deepseek_math_7b_pod": deepseek_math_7b_pod,
    "deepseek_math_7b_full": deepseek_math_7b_full,
    "llama3_70b_pod": llama3_70b_pod,
}
"""Every preset of the pipeline by name."""
