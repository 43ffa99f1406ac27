"""Step time, throughput, model FLOP utilisation, and a trace window.

Dimension key: none.
"""

import contextlib
import functools
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

PEAK_FLOPS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "Tesla T4": 65e12,
    "Tesla V100": 125e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
}
"""Dense bfloat16 (float16 before Ampere) peak of one JAX device, FLOP/s, by start of its kind."""


class StepTimer:
    """Measures windows of training steps.

    The caller says when it waits for input and when a step is complete on the device; times are
    wall-clock seconds on the host. The first step, which compiles, is measured apart.

    Args:
      tokens_per_step: tokens in a global batch; None if not known.
      flops_per_step: FLOPs that the model needs for one step, forward and backward, over all
        devices; None if not known.
      num_devices: devices that share the step.
    """

    def __init__(
        self,
        *,
        tokens_per_step: int | None = None,
        flops_per_step: float | None = None,
        num_devices: int = 1,
    ):
        self._tokens = tokens_per_step
        self._flops = flops_per_step
        self._peak = device_peak_flops() * num_devices if flops_per_step else 0.0
        self._first_step_seconds: float | None = None
        self._counted_any = False
        self.restart()

    def restart(self) -> None:
        """Starts a window now: nothing measured so far counts."""
        self._start = time.perf_counter()
        self._steps = 0
        self._input_seconds = 0.0

    def count_step(self) -> None:
        """Counts one step whose results have arrived."""
        if self._counted_any:
            self._steps += 1
            return
        self._counted_any = True
        self._first_step_seconds = time.perf_counter() - self._start
        self.restart()

    @contextlib.contextmanager
    def input(self) -> Iterator[None]:
        """Measures the time in which the loop waits for a batch."""
        start = time.perf_counter()
        yield
        self._input_seconds += time.perf_counter() - start

    def window(self) -> dict[str, float]:
        """Ends the window and starts the next.

        Returns:
          "step_seconds" (per step), "steps_per_second", "input_fraction" (time waiting for
          batches over all time, 0 to 1) and, where known, "tokens_per_second" and "mfu"; none
          of them when no step but the first was counted. Once, "first_step_seconds" (compilation
          included).
        """
        seconds = time.perf_counter() - self._start
        steps, input_seconds = self._steps, self._input_seconds
        self.restart()
        metrics = {}
        if self._first_step_seconds is not None:
            metrics["first_step_seconds"] = self._first_step_seconds
            self._first_step_seconds = None
        if not steps:
            return metrics
        metrics["step_seconds"] = seconds / steps
        metrics["steps_per_second"] = steps / seconds
        metrics["input_fraction"] = input_seconds / seconds
        if self._tokens:
            metrics["tokens_per_second"] = self._tokens * steps / seconds
        if self._flops:
            metrics["mfu"] = model_flops_utilisation(self._flops, seconds / steps, self._peak)
        return metrics


def model_flops_utilisation(flops_per_step: float, seconds: float, peak: float) -> float:
    """Returns the share of the peak that the model's own FLOPs take.

    Args:
      flops_per_step: FLOPs that the model needs for a step; recomputation does not count.
      seconds: wall-clock time of a step.
      peak: FLOP/s that the devices together could do.

    Returns:
      Model FLOP utilisation, 0 to 1 (Chowdhery et al., 2022, arXiv:2204.02311, Appendix B).

    >>> model_flops_utilisation(2e12, 4.0, 1e12)
    0.5
    """
    return flops_per_step / (seconds * peak)


@functools.cache
def device_peak_flops() -> float:
    """Returns the peak FLOP/s of one device.

    For accelerators in the table this is the vendor's dense bfloat16 number. For any other device
    it is what a matrix product reaches here and now: float32 on CPUs, bfloat16 elsewhere. CPU
    devices of one host share its cores, and so the number.
    """
    kind = jax.local_devices()[0].device_kind
    known = [name for name in PEAK_FLOPS if re.match(rf"{name}\b", kind)]
    if known:
        return PEAK_FLOPS[max(known, key=len)]
    if jax.default_backend() == "cpu":
        return _measured_matmul_flops(1024, jnp.float32) / jax.local_device_count()
    return _measured_matmul_flops(4096, jnp.bfloat16)


def _measured_matmul_flops(size: int, dtype: Any) -> float:
    """Returns the best FLOP/s of a few square matrix products on one device."""
    ones = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul).lower(ones, ones).compile()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(product(ones, ones))
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


class TraceWindow:
    """Records a profiler trace of the steps `first` to `last`; of nothing when `steps` is None.

    Args:
      folder: where the trace goes, for TensorBoard or Perfetto.
      steps: numbers of the first and the last step of the trace.
    """

    def __init__(self, folder: str | os.PathLike, steps: tuple[int, int] | None):
        self._folder = os.fspath(folder)
        self._steps = steps
        self._running = False

    def __enter__(self) -> "TraceWindow":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def before(self, step: int) -> None:
        """Starts the trace if `step` is the first."""
        if self._steps is not None and step == self._steps[0]:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, results: object) -> None:
        """Ends the trace if `step` is the last, once its results are there."""
        if self._running and self._steps is not None and step == self._steps[1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends a trace that still runs."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
