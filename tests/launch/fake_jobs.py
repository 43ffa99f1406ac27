"""A small job dict, with everything the command line must handle."""

import dataclasses
import enum

from core_jax.errors import ConfigError, DataError
from core_jax.jobs import Job


class Kind(enum.Enum):
    SPARSE = "sparse"
    DENSE = "dense"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeModelConfig:
    """Sizes."""

    d_model: int = 7
    """Width of the residual stream."""
    kind: Kind = Kind.SPARSE
    """Sort of layer."""
    sizes: tuple[int, ...] = (3, 5)
    """Codes per level."""

    def __post_init__(self):
        if self.d_model < 1:
            raise ConfigError(f"model.d_model is {self.d_model}; it must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeConfig:
    """Root."""

    run_dir: str = "runs/fake"
    """Run folder."""
    seed: int = 0
    """Start of all randomness."""
    plan: bool = False
    """Only print what would be done."""
    model: FakeModelConfig = dataclasses.field(default_factory=FakeModelConfig)
    """The model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LookConfig:
    """What to look at."""

    run_dir: str = "runs/fake"
    """Run folder."""
    user: str = ""
    """A user."""


def small():
    """Two minutes on two cores.

    Result: none to speak of.
    """
    return FakeConfig()


def large():
    """A night on a pod."""
    return FakeConfig(model=FakeModelConfig(d_model=1009))


def look():
    """The latest run."""
    return LookConfig()


def make_jobs(seen):
    """Jobs that append the config they run with to `seen`."""

    def fail(config):
        raise DataError(f"'{config.run_dir}/events.csv' has no rows")

    presets = {"small": small, "large": large}
    return {
        "toy.pipeline": Job(
            seen.append,
            presets,
            "All stages.",
            short_flags={"--width": "--model.d-model", "--codes": "--model.sizes"},
            preview="plan",
        ),
        "toy.train": Job(seen.append, presets, "The training stage."),
        "toy.fail": Job(fail, {"small": small}, "Fails on its data."),
        "toy.look": Job(seen.append, {"latest": look}, "Looks into a run.", owns_run=False),
    }
