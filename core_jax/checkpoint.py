"""Checkpoints on Orbax: state, data position and configuration fingerprint as one verified value.

Orbax stores the arrays and makes a step appear all at once; each step also carries a table with
the checksum, dtype and shape of every leaf (`leaf_table.py`). `restore` verifies the table and
passes over damaged steps to the newest good one.

Layout: `FOLDER/STEP/state` (Orbax, one array per leaf), `FOLDER/STEP/meta` (JSON),
`FOLDER/damaged/STEP` (steps that a restore passed over, set aside by the next save).
"""

import contextlib
import dataclasses
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from core_jax.arrays import Params, PyTree
from core_jax.checkpoint_step import DamagedError, agreed, read_meta, read_state, save_arguments
from core_jax.errors import CheckpointError
from core_jax.processes import wait_for_all
from core_jax.storage import checkpoint_place, is_url
from core_jax.storage_errors import clear_storage_errors, describe_fault

_LOG = logging.getLogger(__name__)
_DAMAGED = "damaged"
_TEMPORARY = re.compile(r"^(\d+)\.orbax-checkpoint-tmp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """What `Checkpoints.restore` found."""

    state: PyTree
    """The state, on the devices and with the shardings that were asked for."""
    step: int
    """The step the state was saved at."""
    position: dict[str, Any]
    """The position of the input pipeline at that step."""
    passed_over: tuple[str, ...]
    """One sentence for each newer step that was not usable, newest first."""


class Checkpoints:
    """The checkpoints of one run: saves, keeps the newest (and the best), restores.

    Every process of a multi-process run makes the same calls in the same order.

    Args:
      folder: where the steps lie; made when absent.
      keep: how many of the newest steps stay on disk. The step with the highest `score` stays
        as well, whatever its age.
      asynchronous: whether `save` returns while the files are still being written. A step counts
        only once it is complete; `wait` and `close` wait for that.

    Example:
      with Checkpoints(folder, keep=3) as checkpoints:
          restored = checkpoints.restore(abstract_state, fingerprint=fingerprint)
          ...
          checkpoints.save(step, state, position=position, fingerprint=fingerprint)
    """

    def __init__(self, folder: str | os.PathLike, *, keep: int = 3, asynchronous: bool = True):
        if keep < 1:
            raise CheckpointError(f"keep is {keep}; at least 1 step must be kept.")
        self._folder = _absolute(folder)
        self._keep = keep
        self._cut_off = _cut_off_saves(self._folder)
        self._damaged: list[int] = []
        self._unfinished: int | None = None
        with clear_storage_errors(f"the checkpoints in {self._folder}"):
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    enable_async_checkpointing=asynchronous,
                    cleanup_tmp_directories=True,
                    preservation_policy=self,
                ),
            )
        self._scores = {step: _score(self._folder, step) for step in self.steps()}

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Returns the steps on disk, oldest first, good or not."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """Returns the newest step on disk, good or not; None without any."""
        return max(self.steps(), default=None)

    def best(self) -> tuple[int, float] | None:
        """Returns the step with the highest score and that score; the earliest of equals."""
        scored = [(-score, step) for step, score in self._scores.items() if score is not None]
        return (min(scored)[1], -min(scored)[0]) if scored else None

    def save(
        self,
        step: int,
        state: PyTree,
        *,
        position: dict[str, Any],
        fingerprint: str,
        score: float | None = None,
    ) -> None:
        """Saves one step; the state may be donated as soon as this returns.

        Args:
          step: number of the step, higher than any saved before.
          state: pytree of arrays.
          position: position of the input pipeline, JSON-able, the same on every process.
          fingerprint: fingerprint of the configuration that made the state.
          score: how good this step is, higher is better; the best step is kept.

        Raises:
          CheckpointError: the step is on disk already.
        """
        self._set_damaged_aside()
        if step in self.steps():
            raise CheckpointError(
                f"Step {step} is already in {self._folder}; restore the newest step and go on "
                "from there, or use an empty folder."
            )
        self.wait()
        self._scores[step] = score if score is not None and math.isfinite(score) else None
        arguments = save_arguments(
            state,
            step=step,
            position=position,
            fingerprint=fingerprint,
            score=self._scores[step],
        )
        self._unfinished = step
        with self._writing():
            self._manager.save(step, args=arguments, force=True)

    def restore(self, abstract_state: PyTree, *, fingerprint: str) -> Restored | None:
        """Restores the newest step that is whole, onto the shardings asked for.

        Args:
          abstract_state: pytree of `jax.ShapeDtypeStruct` (or arrays) with shardings; the mesh
            may differ from the one that saved.
          fingerprint: fingerprint of the running configuration.

        Returns:
          The restored step, or None when the folder has no steps.

        Raises:
          CheckpointError: no step is good, or the checkpoint is of another configuration.
        """
        self.wait()
        steps = self.steps()[::-1]
        reasons = {
            step: "the save was cut off before it was complete"
            for step in self._cut_off
            if step not in steps
        }
        for step in steps:
            try:
                meta = agreed(lambda step=step: read_meta(self._folder, step))
                if meta["fingerprint"] == fingerprint:
                    state = read_state(self._folder, step, abstract_state, meta["leaves"])
            except DamagedError as error:
                reasons[step] = str(error)
                self._damaged.append(step)
                continue
            if meta["fingerprint"] != fingerprint:
                raise CheckpointError(
                    f"The checkpoint {self._folder / str(step)} is of configuration "
                    f"{meta['fingerprint']}, this run of {fingerprint}. Use the configuration it "
                    "was made with, or another (or an empty) run folder."
                )
            passed_over = _report_passed_over(self._folder, step, reasons)
            return Restored(
                state=state, step=step, position=meta["position"], passed_over=passed_over
            )
        if not steps:
            _report_passed_over(self._folder, -1, reasons)
            return None
        raise _none_good(self._folder, reasons)

    def wait(self) -> None:
        """Waits until every save is complete on disk.

        Raises:
          CheckpointError: the disk did not take it.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the saves and ends the background threads."""
        with self._writing():
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Names step, folder and remedy when the disk does not take a step."""
        try:
            yield
        except Exception as error:
            reason = describe_fault(error)
            if reason is None:
                raise
            raise CheckpointError(
                f"Step {self._unfinished} could not be written to {self._folder}: {reason}"
            ) from error

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> list[bool]:
        """Tells Orbax which steps stay: the newest `keep` and the one with the best score."""
        del context
        newest = sorted(info.step for info in checkpoints)[-self._keep :]
        best = self.best()
        kept = {*newest, best[0]} if best else set(newest)
        self._scores = {step: score for step, score in self._scores.items() if step in kept}
        return [info.step in kept for info in checkpoints]

    def _set_damaged_aside(self) -> None:
        """Moves the steps that `restore` passed over to `damaged`, out of count and way."""
        if not self._damaged:
            return
        if jax.process_index() == 0:
            (self._folder / _DAMAGED).mkdir(exist_ok=True)
            for step in self._damaged:
                target = self._folder / _DAMAGED / str(step)
                number = 1
                while target.exists():
                    target = self._folder / _DAMAGED / f"{step}.{number}"
                    number += 1
                (self._folder / str(step)).rename(target)
        wait_for_all("damaged checkpoints set aside")
        for step in self._damaged:
            self._scores.pop(step, None)
        self._damaged = []
        self._manager.reload()


def restore_params(
    folder: str | os.PathLike, abstract_params: PyTree, *, step: int | None = None
) -> Params:
    """Restores only the parameters (the state's field `params`) of a checkpoint.

    Args:
      folder: the folder that `Checkpoints` wrote to.
      abstract_params: pytree of `jax.ShapeDtypeStruct` (or arrays) with shardings.
      step: the step to read; None for the newest good one.

    Returns:
      The parameters, verified against their checksums.

    Raises:
      CheckpointError: there is no such step, or none that is good.
    """
    root = _absolute(folder)
    on_disk = sorted(_step_folders(root), reverse=True)
    steps = on_disk if step is None else [step]
    if not on_disk or steps[0] not in on_disk:
        wanted = "any step" if step is None else f"step {step}"
        raise CheckpointError(
            f"{root} does not have {wanted}; it has {on_disk[::-1] or 'none'}. Train first, or "
            "name a step that is there."
        )
    reasons: dict[int, str] = {}
    for candidate in steps:
        try:
            meta = agreed(lambda step=candidate: read_meta(root, step))
            tree = {"params": abstract_params}
            leaves = {
                path: row for path, row in meta["leaves"].items() if path.startswith("params/")
            }
            state = read_state(root, candidate, tree, leaves)
        except DamagedError as error:
            reasons[candidate] = str(error)
            continue
        _report_passed_over(root, candidate, reasons)
        return state["params"]
    raise _none_good(root, reasons)


def _score(root: epath.Path, step: int) -> float | None:
    """Returns the score that a step on disk was saved with; None if it cannot be read."""
    with contextlib.suppress(DamagedError):
        return agreed(lambda: read_meta(root, step))["score"]
    return None


def _absolute(folder: str | os.PathLike) -> epath.Path:
    """Returns the folder as an absolute path (Orbax refuses relative ones); gs:// stays."""
    place = checkpoint_place(folder)
    return epath.Path(place) if is_url(place) else epath.Path(place).absolute()


def _step_folders(root: epath.Path) -> list[int]:
    """Returns the numbers of the complete step folders below `root`."""
    with clear_storage_errors(f"the checkpoints in {root}"):
        children = list(root.iterdir()) if root.exists() else []
    return [int(child.name) for child in children if child.name.isdigit()]


def _cut_off_saves(root: epath.Path) -> list[int]:
    """Returns the steps whose save a crash cut off, from the temporary folders left behind."""
    with clear_storage_errors(f"the checkpoints in {root}"):
        names = [child.name for child in root.iterdir()] if root.exists() else []
    return [int(match[1]) for match in map(_TEMPORARY.match, names) if match]


def _report_passed_over(root: epath.Path, step: int, reasons: dict[int, str]) -> tuple[str, ...]:
    """Warns of each step newer than `step` that was not usable; returns one sentence for each."""
    sentences = tuple(
        f"step {damaged}: {reasons[damaged]}"
        for damaged in sorted(reasons, reverse=True)
        if damaged > step
    )
    for sentence in sentences:
        _LOG.warning("Passed over a checkpoint in %s: %s", root, sentence)
    return sentences


def _none_good(root: epath.Path, reasons: dict[int, str]) -> CheckpointError:
    """Returns the error for a folder in which no step is usable."""
    lines = [f"  step {step}: {reasons[step]}" for step in sorted(reasons, reverse=True)]
    return CheckpointError(
        f"None of the checkpoints in {root} can be restored:\n" + "\n".join(lines) + "\n"
        "Restore the folder from a copy, or remove it to train from the start."
    )
