"""Presets of the alignment jobs: judges, rounds, and every method's settings.

`docs/alignment.md` has the sweeps that the demo's settings come from.

Dimension key: none.
"""

import dataclasses

from core_jax.loop import LoopConfig
from core_jax.optim import OptimConfig, Schedule
from core_jax.token_weights import WeightControl
from rec_jax.align.config import AlignConfig, CandidatesConfig, GroupsConfig
from rec_jax.align.contrast_config import ContrastConfig
from rec_jax.align.methods import Method, MethodConfig
from rec_jax.align.run_config import AlignRunConfig, PolicyEvaluateConfig
from rec_jax.alignment_cells import AlignmentTableConfig
from rec_jax.config import PipelineConfig
from rec_jax.data.augment import AugmentConfig, TargetOrder
from rec_jax.data.own_logs import OwnLogConfig
from rec_jax.data.session_config import EventRule, EventRuleConfig
from rec_jax.presets import demo as demo_pipeline
from rec_jax.presets import demo_world
from rec_jax.presets import onerec_1b as onerec_1b_pipeline
from rec_jax.presets import onerec_1b_gpu as onerec_1b_gpu_pipeline
from rec_jax.reward.config import FusionConfig, RewardConfig
from rec_jax.reward.presets import (
    held_out_judge,
    kuairand_like_hate,
    ratings,
    short_video,
    training_judge,
)
from rec_jax.semantic_ids.collaborative import CollaborativeConfig
from rec_jax.semantic_ids.embeddings import EmbeddingConfig, EmbeddingKind
from rec_jax.semantic_ids.residual import SemanticIdConfig
from rec_jax.semantic_ids.text_features import TextConfig

TABLE_METHODS = (
    Method.DPO,
    Method.IPO,
    Method.CONSERVATIVE,
    Method.RDPO,
    Method.CPO,
    Method.SIMPO,
    Method.SDPO,
    Method.ECPO,
    Method.GBPO,
    Method.CONTRASTIVE,
)
"""The methods of the paper's Table 1, the two of its successors, and contrastive cDPO."""

WEIGHT_CONTROLS = (WeightControl.SHUFFLED, WeightControl.CONSTANT)
"""Controls of contrastive cDPO: the same weights on other codes, and their mean on all."""


def demo() -> AlignRunConfig:
    """A simulated world, OneRec, two judges and 3 rounds of DPO, on a CPU.

    About 8 minutes on 2 cores; `docs/alignment.md` has the measured times and results.
    """
    return AlignRunConfig(
        run_dir="runs/align_demo",
        pipeline=demo_world(),
        reward=training_judge(_for_watch_time(short_video())),
        judge=held_out_judge(_for_watch_time(short_video())),
        align=AlignConfig(
            method=MethodConfig(method=Method.DPO),
            num_rounds=3,
            preference_ratio=0.25,
            candidates=CandidatesConfig(num_beams=32, batch_size=64, part_size=512),
            groups=GroupsConfig(),
            contrast=ContrastConfig(
                optim=_round_optim(3e-4), loop=LoopConfig(num_steps=150, checkpoint_every=50)
            ),
            batch_size=64,
            augment=AugmentConfig(target_order=TargetOrder.SHUFFLED),
            optim=_round_optim(3e-4),
            loop=LoopConfig(num_steps=150, checkpoint_every=50),
        ),
    )


def movielens() -> AlignRunConfig:
    """Three rounds on MovieLens-100k, for `--from runs/demo`: ratings as rewards, no truth.

    About 5 minutes on 2 cores after the pre-training.
    """
    config = demo()
    return dataclasses.replace(
        config,
        run_dir="runs/align_movielens",
        pipeline=demo_pipeline(),
        reward=training_judge(ratings()),
        judge=held_out_judge(ratings()),
    )


def demo_tiny() -> AlignRunConfig:
    """The demo shrunk to about a minute: every stage for real, results not worth reading."""
    config = demo()
    pipeline = config.pipeline
    tiny = LoopConfig(num_steps=10, log_every=5, evaluate_every=5, checkpoint_every=5)
    return dataclasses.replace(
        config,
        run_dir="runs/align_tiny",
        pipeline=dataclasses.replace(
            pipeline,
            log=dataclasses.replace(
                pipeline.log, num_users=120, num_items=200, num_topics=8, requests_per_user=15
            ),
            semantic_ids=dataclasses.replace(pipeline.semantic_ids, level_sizes=(13, 13)),
            model=dataclasses.replace(
                pipeline.model,
                d_model=32,
                num_heads=2,
                head_dim=16,
                d_ff=64,
                num_encoder_layers=1,
                num_decoder_layers=1,
                d_expert=32,
            ),
            pretrain=dataclasses.replace(pipeline.pretrain, loop=tiny),
            optim=dataclasses.replace(pipeline.optim, warmup_steps=2),
        ),
        reward=_shrunk(config.reward, tiny),
        judge=_shrunk(config.judge, tiny),
        align=dataclasses.replace(
            config.align,
            num_rounds=2,
            batch_size=16,
            candidates=CandidatesConfig(num_beams=8, batch_size=16, part_size=16),
            contrast=ContrastConfig(
                batch_size=16,
                optim=_round_optim(3e-4, warmup_steps=1),
                loop=LoopConfig(num_steps=6, log_every=2, checkpoint_every=3),
            ),
            optim=_round_optim(3e-4, warmup_steps=1),
            loop=LoopConfig(num_steps=6, log_every=2, checkpoint_every=3),
        ),
        evaluate=PolicyEvaluateConfig(
            num_users=24,
            num_beams=8,
            item_beams=16,
            best_of=(1, 4, 8),
            legality_users=8,
            batch_size=24,
            bootstrap_samples=100,
        ),
    )


def _for_watch_time(config: RewardConfig) -> RewardConfig:
    """Judges that fuse the head of session watch time alone.

    It is what the aim is stated in, and the head that orders sessions best by the truth; equal
    weights let the rare feedback heads outvote it (`docs/alignment.md`).
    """
    return dataclasses.replace(config, fusion=FusionConfig(weights=("swt=1.0",)))


def _round_optim(learning_rate: float, *, warmup_steps: int = 10) -> OptimConfig:
    """The optimizer of a round: it starts anew in every round."""
    return OptimConfig(
        learning_rate=learning_rate,
        schedule=Schedule.COSINE,
        warmup_steps=warmup_steps,
        final_fraction=0.1,
        weight_decay=0.0,
        beta2=0.98,
        clip_norm=1.0,
    )


def _shrunk(config: RewardConfig, loop: LoopConfig) -> RewardConfig:
    """A judge that trains for a moment."""
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, d_model=16, head_dim=8, d_tower=16),
        optim=dataclasses.replace(config.optim, warmup_steps=2),
        batch_size=64,
        valid_share=0.25,
        loop=loop,
    )


def table_demo() -> AlignmentTableConfig:
    """The table in the simulated world: every method on 3 seeds, 500 users each, on a CPU.

    About 45 minutes on 2 cores; `docs/alignment.md` has the measured times and results, also with
    `--weight-scales none mean_one`, which adds two rows of three rounds.
    """
    return AlignmentTableConfig(
        run_dir="runs/alignment_table",
        template=demo(),
        methods=TABLE_METHODS,
        weight_controls=WEIGHT_CONTROLS,
    )


def table_kuairand() -> AlignmentTableConfig:
    """The table on real Kuaishou rows with an explicit like or hate (KuaiRand-27K, your copy).

    Needs `--template.pipeline.log.path`. Session watch time, share liked, long views; there are
    too few follows for a head, and nobody knows the truth.
    """
    template = demo()
    pipeline = template.pipeline
    return AlignmentTableConfig(
        run_dir="runs/alignment_table_kuairand",
        template=dataclasses.replace(
            template,
            run_dir="runs/align_kuairand",
            pipeline=dataclasses.replace(
                pipeline,
                log=OwnLogConfig(
                    path="kuairand27k_like_hate.tsv",
                    columns=(
                        "item_id=video_id",
                        "timestamp=time_ms",
                        "watch_time_ms=play_time_ms",
                        "like=label",
                    ),
                ),
                sessions=dataclasses.replace(
                    pipeline.sessions,
                    positive=EventRuleConfig(rule=EventRule.ANY_OF, columns=("like",)),
                ),
                embeddings=EmbeddingConfig(
                    kind=EmbeddingKind.COLLABORATIVE,
                    # The log has no titles: items without training events are placed by their ids.
                    text=TextConfig(min_items=1),
                    collaborative=CollaborativeConfig(window=10),
                ),
                semantic_ids=SemanticIdConfig(level_sizes=(64, 64)),
            ),
            reward=training_judge(_for_watch_time(kuairand_like_hate())),
            judge=held_out_judge(_for_watch_time(kuairand_like_hate())),
        ),
        methods=TABLE_METHODS,
        weight_controls=WEIGHT_CONTROLS,
    )


def table_tiny() -> AlignmentTableConfig:
    """The table shrunk to three methods and one seed, in a few minutes; results mean nothing."""
    return AlignmentTableConfig(
        run_dir="runs/alignment_table_tiny",
        template=demo_tiny(),
        methods=(Method.SDPO, Method.ECPO, Method.CONTRASTIVE),
        weight_controls=(WeightControl.SHUFFLED,),
        seeds=(0,),
    )


def onerec_1b() -> AlignRunConfig:
    """Rounds of DPO for OneRec 1B on your own log, 128 candidates; for a pod slice.

    The paper gives N = 128 and r_DPO = 1 %; steps and batches are ours, untuned.
    """
    return _one_billion("runs/align_onerec_1b", onerec_1b_pipeline(), batch_size=1024, parts=1)


def onerec_1b_gpu() -> AlignRunConfig:
    """Rounds of DPO for OneRec 1B on one GPU of 80 GB, 128 candidates."""
    pipeline = onerec_1b_gpu_pipeline()
    return _one_billion("runs/align_onerec_1b_gpu", pipeline, batch_size=256, parts=2)


def _one_billion(
    run_dir: str, pipeline: PipelineConfig, *, batch_size: int, parts: int
) -> AlignRunConfig:
    """The alignment of OneRec 1B."""
    return AlignRunConfig(
        run_dir=run_dir,
        pipeline=pipeline,
        reward=training_judge(_for_watch_time(short_video())),
        judge=held_out_judge(_for_watch_time(short_video())),
        align=AlignConfig(
            method=MethodConfig(method=Method.DPO),
            candidates=CandidatesConfig(num_beams=128, batch_size=32),
            batch_size=batch_size,
            num_microbatches=parts,
            optim=_round_optim(2e-5, warmup_steps=100),
            loop=LoopConfig(num_steps=5000, log_every=50, checkpoint_every=500),
        ),
    )


ALIGN_PRESETS = {
    "demo": demo,
    "demo_tiny": demo_tiny,
    "movielens": movielens,
    "onerec_1b": onerec_1b,
    "onerec_1b_gpu": onerec_1b_gpu,
}
"""Presets of rec.align by name."""

TABLE_PRESETS = {"demo": table_demo, "kuairand": table_kuairand, "demo_tiny": table_tiny}
"""Presets of rec.alignment_table by name."""
