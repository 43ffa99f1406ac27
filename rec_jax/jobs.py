"""The jobs of the OneRec track: the pipeline, and each of its stages alone.

Dimension key: none.
"""

from core_jax.jobs import Job
from rec_jax.align_presets import ALIGN_PRESETS, TABLE_PRESETS
from rec_jax.alignment import run_align
from rec_jax.alignment_table import run_table
from rec_jax.config import PipelineConfig
from rec_jax.presets import PRESETS
from rec_jax.programs import align_programs, generate_programs, pretrain_programs
from rec_jax.stages import encode, evaluate, prepare, pretrain, recommend, report, tokenize
from rec_jax.world_jobs import AbTestConfig, SimulateConfig, run_ab_test, run_simulate


def run_pipeline(config: PipelineConfig) -> bool:
    """Runs every stage that is not done yet, then prints a user's recommendations.

    Returns whether all is done.
    """
    for stage in (prepare, tokenize):
        stage.run(config)
    if not run_pretrain(config):
        return False
    evaluate.run(config)
    report.run(config)
    print(f"\n{(evaluate.load_folder(config.run_dir) / 'report.txt').read_text()}")
    print(report.first_sample_text(config.run_dir))
    print(f"\nReport: {config.run_dir}/report/index.html")
    return True


def run_pretrain(config: PipelineConfig) -> bool:
    """Trains OneRec and, where configured, the point-wise model. Returns whether all is done."""
    done = pretrain.run(config)
    if done and config.pretrain.pointwise_steps:
        done = pretrain.run(config, pointwise=True)
    return done


def _recommend_defaults() -> recommend.RecommendConfig:
    """Three sessions out of 32 beams; seconds on a CPU."""
    return recommend.RecommendConfig()


def _encode_defaults() -> encode.EncodeConfig:
    """Codes of new items on the terminal, three near items beside each; seconds on a CPU."""
    return encode.EncodeConfig()


def _world_defaults() -> SimulateConfig:
    """A world of 1,000 users and 1,200 videos; seconds on a CPU."""
    return SimulateConfig()


def _ab_defaults() -> AbTestConfig:
    """500 users, 20 answers each; a minute on a CPU."""
    return AbTestConfig()


JOBS: dict[str, Job] = {
    "rec.pipeline": Job(
        run_pipeline, PRESETS, "OneRec from a log to a report: every stage.", may_change=("mesh",)
    ),
    "rec.prepare": Job(
        prepare.run, PRESETS, "Stage 1: log -> checked log, sessions.", may_change=("mesh",)
    ),
    "rec.tokenize": Job(
        tokenize.run, PRESETS, "Stage 2: items -> semantic IDs.", may_change=("mesh",)
    ),
    "rec.pretrain": Job(
        run_pretrain,
        PRESETS,
        "Stage 3: next-token training.",
        may_change=("mesh",),
        programs=pretrain_programs,
    ),
    "rec.evaluate": Job(
        evaluate.run,
        PRESETS,
        "Stage 4: OneRec against baselines.",
        may_change=("mesh",),
        programs=generate_programs,
    ),
    "rec.report": Job(
        report.run, PRESETS, "Stage 5: report/index.html with pictures.", may_change=("mesh",)
    ),
    "rec.recommend": Job(
        recommend.run,
        {"default": _recommend_defaults},
        "Sessions for one user (--user) or a history (--history), in words.",
        owns_run=False,
    ),
    "rec.encode": Job(
        encode.run,
        {"default": _encode_defaults},
        "Semantic IDs of new items (--items new_items.csv), by nearest centroid.",
        owns_run=False,
    ),
    "rec.align": Job(
        run_align,
        ALIGN_PRESETS,
        "Preference alignment in rounds, before three judges (--from RUN).",
        may_change=(
            "evaluate.bootstrap_samples",
            "evaluate.confidence",
            "evaluate.best_of",
            "pipeline.mesh",
        ),
        programs=align_programs,
    ),
    "rec.alignment_table": Job(
        run_table,
        TABLE_PRESETS,
        "Every preference method side by side, over several seeds.",
        may_change=(
            "methods",
            "weight_controls",
            "weight_scales",
            "seeds",
            "template.align.contrast",
        ),
    ),
    "rec.simulate": Job(
        run_simulate,
        {"default": _world_defaults},
        "Writes the log of a simulated short-video world, and says what is true of it.",
        owns_run=False,
    ),
    "rec.ab_test": Job(
        run_ab_test,
        {"default": _ab_defaults},
        "A true A/B test of two policies (random, popularity, oracle, RUN, RUN:round_2).",
        owns_run=False,
    ),
}
"""Every OneRec job by its name on the command line."""
