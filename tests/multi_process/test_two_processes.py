"""Two processes of 4 devices compute what one of 8 does, and what one device does.

One pair of processes does everything (`worker.py`); these tests compare. Loss and gradient at the
same parameters and five SGD steps agree to 1e-5, a curve of Adam to 1e-3; checkpoints of each of
the three are restored by each, bit for bit, and training goes on with the batches that follow.
"""

import functools
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from core_jax.checkpoint import Checkpoints
from core_jax.mesh import MeshConfig, make_mesh
from launch.supervisor import free_port
from tests.architecture.sources import ROOT
from tests.multi_process.cases import (
    CASES,
    SAVED_STEP,
    measure,
    named,
    rest_of_curve,
    restore,
    whole,
)

pytestmark = pytest.mark.long

SECONDS = 900
ORIGINS = ("one", "eight")


@functools.cache
def mesh_of(case, origin):
    """One device, or the 8 of this process."""
    if origin == "one":
        return make_mesh(MeshConfig(data=1), jax.devices()[:1])
    return make_mesh(CASES[case].mesh)


def start(folder):
    """The pair, as processes of their own."""
    address = f"127.0.0.1:{free_port()}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
    }
    workers = []
    for process in range(2):
        with (folder / f"output_{process}.txt").open("w") as output:
            command = [sys.executable, "-m", "tests.multi_process.worker", address, str(process)]
            workers.append(
                subprocess.Popen(
                    [*command, str(folder)],
                    cwd=ROOT,
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    return workers


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What every case found in one process and in two, what was saved, and where."""
    folder = tmp_path_factory.mktemp("two")
    values, kept = {}, {}
    for name, case in CASES.items():
        for origin in ORIGINS:
            with Checkpoints(folder / name / origin) as checkpoints:
                measured, kept[name, origin] = measure(case, mesh_of(name, origin), checkpoints)
            values |= {f"{name} {origin} {key}": value for key, value in measured.items()}
    workers = start(folder)
    try:
        for process, worker in enumerate(workers):
            text = folder / f"output_{process}.txt"
            assert worker.wait(SECONDS) == 0, text.read_text()[-4000:]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    with np.load(folder / "found.npz") as file:
        values |= dict(file)
    return values, kept, folder


def assert_close(values, one, other, tolerance):
    """Relative to the largest element; a name without a match is an error."""
    names = [name for name in values if name.startswith(one)]
    assert names
    for name in names:
        match = values[name.replace(one, other, 1)]
        scale = np.abs(match).max() + 1e-8
        np.testing.assert_allclose(
            values[name] / scale, match / scale, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("case", CASES)
class TestNumbers:
    """Of two processes, against one process of 8 devices and against one device."""

    def test_loss_and_gradient(self, found, case, origin):
        first = [found[0][f"{case} {title} sgd"][0] for title in ("two", origin)]
        assert first[0] == pytest.approx(first[1], rel=1e-5)
        assert_close(found[0], f"{case} two gradient", f"{case} {origin} gradient", 1e-5)

    def test_five_sgd_steps(self, found, case, origin):
        for what in ("sgd", "after"):
            assert_close(found[0], f"{case} two {what}", f"{case} {origin} {what}", 1e-5)

    def test_a_curve_of_adam(self, found, case, origin):
        assert_close(found[0], f"{case} two adam", f"{case} {origin} adam", 1e-3)
        assert np.ptp(found[0][f"{case} two adam"]) > 1e-2

    def test_two_processes_restore_what_one_saved(self, found, case, origin):
        values, kept, _ = found
        for name, leaf in named(f"{case} restored {origin}", kept[case, origin]):
            np.testing.assert_array_equal(values[name], leaf, err_msg=name)

    def test_one_process_restores_what_two_saved(self, found, case, origin):
        values, _, folder = found
        mesh = mesh_of(case, origin)
        restored = restore(CASES[case], mesh, folder / case / "two")
        for name, leaf in named(f"{case} restored two", whole(restored.state, mesh)):
            np.testing.assert_array_equal(values[name], leaf, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_go_on_where_one_stopped(found, case):
    """The losses after the restored step are those of the curve that was not cut: same batches."""
    values = found[0]
    curve = values[f"{case} one adam"]
    np.testing.assert_allclose(values[f"{case} rest"], curve[SAVED_STEP:], rtol=1e-3)
    assert np.abs(np.diff(curve)).min() > 2e-3  # of other batches the losses are others


@pytest.mark.parametrize("case", CASES)
def test_one_process_goes_on_where_two_stopped(found, case):
    values, _, folder = found
    mesh = mesh_of(case, "one")
    rest = rest_of_curve(CASES[case], mesh, restore(CASES[case], mesh, folder / case / "two"))
    np.testing.assert_allclose(rest, values[f"{case} one adam"][SAVED_STEP:], rtol=1e-3)
