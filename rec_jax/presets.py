"""Presets: functions that return a full configuration, with its cost and what to expect.

Dimension key: none.
"""

import dataclasses

from core_jax.loop import LoopConfig
from core_jax.mesh import MeshConfig
from core_jax.nn.feed_forward import Activation
from core_jax.nn.linear import ComputeDtype
from core_jax.nn.stack import Remat
from core_jax.optim import OptimConfig, Schedule
from rec_jax.config import (
    GenerateConfig,
    MovielensConfig,
    PipelineConfig,
    PretrainConfig,
)
from rec_jax.data.augment import AugmentConfig, TargetOrder
from rec_jax.data.own_logs import OwnLogConfig
from rec_jax.data.session_config import (
    EventRule,
    EventRuleConfig,
    QualityConfig,
    SessionConfig,
    SessionRule,
    SplitConfig,
    SplitRule,
    TrainWindows,
)
from rec_jax.data.simulator.config import SimulatorConfig
from rec_jax.model.config import OneRecConfig
from rec_jax.moe.router import Balance
from rec_jax.semantic_ids.collaborative import CollaborativeConfig
from rec_jax.semantic_ids.embeddings import EmbeddingConfig, EmbeddingKind
from rec_jax.semantic_ids.residual import SemanticIdConfig

_VARIED = AugmentConfig(target_order=TargetOrder.SHUFFLED, history_dropout=0.3, reversed_share=0.5)
"""MovieLens has few sessions, and their order within a sitting means little."""


def demo() -> PipelineConfig:
    """MovieLens-100k on a CPU: semantic IDs, OneRec, evaluation, report.

    0.4 million parameters, 0.2 million active per token. 4 to 10 minutes on 2 cores without an
    accelerator; `docs/benchmarks.md` has the measured times and results.
    """
    return PipelineConfig(
        run_dir="runs/demo",
        log=MovielensConfig(variant="100k"),
        sessions=SessionConfig(
            rule=SessionRule.FIXED_BLOCKS,
            session_items=5,
            history_items=20,
            positive=EventRuleConfig(rule=EventRule.THRESHOLD, column="rating", threshold=4.0),
            train_windows=TrainWindows.SLIDING,
            train_stride=1,
            min_positives=10,
        ),
        embeddings=EmbeddingConfig(
            kind=EmbeddingKind.CONCAT,
            text_weight=0.2,
            collaborative=CollaborativeConfig(window=10),
        ),
        semantic_ids=SemanticIdConfig(level_sizes=(41, 41)),
        model=OneRecConfig(
            history_items=10,
            session_items=5,
            d_model=64,
            num_heads=2,
            head_dim=32,
            d_ff=256,
            num_encoder_layers=2,
            num_decoder_layers=2,
            num_experts=8,
            experts_per_token=2,
            d_expert=128,
            dropout=0.2,
            scan_unroll=2,
        ),
        optim=OptimConfig(
            learning_rate=3e-3,
            schedule=Schedule.COSINE,
            warmup_steps=100,
            final_fraction=0.02,
            weight_decay=0.1,
            no_decay=(r"norm/scale$", r"router/bias$"),
            beta2=0.98,
            clip_norm=1.0,
        ),
        pretrain=PretrainConfig(
            batch_size=64,
            augment=_VARIED,
            loop=LoopConfig(num_steps=3000, evaluate_every=300, checkpoint_every=300),
            pointwise_steps=1200,
        ),
    )


def demo_tiny() -> PipelineConfig:
    """The demo shrunk to about a minute: every stage for real, results not worth reading."""
    config = demo()
    return dataclasses.replace(
        config,
        run_dir="runs/demo_tiny",
        model=dataclasses.replace(
            config.model,
            history_items=5,
            d_model=32,
            num_heads=2,
            head_dim=16,
            d_ff=64,
            num_encoder_layers=1,
            num_decoder_layers=1,
            d_expert=32,
        ),
        optim=dataclasses.replace(config.optim, warmup_steps=5),
        pretrain=PretrainConfig(
            batch_size=64,
            augment=_VARIED,
            loop=LoopConfig(num_steps=20, log_every=5, evaluate_every=10, checkpoint_every=10),
            pointwise_steps=10,
        ),
        generate=GenerateConfig(session_beams=4, item_beams=16, batch_size=128),
        evaluate=dataclasses.replace(config.evaluate, bootstrap_samples=200, legality_users=64),
    )


def demo_world() -> PipelineConfig:
    """A simulated short-video world, whose users' true tastes are known, on a CPU.

    The log of 3,000 users; 0.4 million parameters. A few minutes on 2 cores.
    """
    config = demo()
    return dataclasses.replace(
        config,
        run_dir="runs/demo_world",
        log=SimulatorConfig(num_users=3000),
        sessions=dataclasses.replace(
            config.sessions,
            positive=EventRuleConfig(rule=EventRule.WATCH_RATIO, watch_ratio=0.5),
        ),
        pretrain=PretrainConfig(
            batch_size=64,
            augment=_VARIED,
            loop=LoopConfig(num_steps=1500, evaluate_every=300, checkpoint_every=300),
        ),
    )


def demo_gpu() -> PipelineConfig:
    """MovieLens-1M on one 24 GB card: the demo's job, larger, in bfloat16.

    30.5 million parameters, 7.5 million active per token. Sized for a 24 GB card, not yet run on
    one.
    """
    config = demo()
    return dataclasses.replace(
        config,
        run_dir="runs/demo_gpu",
        log=MovielensConfig(variant="1m"),
        sessions=dataclasses.replace(config.sessions, history_items=50, train_stride=5),
        semantic_ids=SemanticIdConfig(level_sizes=(64, 64)),
        model=dataclasses.replace(
            config.model,
            history_items=50,
            d_model=256,
            num_heads=8,
            d_ff=1024,
            num_encoder_layers=4,
            num_decoder_layers=4,
            num_experts=24,
            d_expert=512,
            compute_dtype=ComputeDtype.BFLOAT16,
        ),
        pretrain=PretrainConfig(
            batch_size=512,
            augment=_VARIED,
            loop=LoopConfig(num_steps=20_000, evaluate_every=1000, checkpoint_every=1000),
        ),
        generate=GenerateConfig(session_beams=128, item_beams=128, batch_size=64),
    )


def onerec_0p1b() -> PipelineConfig:
    """OneRec at the paper's 0.1B size on your own log, for a small accelerator slice.

    96.9 million parameters, 36.3 million active per token (17.3 without embeddings). The paper
    gives 24 experts of which 2 are active, n = 256, m = 5 and 3 levels of 8,192 codes, not widths
    or depths: those are ours.
    """
    return _paper(
        run_dir="runs/onerec_0p1b",
        model=OneRecConfig(
            history_items=256,
            session_items=5,
            d_model=384,
            num_heads=6,
            head_dim=64,
            d_ff=1536,
            num_encoder_layers=4,
            num_decoder_layers=4,
            num_experts=24,
            experts_per_token=2,
            d_expert=896,
            activation=Activation.GELU,
            balance=Balance.LOSS_FREE,
            compute_dtype=ComputeDtype.BFLOAT16,
            remat=Remat.DOTS,
        ),
        batch_size=512,
    )


def onerec_1b() -> PipelineConfig:
    """OneRec at the paper's 1B size on your own log, for a pod slice (16 TPU v5e or more).

    939.9 million parameters, 201.7 million active per token, 21 % (the paper says 13 %). The paper
    gives 24 experts of which 2 are active, n = 256, m = 5 and 3 levels of 8,192 codes, not widths
    or depths: those are ours.
    """
    return _paper(
        run_dir="runs/onerec_1b",
        model=_ONEREC_1B,
        batch_size=1024,
        mesh=MeshConfig(data=1, fsdp=-1),
    )


def onerec_1b_gpu() -> PipelineConfig:
    """OneRec 1B on one GPU of 80 GB: batches of 256 sessions, 128 at a time."""
    return _paper(
        run_dir="runs/onerec_1b_gpu",
        model=_ONEREC_1B,
        batch_size=256,
        num_microbatches=2,
    )


def onerec_1b_gpu_24gb() -> PipelineConfig:
    """OneRec 1B on one GPU of 24 GB: batches of 64 sessions, 16 at a time."""
    return _paper(
        run_dir="runs/onerec_1b_gpu_24gb",
        model=_ONEREC_1B,
        batch_size=64,
        num_microbatches=4,
    )


_ONEREC_1B = OneRecConfig(
    history_items=256,
    session_items=5,
    d_model=1024,
    num_heads=16,
    head_dim=64,
    d_ff=4096,
    num_encoder_layers=4,
    num_decoder_layers=4,
    num_experts=24,
    experts_per_token=2,
    d_expert=4096,
    activation=Activation.GELU,
    balance=Balance.LOSS_FREE,
    compute_dtype=ComputeDtype.BFLOAT16,
    remat=Remat.FULL,
)
"""The architecture of the paper's 1B size."""


def _paper(
    *,
    run_dir: str,
    model: OneRecConfig,
    batch_size: int,
    num_microbatches: int = 1,
    mesh: MeshConfig | None = None,
) -> PipelineConfig:
    """What the paper's sizes share (Deng et al., 2025, arXiv:2502.18965, Section 5.1.1)."""
    return PipelineConfig(
        run_dir=run_dir,
        log=OwnLogConfig(path="interactions.parquet", items_path="items.parquet"),
        sessions=SessionConfig(
            rule=SessionRule.TIME_GAP,
            session_items=5,
            history_items=256,
            quality=QualityConfig(min_items=5, watch_time_quantile=0.5),
            split=SplitConfig(rule=SplitRule.TEMPORAL),
        ),
        embeddings=EmbeddingConfig(kind=EmbeddingKind.CONCAT),
        semantic_ids=SemanticIdConfig(level_sizes=(8192, 8192, 8192)),
        model=model,
        optim=OptimConfig(
            learning_rate=2e-4,
            schedule=Schedule.COSINE,
            warmup_steps=2000,
            final_fraction=0.1,
            weight_decay=0.01,
            no_decay=(r"norm/scale$", r"router/bias$"),
            clip_norm=1.0,
        ),
        pretrain=PretrainConfig(
            batch_size=batch_size,
            num_microbatches=num_microbatches,
            loop=LoopConfig(
                num_steps=200_000, log_every=50, evaluate_every=5000, checkpoint_every=2000
            ),
        ),
        generate=GenerateConfig(session_beams=128, item_beams=128, batch_size=32),
        mesh=mesh or MeshConfig(),
    )


PRESETS = {
    "demo": demo,
    "demo_tiny": demo_tiny,
    "demo_world": demo_world,
    "demo_gpu": demo_gpu,
    "onerec_0p1b": onerec_0p1b,
    "onerec_1b": onerec_1b,
    "onerec_1b_gpu": onerec_1b_gpu,
    "onerec_1b_gpu_24gb": onerec_1b_gpu_24gb,
}
"""Presets of the OneRec jobs by name."""
