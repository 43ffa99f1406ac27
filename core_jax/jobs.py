"""A job: what the command line can start by name.

Dimension key: none.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core_jax.programs import Program


@dataclasses.dataclass(frozen=True)
class Job:
    """One entry of a track's `JOBS` dict, whose key is the name on the command line.

    Attributes:
      run: does the work, given a config of the type that the presets return. That config has a
        field `run_dir`, the run folder. Returns False when it was asked to end before it was
        done and has saved where it was; anything else means that it is done.
      presets: name to a function that returns a full config; the first line of its docstring is
        what the command line lists.
      summary: one line for the command line's list of jobs.
      owns_run: whether the config is the run's own: it is written to `config.json` in the run
        folder, and must equal the one that is there. False for a job that only looks into a run
        and has a config of another type.
      may_change: dotted names of fields (each with all below it) in which the config may differ
        from the one in the run folder, which then gets the new values: what no finished result
        depends on, or what its stage does again.
      short_flags: short names of flags, each with the flag that it stands for.
      preview: name of a boolean field with which the job only prints what it would do; no run
        folder is made then. "": there is none.
    """

    run: Callable[[Any], bool | None]
    presets: Mapping[str, Callable[[], Any]]
    summary: str
    owns_run: bool = True
    may_change: tuple[str, ...] = ()
    short_flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    preview: str = ""
    programs: Callable[[Any], Sequence[Program]] | None = None
