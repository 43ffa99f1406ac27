"""The report: rows that survive a restart without duplicates, times that add up."""

import json
import struct
import time

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from core_jax.profiling import StepTimer, device_peak_flops, model_flops_utilisation
from core_jax.report import Reporter


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rows_are_json_and_complete(tmp_path):
    with Reporter(tmp_path, total_steps=5, name="train") as reporter:
        reporter.log(2, {"loss": 0.5, "load": np.array([1.5, np.nan]), "count": np.int32(3)})
        assert lines(tmp_path) == [{"step": 2, "loss": 0.5, "load": [1.5, None], "count": 3}]
        reporter.log(4, {"loss": float("inf")})
    assert lines(tmp_path) == reporter.rows
    assert lines(tmp_path)[1] == {"step": 4, "loss": None}


def test_restart_cuts_rows_beyond_the_restored_step(tmp_path):
    with Reporter(tmp_path, total_steps=9, name="train") as reporter:
        for step in (2, 4, 6, 8):
            reporter.log(step, {"loss": step / 8})
    with Reporter(tmp_path, total_steps=9, name="train", restored_step=4) as reporter:
        assert [row["step"] for row in reporter.rows] == [2, 4]
        reporter.log(6, {"loss": 0.75})
    assert [row["step"] for row in lines(tmp_path)] == [2, 4, 6]
    with Reporter(tmp_path, total_steps=9, name="train") as reporter:
        assert reporter.rows == []
    assert lines(tmp_path) == []


def test_a_torn_last_line_is_cut(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    Reporter(tmp_path, total_steps=9, name="train", restored_step=5).close()
    assert lines(tmp_path) == [{"step": 1}, {"step": 2}]


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with Reporter(tmp_path / "run", total_steps=5, name="train") as reporter:
        reporter.log(1, {"loss": 1.0})
        reporter.advance(1)
    assert not (tmp_path / "run").exists()
    assert reporter.rows == [{"step": 1, "loss": 1.0}]


def events(path):
    """The events of a file of TensorBoard; the checksums in it are passed over."""
    content, found = path.read_bytes(), []
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + size]))
        content = content[12 + size + 4 :]
    return found


def test_tensorboard_has_the_scalars(tmp_path):
    with Reporter(tmp_path, total_steps=5, name="train", restored_step=2) as reporter:
        reporter.log(3, {"loss": 0.25, "accuracy": 1, "load": np.ones(3), "bad": float("nan")})
    [path] = (tmp_path / "tensorboard").iterdir()
    version, start, *scalars = events(path)
    assert version.file_version == "brain.Event:2"
    assert start.step == 3 and start.session_log.status == SessionLog.START
    values = [value for event in scalars for value in event.summary.value]
    assert [(value.tag, value.simple_value) for value in values] == [
        ("loss", 0.25),
        ("accuracy", 1),
    ]
    assert {event.step for event in scalars} == {3}


def test_every_start_has_a_file_of_tensorboard_of_its_own(tmp_path):
    for _ in range(3):
        Reporter(tmp_path, total_steps=5, name="train").close()
    assert len([*(tmp_path / "tensorboard").iterdir()]) == 3


def test_progress_line_has_rate_eta_and_loss(tmp_path, capsys):
    with Reporter(tmp_path, total_steps=8, name="train", restored_step=2) as reporter:
        reporter.log(6, {"loss": 0.25})
        reporter.advance(6)
        time.sleep(0.05)
    line = capsys.readouterr().err
    assert line.startswith("train:  75% 6/8 [") and "step/s, loss 0.2500]" in line


def test_progress_bar_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Reporter(tmp_path, total_steps=8, name="train", restored_step=2) as reporter:
        reporter.log(8, {"loss": float("nan")})
        reporter.advance(8)
    text = capsys.readouterr().err
    assert "8/8" in text and "loss not finite" in text


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; returns a function that moves it."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_step_timer(clock, monkeypatch):
    """The first step is apart; then 4 steps in 8 seconds, 2 of them waiting for input."""
    monkeypatch.setattr("core_jax.profiling.device_peak_flops", lambda: 1e3)
    timer = StepTimer(tokens_per_step=50, flops_per_step=1e3, num_devices=2)
    clock(30.0)
    timer.count_step()
    for _ in range(4):
        with timer.input():
            clock(0.5)
        clock(1.5)
        timer.count_step()
    assert timer.window() == {
        "first_step_seconds": 30.0,
        "step_seconds": 2.0,
        "steps_per_second": 0.5,
        "input_fraction": 0.25,
        "tokens_per_second": 25.0,
        "mfu": 0.25,
    }
    clock(5.0)
    assert timer.window() == {}
    clock(99.0)
    timer.restart()
    clock(1.0)
    timer.count_step()
    assert timer.window()["step_seconds"] == 1.0


def test_model_flops_utilisation():
    assert model_flops_utilisation(6e12, 2.0, 12e12) == 0.25


def test_peak_of_this_machine():
    """Between what a phone and what the largest server could do, over 8 fake devices."""
    assert 1e8 < device_peak_flops() < 1e14
    assert device_peak_flops() == device_peak_flops()
