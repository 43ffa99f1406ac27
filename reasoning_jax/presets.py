"""Presets of the reasoning jobs.

Dimension key: none.
"""

from core_jax.loop import LoopConfig
from core_jax.nn.stack import Remat
from core_jax.optim import OptimConfig, Schedule
from reasoning_jax.config import EvaluateConfig, SftConfig
from reasoning_jax.data.load import ProblemsConfig
from reasoning_jax.data.packing import Overlong, PackingConfig
from reasoning_jax.data.prompts import PromptConfig, PromptStyle
from reasoning_jax.model.config import LoraConfig
from reasoning_jax.sampling.config import EngineConfig, SamplingConfig
from reasoning_jax.weights.model_source import FRESH, PACKAGED, ModelConfig


def evaluate_smollm2() -> EvaluateConfig:
    """SmolLM2-135M-Instruct, greedy, on products; 64 problems in half a minute on 2 cores."""
    return EvaluateConfig(
        run_dir="runs/smollm2",
        model=ModelConfig(source=PACKAGED),
        problems=ProblemsConfig(task="products", limit=256),
        sampling=SamplingConfig(max_new_tokens=128),
    )


def evaluate_smollm2_sampled() -> EvaluateConfig:
    """The same, eight samples per problem at temperature 0.7: pass@k and majority@k."""
    return EvaluateConfig(
        run_dir="runs/smollm2_sampled",
        model=ModelConfig(source=PACKAGED),
        problems=ProblemsConfig(task="products", limit=64),
        sampling=SamplingConfig(temperature=0.7, top_p=0.95, max_new_tokens=128, num_samples=8),
    )


def evaluate_tiny() -> EvaluateConfig:
    """A made-up model of 19 thousand random weights: shows the machinery, solves nothing."""
    return EvaluateConfig(
        run_dir="runs/tiny_evaluate",
        model=ModelConfig(source=f"{FRESH}tiny"),
        problems=ProblemsConfig(task="sums", limit=7),
        prompt=PromptConfig(style=PromptStyle.PLAIN),
        sampling=SamplingConfig(temperature=1.0, max_new_tokens=11, num_samples=2),
        engine=EngineConfig(num_rows=4, prompts_per_prefill=4, slots_multiple=128),
    )


def sft_smollm2() -> SftConfig:
    """SmolLM2-135M-Instruct on products, adapters of rank 8; 60 steps, 8 to 9 s each on 2 cores."""
    return SftConfig(
        run_dir="runs/smollm2_sft",
        model=ModelConfig(source=PACKAGED),
        problems=ProblemsConfig(task="products", split="train", limit=2000),
        optim=OptimConfig(
            learning_rate=3e-4, schedule=Schedule.COSINE, warmup_steps=10, clip_norm=1.0
        ),
        loop=LoopConfig(num_steps=60, log_every=5, evaluate_every=20, checkpoint_every=20),
        packing=PackingConfig(row_length=256, overlong=Overlong.DROP),
        lora=LoraConfig(rank=8, alpha=16.0),
        held_out=32,
        batch_size=8,
        remat=Remat.NONE,
        unroll=30,
    )


def sft_tiny() -> SftConfig:
    """A made-up model of 19 thousand weights on sums, all parameters; seconds on a CPU."""
    return SftConfig(
        run_dir="runs/tiny_sft",
        model=ModelConfig(source=f"{FRESH}tiny"),
        problems=ProblemsConfig(task="sums", split="train", limit=100),
        prompt=PromptConfig(style=PromptStyle.PLAIN),
        optim=OptimConfig(learning_rate=1e-2, clip_norm=1.0),
        loop=LoopConfig(num_steps=20, log_every=5, evaluate_every=10, checkpoint_every=10),
        packing=PackingConfig(row_length=256),
        held_out=16,
        batch_size=8,
        remat=Remat.NONE,
    )


EVALUATE_PRESETS = {
    "smollm2": evaluate_smollm2,
    "smollm2_sampled": evaluate_smollm2_sampled,
    "tiny": evaluate_tiny,
}
SFT_PRESETS = {"smollm2": sft_smollm2, "tiny": sft_tiny}
