"""The training loop: steps, evaluation, checkpoints, reports, and how a run stops and goes on.

Dimension key: none.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from core_jax.arrays import PyTree
from core_jax.checkpoint import Checkpoints
from core_jax.data.pipeline import Pipeline, to_device
from core_jax.errors import ConfigError, DataError, NonFiniteError, nearest_name
from core_jax.mesh import replicated
from core_jax.metrics import Metrics, compute, merge
from core_jax.processes import several, wait_for_all
from core_jax.profiling import StepTimer, TraceWindow
from core_jax.report import Reporter, Row
from core_jax.train_state import TrainState
from core_jax.train_step import TrainStep

_STEPS_TAKEN = itertools.count(1)
"""Steps of this process, over all its loops; every process of a job takes the same."""

Evaluate = Callable[[TrainState], Mapping[str, float]]
"""Evaluates a state: values by name, as they are to stand in the report."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long to train, and what to do on the way. All counts are train steps."""

    num_steps: int
    """Steps to train, those before a restart included."""
    log_every: int = 10
    """Steps between rows of the report."""
    evaluate_every: int = 0
    """Steps between evaluations; 0: only at the end."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: only at the end and when an evaluation is the best so far."""
    keep_checkpoints: int = 3
    """Newest checkpoints to keep on disk; the best one stays besides."""
    max_skipped_in_a_row: int = 10
    """Steps in a row with a loss or gradient that is not finite, after which the run stops."""
    profile_steps: tuple[int, int] | None = None
    """First and last step of a profiler trace; none by default."""

    def __post_init__(self) -> None:
        """Checks every field on its own."""
        for name, least in (
            ("num_steps", 1),
            ("log_every", 1),
            ("evaluate_every", 0),
            ("checkpoint_every", 0),
            ("keep_checkpoints", 1),
            ("max_skipped_in_a_row", 1),
        ):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"loop.{name} is {getattr(self, name)}; it must be at least {least}"
                )
        if (
            self.profile_steps is not None
            and not 1 <= self.profile_steps[0] <= (self.profile_steps[1])
        ):
            raise ConfigError(
                f"loop.profile_steps is {self.profile_steps}; give the first and the last step, "
                "counted from 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitResult:
    """How a training run ended."""

    state: TrainState
    """The state after the last step."""
    step: int
    """Number of the last step."""
    history: list[Row]
    """The rows of the report, those before a restart included."""
    best_step: int
    """The step with the best metric, kept as a checkpoint; the last step without a metric."""
    preempted: bool = False
    """Whether a SIGTERM came before the last step's end; the state of `step` is saved."""


def fit(
    *,
    state: TrainState,
    train_step: TrainStep,
    pipeline: Pipeline,
    key: jax.Array,
    folder: str | os.PathLike,
    config: LoopConfig,
    fingerprint: str,
    evaluate: Evaluate | None = None,
    best_metric: str | None = None,
    lower_is_better: bool = False,
    tokens_per_batch: int | None = None,
    flops_per_step: float | None = None,
) -> FitResult:
    """Trains, from the newest good checkpoint in `folder` if there is one.

    A run that was cut off and is called again ends with the state, bit for bit, of a run that was
    not: state and data position are saved as one, and randomness depends on key and step alone.

    Args:
      state: initial state, on its mesh; given up, as its buffers are donated.
      train_step: from `make_train_step`.
      pipeline: batches of this host; its position is saved and restored.
      key: random key of the run; each step folds its number in.
      folder: of this stage; gets `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `trace/`.
      config: see `LoopConfig`.
      fingerprint: fingerprint of the whole configuration; a checkpoint of another is refused.
      evaluate: called every `evaluate_every` steps and at the end.
      best_metric: name of the evaluated value by which the best checkpoint is kept.
      lower_is_better: whether the best value is the lowest.
      tokens_per_batch: tokens in a global batch, to report tokens per second.
      flops_per_step: FLOPs the model needs for a step, to report utilisation.

    Returns:
      The final state and how the run went.

    Raises:
      NonFiniteError: too many steps in a row were not finite.
      DataError: the pipeline ended before `num_steps`.
      CheckpointError: the checkpoints are of another configuration, or none of them is good.
      ConfigError: `best_metric` is not among the evaluated values.
    """
    if best_metric is not None and evaluate is None:
        raise ConfigError(f"best_metric is '{best_metric}', but nothing is evaluated")
    folder = pathlib.Path(folder)
    mesh = _mesh_of(state)
    wait_for_all("training")
    with contextlib.ExitStack() as stack:
        preempted = stack.enter_context(_preemption())  # left last: with everything saved
        checkpoints = stack.enter_context(
            Checkpoints(folder / "checkpoints", keep=config.keep_checkpoints)
        )
        state = _resume(state, checkpoints, pipeline, fingerprint)
        start = int(jax.device_get(state.step))
        reporter = stack.enter_context(
            Reporter(folder, total_steps=config.num_steps, name=folder.name, restored_step=start)
        )
        timer = StepTimer(
            tokens_per_step=tokens_per_batch, flops_per_step=flops_per_step, num_devices=mesh.size
        )
        window = _Window(
            reporter, timer, config, skipped_in_a_row=int(jax.device_get(state.skipped_in_a_row))
        )
        trace = stack.enter_context(TraceWindow(folder / "trace", config.profile_steps))
        key = _replicate_key(key, mesh)
        stop = False
        for step in range(start + 1, config.num_steps + 1):
            with timer.input():
                batch = _next_batch(pipeline, mesh, step, config)
            trace.before(step)
            with jax.transfer_guard("disallow"):
                state, metrics = train_step(state, batch, key)
            position = pipeline.get_position()
            window.push(step, metrics)
            trace.after(step, metrics)
            stop, last = preempted(step), step == config.num_steps
            evaluates = evaluate is not None and (last or _is_due(step, config.evaluate_every))
            saves = stop or last or _is_due(step, config.checkpoint_every)
            if not (evaluates or saves):
                continue
            row = window.take()
            values = dict(evaluate(state)) if evaluate and evaluates else {}
            reporter.log(step, row | values)
            score = _score(values, best_metric, lower_is_better)
            if saves or _improves(score, checkpoints.best()):
                checkpoints.save(
                    step, state, position=position, fingerprint=fingerprint, score=score
                )
            timer.restart()
            if stop:
                break
        step = int(jax.device_get(state.step))
        return FitResult(
            state=state,
            step=step,
            history=reporter.rows,
            best_step=(checkpoints.best() or (step, 0.0))[0],
            preempted=stop,
        )


class _Window:
    """The steps since the last row of the report: their metrics, merged, and their time.

    The metrics of a step are read only after the next step has been dispatched, so that the
    device always has work.
    """

    def __init__(
        self, reporter: Reporter, timer: StepTimer, config: LoopConfig, *, skipped_in_a_row: int
    ):
        self._reporter = reporter
        self._timer = timer
        self._config = config
        self._skipped_in_a_row = skipped_in_a_row
        self._pending: tuple[int, Metrics] | None = None
        self._metrics: Metrics | None = None

    def push(self, step: int, metrics: Metrics) -> None:
        """Takes over a dispatched step; reads, and reports if due, the one before."""
        before = self._pending
        self._read()
        if before is not None and _is_due(before[0], self._config.log_every) and self._metrics:
            self._reporter.log(before[0], self._end())
        self._pending = (step, metrics)

    def take(self) -> dict[str, Any]:
        """Waits for the last step, ends the window and returns its row."""
        self._read()
        return self._end()

    def _read(self) -> None:
        """Waits for the metrics of the last step taken over and adds them to the window."""
        if self._pending is None:
            return
        step, metrics = self._pending[0], jax.device_get(self._pending[1])
        self._pending = None
        self._metrics = merge(self._metrics, metrics) if self._metrics else metrics
        self._timer.count_step()
        self._reporter.advance(step)
        skipped = metrics["skipped"].total > 0
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        if self._skipped_in_a_row >= self._config.max_skipped_in_a_row:
            raise NonFiniteError(
                f"Step {step}: loss or gradient was not finite in {self._skipped_in_a_row} steps "
                "in a row (loop.max_skipped_in_a_row); no update was made in them. Lower the "
                "learning rate, clip gradients, or look at the batches of these steps."
            )

    def _end(self) -> dict[str, Any]:
        """Returns metrics and times of the window and starts the next."""
        metrics, self._metrics = self._metrics, None
        return compute(metrics or {}) | self._timer.window()


def _mesh_of(state: TrainState) -> Mesh:
    """Returns the mesh that the state lies on."""
    sharding = state.step.sharding
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        raise ConfigError(f"the state lies on {sharding}, not on a mesh; make it with init_state")
    return sharding.mesh


def _replicate_key(key: jax.Array, mesh: Mesh) -> jax.Array:
    """Returns the key on every device of the mesh, those of other processes included."""
    words = jax.device_get(jax.random.key_data(key))
    placed = jax.make_array_from_process_local_data(replicated(mesh), words, words.shape)
    return jax.random.wrap_key_data(placed, impl=jax.random.key_impl(key))


def _resume(
    state: TrainState, checkpoints: Checkpoints, pipeline: Pipeline, fingerprint: str
) -> TrainState:
    """Returns the newest good checkpoint's state, or the given one when there is none."""
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    if checkpoints.steps():
        jax.tree.map(lambda leaf: leaf.delete(), state)  # room for the one that replaces it
    restored = checkpoints.restore(abstract, fingerprint=fingerprint)
    if restored is None:
        return state
    pipeline.set_position(restored.position)
    return restored.state


def _next_batch(pipeline: Pipeline, mesh: Mesh, step: int, config: LoopConfig) -> PyTree:
    """Returns the next batch on the devices."""
    batch = next(pipeline, None)
    if batch is None:
        raise DataError(
            f"The pipeline ended before step {step} of {config.num_steps}; give it "
            "num_epochs=None, or train fewer steps."
        )
    return to_device(batch, mesh)


def _is_due(step: int, every: int) -> bool:
    """Whether something done every so many steps (0: never) is to be done at this one."""
    return every > 0 and step % every == 0


def _score(
    values: Mapping[str, float], best_metric: str | None, lower_is_better: bool
) -> float | None:
    """Returns how good an evaluation was, higher is better; None without one."""
    if best_metric is None or not values:
        return None
    if best_metric not in values:
        raise ConfigError(
            f"best_metric '{best_metric}' is not among the evaluated values. "
            f"{nearest_name(best_metric, values)}"
        )
    return -float(values[best_metric]) if lower_is_better else float(values[best_metric])


def _improves(score: float | None, best: tuple[int, float] | None) -> bool:
    """Whether a score is better than the best so far; NaN never is."""
    return score is not None and score > (best[1] if best else -math.inf)


@contextlib.contextmanager
def _preemption() -> Iterator[Callable[[int], bool]]:
    """Yields a function of the step that tells whether the run has been asked to end (SIGTERM).

    A signal that this function has had no step left to tell of goes on to who handled it before.
    In a run of several processes JAX sees the signal and all processes learn of it at the same
    step.
    """
    if several():
        # Of all loops in this process, not of this one: JAX agrees on a number to stop at, which
        # must not lie behind what a loop after this one counts.
        yield lambda step: multihost_utils.reached_preemption_sync_point(next(_STEPS_TAKEN))
        return
    asked, told = threading.Event(), threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return

    def preempted(step: int) -> bool:
        if asked.is_set():
            told.set()
        return told.is_set()

    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    try:
        yield preempted
    finally:
        signal.signal(signal.SIGTERM, before)
        if asked.is_set() and not told.is_set():
            signal.raise_signal(signal.SIGTERM)
