"""The alignment job shrunk to a world of a few users, for the tests of a whole run."""

import dataclasses
import pathlib

from core_jax.mesh import MeshConfig
from rec_jax.align.run_config import AlignRunConfig
from rec_jax.align_presets import demo_tiny


def shrunk_alignment(folder: pathlib.Path, *, mesh: MeshConfig | None = None) -> AlignRunConfig:
    """The tiny preset in a folder of its own."""
    config = demo_tiny()
    pipeline = dataclasses.replace(config.pipeline, mesh=mesh or MeshConfig(data=8))
    return dataclasses.replace(config, run_dir=str(folder), pipeline=pipeline)
