"""What a run tells while it trains: `metrics.jsonl`, TensorBoard, a progress line.

Only process 0 writes.

Dimension key: none.
"""

import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tqdm

from core_jax.event_file import EventFile

_LINE_SECONDS = 10.0

Row = dict[str, Any]
"""One line of `metrics.jsonl`: "step" and the metrics; null for what is not finite."""


class Reporter:
    """Writes metrics and progress of one training stage; a context manager.

    Args:
      folder: gets `metrics.jsonl` and `tensorboard/`.
      total_steps: steps of the whole stage.
      name: shown in front of the progress.
      restored_step: the step that training goes on from. Rows beyond it, which a run that was
        cut off has left, are removed: they are about to be written again.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        total_steps: int,
        name: str,
        restored_step: int = 0,
    ):
        self.rows: list[Row] = []
        self._total_steps = total_steps
        self._name = name
        self._initial = self._step = restored_step
        self._start = self._last_line = time.monotonic()
        self._postfix = ""
        self._file = self._board = self._bar = None
        if jax.process_index() != 0:
            return
        path = pathlib.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        self.rows = _cut_rows(path / "metrics.jsonl", restored_step)
        self._board = EventFile(path / "tensorboard", restored_step=restored_step)
        self._file = (path / "metrics.jsonl").open("a", encoding="utf-8")
        if sys.stderr.isatty():
            self._bar = tqdm.tqdm(
                total=total_steps, initial=restored_step, desc=name, unit="step", ascii=True
            )

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one row.

        Args:
          step: number of the step that the metrics end with.
          metrics: numbers or arrays by name. Arrays go to `metrics.jsonl` as lists and not to
            TensorBoard.
        """
        row = {"step": step} | {name: _plain(value) for name, value in metrics.items()}
        self.rows.append(row)
        if "loss" in row:
            loss = row["loss"]
            self._postfix = f"loss {loss:.4f}" if loss is not None else "loss not finite"
        if self._file is None or self._board is None:
            return
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        scalars = {
            name: value
            for name, value in row.items()
            if name != "step" and isinstance(value, int | float)
        }
        self._board.add(step, scalars)

    def advance(self, step: int) -> None:
        """Shows that `step` has been reached."""
        advanced, self._step = step - self._step, step
        if self._bar is not None:
            self._bar.set_postfix_str(self._postfix, refresh=False)
            self._bar.update(advanced)
        elif self._file is not None and time.monotonic() - self._last_line >= _LINE_SECONDS:
            self._print_line()

    def close(self) -> None:
        """Ends the progress display and closes the files."""
        if self._file is None or self._board is None:
            return
        if self._bar is not None:
            self._bar.close()
        else:
            self._print_line()
        file, self._file = self._file, None
        with file:
            self._board.close()

    def _print_line(self) -> None:
        """Prints the progress as a line of its own, for logs that are not a terminal."""
        self._last_line = time.monotonic()
        line = tqdm.tqdm.format_meter(
            self._step,
            self._total_steps,
            self._last_line - self._start,
            prefix=self._name,
            ascii=True,
            unit="step",
            initial=self._initial,
            postfix=self._postfix,
            bar_format="{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} "
            "[{elapsed}<{remaining}, {rate_fmt}{postfix}]",
        )
        print(line, file=sys.stderr, flush=True)


def _cut_rows(path: pathlib.Path, restored_step: int) -> list[Row]:
    """Removes the rows beyond the restored step (and a torn last line); returns the others."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if row["step"] <= restored_step:
            rows.append(row)
    rewritten = path.with_suffix(".tmp")
    rewritten.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rewritten.replace(path)
    return rows


def _plain(value: Any) -> Any:
    """Returns a number or nested list that JSON can hold; None for what is not finite."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, list | tuple):
        return [_plain(element) for element in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
