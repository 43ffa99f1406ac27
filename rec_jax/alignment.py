"""The alignment job: base model, judges, rounds, report (paper, Algorithm 2).

Dimension key: none.
"""

import dataclasses
import json
import pathlib

from core_jax.config import from_dict
from core_jax.errors import DataError
from core_jax.run_folder import stage_folder
from rec_jax.align.run_config import AlignRunConfig, Folders, folders_of
from rec_jax.config import PipelineConfig
from rec_jax.reward.fusion import describe, load_fusion
from rec_jax.stages import (
    align,
    align_evaluate,
    align_report,
    candidates,
    contrast,
    groups,
    prepare,
    pretrain,
    reward,
    tokenize,
)


def run_align(config: AlignRunConfig) -> bool:
    """Runs every stage that is not done yet, and prints what the judges say.

    Raises:
      DataError: `--from` names a folder that is no trained run.
    """
    config = resolved(config)
    folders = folders_of(config)
    if not (config.from_run or run_base(folders, config)):
        return False
    if not (run_shared(folders, config) and run_rounds(folders, config)):
        return False
    align_report.run(folders, config)
    fusion = load_fusion(stage_folder(folders.shared, reward.NAME) / "fusion.json")
    print(f"\n{align_report.text(folders)}\n\nReward model\n{describe(fusion)}")
    print(f"\nReport: {config.run_dir}/report/index.html")
    return True


def resolved(config: AlignRunConfig) -> AlignRunConfig:
    """The configuration with the base run's own settings in place of `pipeline`.

    Raises:
      DataError: `--from` names a folder that is no OneRec run.
    """
    if not config.from_run:
        pipeline = dataclasses.replace(config.pipeline, run_dir=config.run_dir)
        return dataclasses.replace(config, pipeline=pipeline)
    path = pathlib.Path(config.from_run) / "config.json"
    if not path.is_file():
        raise DataError(
            f"--from '{config.from_run}' is no run folder ('{path}' is absent); give the folder of "
            "a run that rec.pipeline or rec.pretrain made"
        )
    values = json.loads(path.read_text(encoding="utf-8"))
    # An alignment run has trained a OneRec too.
    values = values.get("pipeline", values) | {"run_dir": config.from_run}
    return dataclasses.replace(config, pipeline=from_dict(PipelineConfig, values))


def run_base(folders: Folders, config: AlignRunConfig) -> bool:
    """Log, semantic IDs and pre-training. Returns whether all is done."""
    pipeline = dataclasses.replace(config.pipeline, run_dir=folders.base)
    return all(stage.run(pipeline) for stage in (prepare, tokenize, pretrain))


def run_shared(folders: Folders, config: AlignRunConfig) -> bool:
    """Both judges, and what they say of the pre-trained model. Returns whether all is done."""
    mesh = config.pipeline.mesh
    for name, settings in ((reward.NAME, config.reward), (reward.JUDGE_NAME, config.judge)):
        if not reward.run(folders.shared, folders.base, settings, name=name, mesh=mesh):
            return False
    return align_evaluate.run_references(folders, config) and align_evaluate.run(folders, config, 0)


def run_rounds(folders: Folders, config: AlignRunConfig) -> bool:
    """Rounds 1 to T: candidates, groups, training, evaluation. Returns whether all is done.

    Contrastive cDPO scores the groups in between; for other methods that stage has nothing to do.
    """
    return all(
        stage.run(folders, config, number)
        for number in range(1, config.align.num_rounds + 1)
        for stage in (candidates, groups, contrast, align, align_evaluate)
    )
