"""The loop: a run that is cut off and goes on equals one that was not; how runs stop."""

import functools
import os
import pathlib
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from core_jax.checkpoint import Checkpoints
from core_jax.data.pipeline import make_pipeline
from core_jax.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from core_jax.loop import LoopConfig, fit
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.metrics import Ratio
from core_jax.train_state import init_state
from core_jax.train_step import make_train_step

NUM_STEPS = 13
TIMES = {
    "step_seconds",
    "steps_per_second",
    "first_step_seconds",
    "input_fraction",
    "tokens_per_second",
    "mfu",
}
OPTIMIZER = optax.adam(0.05)
RULES = (("w", PartitionSpec("fsdp")), (".*", PartitionSpec()))


class Points:
    """37 points (x, y) of a line."""

    def __init__(self, bad_from: int = 37):
        random = np.random.default_rng(0)
        self.x = random.normal(size=(37, 6)).astype(np.float32)
        self.y = self.x.sum(axis=1)
        self.y[bad_from:] = np.nan

    def __len__(self):
        return 37

    def __getitem__(self, index):
        return {"x": self.x[index], "y": self.y[index]}


def init_params(*, key):
    return {"w": jax.random.normal(key, (6,)), "b": jnp.zeros(())}


def objective(params, batch, *, key):
    noise = 0.1 * jax.random.normal(key, batch["y"].shape)
    error = batch["x"] @ params["w"] + params["b"] + noise - batch["y"]
    loss = Ratio(total=jnp.sum(error**2), count=jnp.float32(error.size))
    return loss, {"bias": Ratio(total=params["b"], count=jnp.float32(1))}


def jitter(record, random):
    return dict(record) | {"x": record["x"] + random.normal(size=6).astype(np.float32)}


@functools.cache
def parts():
    """Mesh, train step and first state (on the host): compiled once for all tests."""
    mesh = make_mesh(MeshConfig(fsdp=2))
    state, shardings = init_state(
        init_params, OPTIMIZER, mesh=mesh, rules=RULES, key=jax.random.key(1)
    )
    chex.clear_trace_counter()
    target = chex.assert_max_traces(objective, n=1)
    train_step = make_train_step(target, OPTIMIZER, mesh=mesh, state_shardings=shardings)
    return train_step, jax.device_get(state), shardings


def run(folder, *, source=None, transform=None, wrap=None, num_epochs=None, fingerprint="f", **kw):
    """Runs `fit` on the line, with a fresh state and pipeline as a restarted process would.

    All runs of this file together trace the objective once.
    """
    fit_names = ("evaluate", "best_metric", "lower_is_better", "tokens_per_batch", "flops_per_step")
    fit_kw = {name: kw.pop(name) for name in fit_names if name in kw}
    train_step, first_state, shardings = parts()
    pipeline = make_pipeline(
        source or Points(),
        batch_size=8,
        seed=3,
        random_map=jitter,
        transform=transform,
        num_epochs=num_epochs,
        prefetch=0 if transform else 2,
    )
    defaults = {"num_steps": NUM_STEPS, "log_every": 2, "checkpoint_every": 3}
    return fit(
        state=jax.device_put(jax.tree.map(np.copy, first_state), shardings),
        train_step=wrap(train_step) if wrap else train_step,
        pipeline=pipeline,
        key=jax.random.key(2),
        folder=folder,
        config=LoopConfig(**(defaults | kw)),
        fingerprint=fingerprint,
        **fit_kw,
    )


def without_times(rows):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def assert_same(result, unbroken):
    assert result.step == unbroken.step == NUM_STEPS
    chex.assert_trees_all_equal(result.state, unbroken.state)
    assert without_times(result.history) == without_times(unbroken.history)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return run(tmp_path_factory.mktemp("unbroken"))


class Killed(Exception):
    pass


def calls_at(number, action):
    """A transform that acts when the given batch (from 1) of this process is made."""
    count = iter(range(1, 1000))

    def transform(batch):
        if next(count) == number:
            action()
        return batch

    return transform


def kill():
    raise Killed


@pytest.mark.parametrize("number", np.random.default_rng(5).integers(1, NUM_STEPS + 1, 2))
def test_killed_at_a_random_step_and_resumed_is_unbroken_bit_for_bit(tmp_path, unbroken, number):
    with pytest.raises(Killed):
        run(tmp_path, transform=calls_at(number, kill))
    assert_same(run(tmp_path), unbroken)


def test_killed_process_resumes_bit_for_bit(tmp_path, unbroken):
    """SIGKILL of a real process, with no regard to what is being written."""
    tests = pathlib.Path(__file__).parent
    code = (
        f"import sys; sys.path[:0] = [{str(tests)!r}, {str(tests.parent)!r}]\n"
        "import conftest, test_loop, time, pathlib\n"
        "slow = lambda batch: (time.sleep(0.2), batch)[1]\n"
        f"test_loop.run(pathlib.Path({str(tmp_path)!r}), transform=slow)\n"
    )
    root = str(tests.parent.parent)
    with subprocess.Popen([sys.executable, "-c", code], cwd=root) as process:
        try:
            deadline = time.monotonic() + 60
            while not (tmp_path / "checkpoints" / "6").exists():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    result = run(tmp_path)
    assert_same(result, unbroken)


def test_sigterm_saves_and_a_restart_is_unbroken(tmp_path, unbroken):
    before = signal.getsignal(signal.SIGTERM)
    terminate = calls_at(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    result = run(tmp_path, transform=terminate, checkpoint_every=0)
    assert result.preempted and result.step == 5
    assert signal.getsignal(signal.SIGTERM) is before
    result = run(tmp_path, checkpoint_every=0)
    assert not result.preempted
    chex.assert_trees_all_equal(result.state, unbroken.state)


def test_sigterm_at_the_last_step_is_told_too(tmp_path, unbroken):
    """What follows the training must not start; a restart finds the training complete."""
    terminate = calls_at(NUM_STEPS, lambda: os.kill(os.getpid(), signal.SIGTERM))
    result = run(tmp_path, transform=terminate)
    assert result.preempted and result.step == NUM_STEPS
    result = run(tmp_path)
    assert not result.preempted
    assert_same(result, unbroken)


def test_sigterm_after_the_last_step_is_handed_on_when_all_is_saved(tmp_path):
    """In the last evaluation: who handled the signal before learns of it, once."""
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(list(map(str, saved()))))

    def saved():
        return sorted((tmp_path / "checkpoints").glob(f"{NUM_STEPS}"))

    def evaluate(state):
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    try:
        result = run(tmp_path, evaluate=evaluate)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert result.step == NUM_STEPS and not result.preempted
    assert seen == [[str(tmp_path / "checkpoints" / f"{NUM_STEPS}")]]


def test_a_finished_run_is_not_run_again(tmp_path):
    first = run(tmp_path)
    again = run(tmp_path, transform=calls_at(1, kill))
    assert_same(again, first)


def test_report_rows_merge_exactly(unbroken):
    """Rows at every second step, every save and the end; "skipped" counts each step once."""
    assert [row["step"] for row in unbroken.history] == [2, 3, 4, 6, 8, 9, 10, 12, 13]
    assert all(row["skipped"] == 0 and row["loss"] > 0 for row in unbroken.history)
    assert all(0 <= row["input_fraction"] <= 1 for row in unbroken.history[1:] if TIMES & {*row})
    assert "first_step_seconds" in unbroken.history[0]


def test_window_is_the_mean_over_its_steps(tmp_path):
    """Equal batch sizes: the row of 13 steps is the mean of 13 rows of one step."""
    every = run(tmp_path / "a", log_every=1, checkpoint_every=0, tokens_per_batch=8)
    once = run(tmp_path / "b", log_every=99, checkpoint_every=0, flops_per_step=1e6)
    assert len(once.history) == 1
    np.testing.assert_allclose(
        once.history[0]["loss"], np.mean([row["loss"] for row in every.history]), rtol=1e-6
    )
    row = every.history[-1]
    np.testing.assert_allclose(row["tokens_per_second"], 8 / row["step_seconds"], rtol=1e-6)
    assert 0 < once.history[0]["mfu"] < 1


def scripted(values):
    return lambda state: {"valid": values[int(state.step)]}


@pytest.mark.parametrize(("lower", "best"), [(False, 4), (True, 8)])
def test_best_step_is_kept(tmp_path, lower, best):
    values = {2: 0.5, 4: 0.9, 6: float("nan"), 8: 0.1, 10: 0.9, 12: 0.3, 13: 0.2}
    result = run(
        tmp_path,
        evaluate=scripted(values),
        best_metric="valid",
        lower_is_better=lower,
        evaluate_every=2,
        checkpoint_every=0,
        keep_checkpoints=1,
    )
    assert result.best_step == best
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [best, NUM_STEPS]
    rows = {row["step"]: row["valid"] for row in result.history if "valid" in row}
    assert rows == values | {6: None}


def test_best_survives_a_restart(tmp_path):
    values = {2: 0.5, 4: 0.9, 6: 0.7, 8: 0.1, 10: 0.2, 12: 0.3, 13: 0.2}
    kw = {"evaluate": scripted(values), "best_metric": "valid", "evaluate_every": 2}
    with pytest.raises(Killed):
        run(tmp_path, transform=calls_at(8, kill), **kw)
    assert run(tmp_path, keep_checkpoints=1, **kw).best_step == 4


def test_too_many_skipped_steps_stop_the_run(tmp_path):
    """Unshuffled, every batch has a NaN: steps 1, 2 and 3 are skipped."""
    with pytest.raises(NonFiniteError, match=r"Step 3: .* in 3 steps in a row"):
        run(tmp_path, source=Points(bad_from=0), max_skipped_in_a_row=3)


def test_skipped_steps_count_across_a_restart(tmp_path):
    kw = {"source": Points(bad_from=0), "max_skipped_in_a_row": 5}
    with pytest.raises(Killed):
        run(tmp_path, transform=calls_at(5, kill), **kw)
    with pytest.raises(NonFiniteError, match=r"Step 5: .* in 5 steps in a row"):
        run(tmp_path, **kw)


def test_next_step_is_dispatched_before_metrics_are_read(tmp_path, monkeypatch):
    events = []
    device_get = jax.device_get

    def watched(tree):
        if isinstance(tree, dict) and "loss" in tree:
            events.append("read")
        return device_get(tree)

    def wrap(train_step):
        def dispatch(*args):
            events.append("dispatch")
            return train_step(*args)

        return dispatch

    monkeypatch.setattr(jax, "device_get", watched)
    run(tmp_path, wrap=wrap, num_steps=3, log_every=99, checkpoint_every=0)
    assert events[:5] == ["dispatch", "dispatch", "read", "dispatch", "read"]


def test_implicit_transfers_in_the_step_are_refused(tmp_path):
    def wrap(train_step):
        def step(state, batch, key):
            jnp.add(batch["y"], np.ones(8, np.float32))
            return train_step(state, batch, key)

        return step

    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed"):
        run(tmp_path, wrap=wrap)


def test_another_configuration_is_refused(tmp_path):
    run(tmp_path, num_steps=2)
    with pytest.raises(CheckpointError, match=r"configuration f, this run of other"):
        run(tmp_path, fingerprint="other")


def test_pipeline_that_ends_early_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"ended before step 5 of 13"):
        run(tmp_path, num_epochs=1)


def test_unknown_best_metric_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"Did you mean 'valid'"):
        run(tmp_path, num_steps=2, evaluate=lambda state: {"valid": 1.0}, best_metric="vaild")
    with pytest.raises(ConfigError, match="nothing is evaluated"):
        run(tmp_path, best_metric="valid")


@pytest.mark.parametrize(
    "wrong",
    [{"num_steps": 0}, {"log_every": 0}, {"keep_checkpoints": 0}, {"profile_steps": (3, 2)}],
)
def test_wrong_loop_config_is_an_error(wrong):
    with pytest.raises(ConfigError, match=f"loop.{next(iter(wrong))} is"):
        LoopConfig(**({"num_steps": 3} | wrong))


def test_trace_of_the_profiled_steps(tmp_path):
    run(tmp_path, num_steps=3, profile_steps=(2, 2))
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
