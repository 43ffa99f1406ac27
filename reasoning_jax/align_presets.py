"""Presets of contrastive cDPO: small worlds for a CPU, and the paper's settings.

Dimension key: none.
"""

import dataclasses

from core_jax.loop import LoopConfig
from core_jax.mesh import MeshConfig
from core_jax.nn.linear import ComputeDtype
from core_jax.nn.stack import Remat
from core_jax.optim import OptimConfig, Schedule
from reasoning_jax.align.critical import CriticalConfig
from reasoning_jax.align.methods import Row
from reasoning_jax.align.pair_rows import PairRowsConfig
from reasoning_jax.align.scoring import RowsConfig, ScoringConfig
from reasoning_jax.align.temperature import paper_temperature
from reasoning_jax.align.tuned import Tuning
from reasoning_jax.align_config import ContrastConfig, PipelineConfig, TrainConfig
from reasoning_jax.base_config import BaseConfig
from reasoning_jax.data.load import ProblemsConfig
from reasoning_jax.data.packing import Layout, Overlong, PackingConfig
from reasoning_jax.data.prompts import PromptConfig, PromptStyle
from reasoning_jax.model.config import DecoderConfig, LoraConfig
from reasoning_jax.sampling.config import EngineConfig, SamplingConfig
from reasoning_jax.weights.model_source import PACKAGED, ModelConfig

ALL_MAPS = LoraConfig(rank=16, alpha=32.0)
"""Adapters of preference training in the released code: rank 16 on all seven maps."""
MLP_MAPS = LoraConfig(rank=8, alpha=16.0, dropout=0.1, targets=("gate", "up", "down"))
"""Adapters of the positive and the negative model there: rank 8 on the network's three maps."""

_DEMO_ENGINE = EngineConfig(num_rows=128, prompts_per_prefill=32, slots_multiple=64)

_PAPER_ROWS = (
    Row.BASELINE,
    Row.SFT,
    Row.DPO_SFT,
    Row.TDPO1,
    Row.DPO,
    Row.RPO,
    Row.CDPO,
    Row.CDPO_CODE,
)


def _tiny_base(task: str, engine: EngineConfig) -> BaseConfig:
    """What `tiny` makes first; 600 steps in 20 seconds."""
    return BaseConfig(
        run_dir="made by the pipeline",
        model=DecoderConfig(
            vocab_size=300,
            model_dim=32,
            hidden_dim=64,
            num_layers=2,
            num_heads=2,
            num_kv_heads=2,
            head_dim=16,
            max_positions=128,
            tied_embeddings=True,
            unroll=2,
        ),
        optim=OptimConfig(learning_rate=1e-2, clip_norm=1.0),
        loop=LoopConfig(num_steps=1500, log_every=50, evaluate_every=100),
        packing=PackingConfig(row_length=96),
        problems=ProblemsConfig(task=task, split="train", limit=600),
        lowest_accuracy=0.3,
        highest_accuracy=0.95,
        measured=32,
        sampling=SamplingConfig(temperature=1.0, max_new_tokens=24, num_samples=2),
        engine=engine,
        batch_size=8,
        chunk=96,
    )


def tiny() -> PipelineConfig:
    """Sums of single digits by a model of 30 thousand weights: all of the machinery, quickly."""
    task = "steps-1-2-9"
    plain = PromptConfig(style=PromptStyle.PLAIN)
    engine = EngineConfig(num_rows=32, prompts_per_prefill=16, slots_multiple=64)
    return PipelineConfig(
        run_dir="runs/cdpo_tiny",
        model=ModelConfig(source="made by base"),
        base=_tiny_base(task, engine),
        problems=ProblemsConfig(task=task, split="train", limit=32),
        tests=(ProblemsConfig(task=task, split="test", limit=37),),
        prompt=plain,
        sampling=SamplingConfig(temperature=1.0, max_new_tokens=24, num_samples=8),
        test_sampling=SamplingConfig(max_new_tokens=24),
        engine=engine,
        contrast=ContrastConfig(
            optim=OptimConfig(learning_rate=3e-3, clip_norm=1.0),
            packing=PackingConfig(row_length=96),
            held_out=2,
            batch_size=2,
            remat=Remat.NONE,
        ),
        scoring=ScoringConfig(rows=RowsConfig(batch_size=2, row_length=96)),
        train=TrainConfig(
            optim=OptimConfig(learning_rate=1e-3, clip_norm=1.0),
            rows=PairRowsConfig(row_length=96),
            epochs=2.0,
            batch_size=2,
            watched=8,
            num_looks=2,
            remat=Remat.NONE,
        ),
        rows=tuple(Row),
        seeds=(0, 1),
        critical=CriticalConfig(
            temperature=1.0, max_new_tokens=24, num_solutions=3, num_rollouts=8
        ),
    )


def _demo_base() -> BaseConfig:
    """What `demo` makes first: 0.36 million weights, right in about half of its samples."""
    return BaseConfig(
        run_dir="made by the pipeline",
        model=DecoderConfig(
            vocab_size=300,
            model_dim=96,
            hidden_dim=256,
            num_layers=3,
            num_heads=4,
            num_kv_heads=4,
            head_dim=24,
            max_positions=512,
            tied_embeddings=True,
            unroll=3,
        ),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=50, clip_norm=1.0, beta2=0.99),
        loop=LoopConfig(num_steps=1500, log_every=50, evaluate_every=50),
        packing=PackingConfig(row_length=128),
        lowest_accuracy=0.45,
        highest_accuracy=0.7,
        engine=_DEMO_ENGINE,
        batch_size=16,
    )


def demo() -> PipelineConfig:
    """Sums with written steps by a model made from nothing: 13 rows, 3 seeds, a CPU of 2 cores.

    The world in which one digit makes a solution wrong and all later steps are right arithmetic.
    docs/cdpo.md has what it printed, and how long it took.
    """
    return PipelineConfig(
        run_dir="runs/cdpo_demo",
        model=ModelConfig(source="made by base"),
        base=_demo_base(),
        problems=ProblemsConfig(task="steps", split="train", limit=300, seed=1),
        tests=(ProblemsConfig(task="steps", split="test", limit=600, seed=78),),
        prompt=PromptConfig(style=PromptStyle.PLAIN),
        sampling=SamplingConfig(temperature=1.0, max_new_tokens=96, num_samples=16),
        test_sampling=SamplingConfig(max_new_tokens=96),
        engine=_DEMO_ENGINE,
        contrast=ContrastConfig(
            optim=OptimConfig(learning_rate=1e-3, clip_norm=1.0),
            packing=PackingConfig(row_length=256),
            epochs=2.0,
            held_out=16,
            batch_size=4,
            remat=Remat.NONE,
            unroll=3,
        ),
        scoring=ScoringConfig(rows=RowsConfig(batch_size=8, row_length=256)),
        train=TrainConfig(
            optim=OptimConfig(learning_rate=1e-4, clip_norm=1.0),
            rows=PairRowsConfig(row_length=256),
            batch_size=4,
            remat=Remat.NONE,
            unroll=3,
        ),
        rows=(
            *_PAPER_ROWS[:-1],
            Row.CDPO_SHUFFLED,
            Row.CDPO_CONSTANT,
            Row.CDPO_CODE,
            Row.TIS_DPO,
            Row.TGDPO,
            Row.STEP_DPO,
        ),
        tuning=Tuning.DEMO,
        seeds=(0, 1, 2),
        critical=CriticalConfig(
            temperature=1.0, max_new_tokens=96, num_solutions=240, num_rollouts=16
        ),
    )


def paper(model: str, task: str) -> PipelineConfig:
    """The paper's settings, for a model folder models/NAME in bfloat16.

    Sampling, sets and training are section 3 and 4 of arXiv 2411.19943; what it leaves open (rank,
    batch, schedule, length) is the released code's.
    """
    is_math = task == "math"
    style = PromptStyle.LATEX_SHOTS if is_math else PromptStyle.WORD_SHOTS
    return PipelineConfig(
        run_dir=f"runs/cdpo_{model}_{task}",
        model=ModelConfig(
            source=f"models/{model}",
            dtype=ComputeDtype.BFLOAT16,
            param_dtype=ComputeDtype.BFLOAT16,
        ),
        problems=ProblemsConfig(task=task, split="train"),
        tests=(ProblemsConfig(task="math500" if is_math else "gsm8k", split="test"),),
        prompt=PromptConfig(style=style),
        training_prompt=PromptConfig(style=PromptStyle.PLAIN),
        sampling=SamplingConfig(
            temperature=paper_temperature(task, model),
            top_p=0.95,
            max_new_tokens=1024,
            num_samples=64,
        ),
        test_sampling=SamplingConfig(max_new_tokens=1024),
        engine=EngineConfig(num_rows=256, prompts_per_prefill=32, steps_per_chunk=64),
        contrast=ContrastConfig(
            optim=OptimConfig(
                learning_rate=3e-4, schedule=Schedule.COSINE, warmup_steps=100, clip_norm=1.0
            ),
            packing=PackingConfig(
                row_length=1024, layout=Layout.ONE_PER_ROW, overlong=Overlong.DROP
            ),
            lora=MLP_MAPS,
            held_out=300,
            look_every=200,
            batch_size=8,
        ),
        scoring=ScoringConfig(rows=RowsConfig(batch_size=16, row_length=2048)),
        train=TrainConfig(
            optim=OptimConfig(
                learning_rate=2e-5,
                schedule=Schedule.LINEAR,
                warmup_fraction=0.1,
                weight_decay=0.01,
                clip_norm=1.0,
            ),
            rows=PairRowsConfig(row_length=3072, layout=Layout.ONE_PER_ROW, overlong=Overlong.DROP),
            lora=ALL_MAPS,
            batch_size=8,
        ),
        rows=_PAPER_ROWS,
        tuning=Tuning.PAPER,
        critical=CriticalConfig(
            temperature=paper_temperature(task, model), max_new_tokens=1024, num_solutions=100
        ),
        mesh=MeshConfig(data=1, fsdp=-1),
    )


def llama3_8b_gsm8k() -> PipelineConfig:
    """Llama-3-8B on GSM8K as in the paper; models/llama3-8b is its folder. See --plan."""
    return paper("llama3-8b", "gsm8k")


def llama3_8b_math() -> PipelineConfig:
    """Llama-3-8B on MATH, tested on MATH500, as in the paper. See --plan."""
    return paper("llama3-8b", "math")


def llama3_70b_gsm8k() -> PipelineConfig:
    """Llama-3-70B on GSM8K as in the paper; models/llama3-70b is its folder. See --plan."""
    return paper("llama3-70b", "gsm8k")


def llama3_70b_math() -> PipelineConfig:
    """Llama-3-70B on MATH, tested on MATH500, as in the paper. See --plan."""
    return paper("llama3-70b", "math")


def deepseek_math_7b_gsm8k() -> PipelineConfig:
    """DeepSeek-math-7B-base on GSM8K as in the paper. See --plan."""
    return paper("deepseek-math-7b", "gsm8k")


def deepseek_math_7b_math() -> PipelineConfig:
    """DeepSeek-math-7B-base on MATH, tested on MATH500, as in the paper. See --plan."""
    return paper("deepseek-math-7b", "math")


def official_code() -> PipelineConfig:
    """Llama-3-8B on GSM8K as the released code does it: a logistic per position, repeated wrongs.

    beta 0.1 instead of gamma 1, the end of sequence at full weight, and of the wrong answers after
    the first only those that came more than once (since May 2025).
    """
    config = paper("llama3-8b", "gsm8k")
    return dataclasses.replace(
        config,
        run_dir="runs/cdpo_official_code",
        sets=dataclasses.replace(config.sets, repeated_only=True),
        rows=(Row.BASELINE, Row.RPO, Row.CDPO_CODE),
    )


def smollm2_demo() -> PipelineConfig:
    """SmolLM2-135M-Instruct on products: adapters, one seed, five rows, 90 minutes on 2 cores."""
    smollm2 = ModelConfig(source=PACKAGED)
    return PipelineConfig(
        run_dir="runs/cdpo_smollm2",
        model=smollm2,
        problems=ProblemsConfig(task="products", split="train", limit=160),
        tests=(
            ProblemsConfig(task="products", split="test", limit=200),
            ProblemsConfig(task="sums", split="test", limit=100),
        ),
        sampling=SamplingConfig(temperature=0.8, top_p=0.95, max_new_tokens=96, num_samples=8),
        test_sampling=SamplingConfig(max_new_tokens=96),
        contrast=ContrastConfig(
            optim=OptimConfig(learning_rate=3e-4, schedule=Schedule.COSINE, clip_norm=1.0),
            packing=PackingConfig(row_length=256, overlong=Overlong.DROP),
            lora=LoraConfig(rank=8, alpha=16.0, targets=("gate", "up", "down")),
            held_out=8,
            batch_size=4,
            remat=Remat.NONE,
            unroll=30,
        ),
        scoring=ScoringConfig(rows=RowsConfig(batch_size=4, row_length=256)),
        train=TrainConfig(
            optim=OptimConfig(learning_rate=2e-5, schedule=Schedule.LINEAR, clip_norm=1.0),
            rows=PairRowsConfig(row_length=512, overlong=Overlong.DROP),
            lora=ALL_MAPS,
            epochs=2.0,
            batch_size=2,
            watched=16,
            num_looks=3,
            remat=Remat.NONE,
            unroll=30,
        ),
        rows=(Row.BASELINE, Row.DPO, Row.RPO, Row.CDPO, Row.CDPO_SHUFFLED),
        tuning=Tuning.SMOLLM2,
        critical=CriticalConfig(
            temperature=0.8,
            max_new_tokens=64,
            num_solutions=20,
            num_rollouts=8,
            replacement=True,
        ),
    )


PAPER_PRESETS = {
    "tiny": tiny,
    "demo": demo,
    "smollm2_demo": smollm2_demo,
    "paper": llama3_8b_gsm8k,
    "official_code": official_code,
    "llama3_8b_gsm8k": llama3_8b_gsm8k,
    "llama3_8b_math": llama3_8b_math,
    "llama3_70b_gsm8k": llama3_70b_gsm8k,
    "llama3_70b_math": llama3_70b_math,
    "deepseek_math_7b_gsm8k": deepseek_math_7b_gsm8k,
    "deepseek_math_7b_math": deepseek_math_7b_math,
}
"""Presets of the pipeline by name; `reasoning_jax.pod_presets` has more."""
