"""Stage: from graded trajectories to a positive set, a negative set and pairs.

Dimension key: none.
"""

import functools
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

from core_jax.errors import DataError
from core_jax.run_folder import read_done, run_stage, stage_folder
from reasoning_jax.align.answer_sets import SetsConfig, counts_table, make_sets
from reasoning_jax.align.pair_file import Pair, read_pairs, write_pairs
from reasoning_jax.answers.grader import Grader, GraderConfig
from reasoning_jax.data.trajectories import TrajectoryWriter, read_trajectories
from reasoning_jax.stages import rollout

NAME = "sets"
POSITIVE = "positive.jsonl"
"""Right solutions; the schema stands in `reasoning_jax.data.trajectories`."""
NEGATIVE = "negative.jsonl"
"""Wrong solutions."""
PAIRS = "pairs.jsonl"
"""One against the other; the schema stands in `reasoning_jax.align.pair_file`."""
COUNTS_TABLE = "counts.md"
"""How many there were at every step."""

_NUM_SHOWN = 5
_LOGGER = logging.getLogger(__name__)


def run(run_dir: str, *, rollout_dir: str, grader: GraderConfig, config: SetsConfig) -> bool:
    """Runs the stage unless it is done.

    Args:
      run_dir: the run folder, which gets the sets.
      rollout_dir: the run folder of the finished rollout that is read.
      grader: says which answers are equivalent.
      config: what is taken.

    Returns:
      Whether it is done now.

    Raises:
      DataError: the rollout is not done or not graded, or there is nothing to contrast.
    """
    parts = {
        "sets": config,
        "grader": grader,
        "rollout": read_done(rollout_dir, rollout.NAME)["fingerprint"],
    }
    return run_stage(run_dir, NAME, parts, functools.partial(_make, rollout_dir, grader, config))


def file_path(run_dir: str, name: str) -> pathlib.Path:
    """One of the stage's files, such as `POSITIVE`."""
    return stage_folder(run_dir, NAME) / name


def finished_pairs(run_dir: str) -> tuple[Pair, ...]:
    """The pairs of a finished stage.

    Raises:
      DataError: the stage is not done, or its file is not what it has written.
    """
    expected = read_done(run_dir, NAME)["facts"]["pairs"]
    path = file_path(run_dir, PAIRS)
    pairs = read_pairs(path)
    if len(pairs) != expected:
        raise DataError(
            f"'{path}' holds {len(pairs)} pairs; the stage '{NAME}' has written {expected}: remove "
            f"'{path.parent}' and run it again"
        )
    return pairs


def _make(
    rollout_dir: str, grader: GraderConfig, config: SetsConfig, folder: pathlib.Path
) -> Mapping[str, Any]:
    """Reads the trajectories, writes the sets."""
    path = rollout.trajectories_path(rollout_dir)
    with Grader(grader) as asked:
        made = make_sets(read_trajectories(path), asked, config)
    table = counts_table(made.counts)
    (folder / COUNTS_TABLE).write_text(table + "\n", encoding="utf-8")
    _LOGGER.info("sets of '%s':\n%s", path, table)
    if made.mixed:
        _LOGGER.warning(
            "%d problems have an answer whose solutions are graded differently, such as %s; these "
            "answers are left out",
            len(made.mixed),
            ", ".join(f"'{name}'" for name in made.mixed[:_NUM_SHOWN]),
        )
    if not made.pairs:
        raise DataError(_no_pair(path, made.counts))
    for name, trajectories in ((POSITIVE, made.positive), (NEGATIVE, made.negative)):
        (folder / name).unlink(missing_ok=True)  # of a run that was cut off
        with TrajectoryWriter(folder / name) as writer:
            writer.write(list(trajectories))
    write_pairs(folder / PAIRS, made.pairs)
    return dict(made.counts)


def _no_pair(path: pathlib.Path, counts: Mapping[str, int]) -> str:
    """Says why there is nothing to contrast, and what to do about it."""
    remedies = ["Sample more solutions per problem (sampling.num_samples)"]
    if counts["none_correct"]:
        remedies.append("at a lower temperature, or problems that are easier, for right answers")
    if counts["none_wrong"]:
        remedies.append("at a higher temperature, or problems that are harder, for wrong answers")
    if counts["cut_off"]:
        remedies.append("longer ones (sampling.max_new_tokens), or keep those that were cut off")
    return (
        f"'{path}' gives no pair: of {counts['problems']} problems {counts['none_correct']} have "
        f"no right answer, {counts['none_wrong']} no wrong one, {counts['none_answered']} none at "
        f"all, {counts['none_clear']} only answers that are graded differently; "
        f"{counts['cut_off']} of {counts['samples']} solutions were cut off. {'; '.join(remedies)}"
    )
