"""The supervisor with made-up processes: who dies, who is ended, what is said and started again."""

import os
import signal
import sys
import threading
import time

import pytest

from core_jax.errors import ConfigError
from launch import supervise as entry
from launch import supervisor
from launch.supervisor import SupervisorConfig, supervise

SLEEPS = "import time\nprint('waits', flush=True)\ntime.sleep(60)"
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEPS
DIES = (
    "import os, time\ntime.sleep(0.3)\nprint('my last line', flush=True)\nos.kill(os.getpid(), 9)"
)
SAVES = (
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
    "print('ready', flush=True)\ntime.sleep(60)"
)


@pytest.fixture
def run(monkeypatch, capfd):
    """Supervises scripts, one per process; gives exit code, output, errors."""

    def run_scripts(*scripts, **settings):
        def command(config, job, coordinator, number):
            return [sys.executable, "-c", scripts[number]]

        monkeypatch.setattr(supervisor, "_command", command)
        code = supervise(SupervisorConfig(processes=len(scripts), **settings), ["job"])
        said = capfd.readouterr()
        return code, said.out, said.err

    return run_scripts


def test_output_has_the_number_of_its_process(run):
    code, out, err = run("print('a\\nb')", "import sys\nprint('c', file=sys.stderr)")
    assert (code, err) == (0, "")
    assert sorted(out.splitlines()) == ["[0] a", "[0] b", "[1] c"]


@pytest.mark.parametrize(("other", "by_force"), [(SLEEPS, ""), (STUBBORN, " (0 by SIGKILL)")])
def test_when_one_dies_the_others_are_ended_and_it_is_named(run, other, by_force):
    began = time.monotonic()
    code, _, err = run(other, DIES, grace=0.5)
    assert code == 1 and time.monotonic() - began < 20
    assert f"process 1 died: killed by SIGKILL; ended process 0{by_force}\n" in err
    assert "last lines of process 1:\n    my last line\n" in err


def test_an_exit_code_is_a_death_too(run):
    code, _, err = run("import sys\nsys.exit(1)", "pass")
    assert code == 1 and "process 0 died: exit code 1" in err


def test_the_job_is_started_again(run, tmp_path):
    """Once, from its last checkpoint: here a file that the first attempt leaves."""
    mark = tmp_path / "mark"
    script = (
        f"import os, pathlib\nmark = pathlib.Path({str(mark)!r})\n"
        "if not mark.exists():\n    mark.touch()\n    os.kill(os.getpid(), 9)\nprint('second')"
    )
    code, out, err = run("pass", script, restarts=2, grace=0.1)
    assert code == 0 and "[1] second" in out
    assert "starts the job again from its last checkpoint (2 restarts left)" in err


def test_restarts_run_out(run):
    code, _, err = run(DIES, restarts=2, grace=0.1)
    assert code == 1 and err.count("process 0 died") == 3
    assert "(1 restarts left)" in err and "(0 restarts left)" not in err


def test_a_wrong_command_line_is_not_started_again(run):
    code, _, err = run("import sys\nsys.exit(2)", restarts=3)
    assert code == 2 and err.count("died") == 1


def test_a_signal_goes_to_all_which_save_and_end(run):
    """They are not started again."""
    threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    code, out, err = run(SAVES, SAVES, restarts=3)
    assert code == 75 and out.count("ready") == 2
    assert err.count("asks all processes to save and end") == 1 and "again" not in err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_signal_kills(run):
    for seconds in (1.0, 1.5):
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()
    code, _, err = run(STUBBORN, STUBBORN, restarts=3)
    assert code == 1 and "died: killed by SIGKILL" in err


def test_one_process_that_was_asked_alone_ends_the_job_as_preempted(run):
    """A machine gives notice to one process; all save together and end with 75."""
    code, _, _ = run("import sys\nsys.exit(75)", "import sys\nsys.exit(75)", restarts=3)
    assert code == 75


def test_logs_are_files_that_attempts_append_to(run, tmp_path):
    code, out, _ = run(DIES, restarts=1, grace=0.1, logs=str(tmp_path / "logs"))
    text = (tmp_path / "logs" / "process_0.log").read_text()
    assert (code, out) == (1, "")
    assert text == "--- attempt 1\nmy last line\n--- attempt 2\nmy last line\n"


def test_logs_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--logs '.*file' cannot be written"):
        supervise(SupervisorConfig(processes=1, logs=str(tmp_path / "file")), ["job"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"processes": 0}, "--processes is 0; it must be at least 1"),
        ({"processes": 2, "restarts": -1}, "--restarts is -1"),
        ({"processes": 2, "heartbeat_timeout": 0}, "--heartbeat-timeout is 0"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        SupervisorConfig(**settings)


def test_words_behind_the_dashes_are_the_job(monkeypatch):
    seen = []
    monkeypatch.setattr(entry, "supervise", lambda config, job: seen.append((config, job)) or 0)
    words = "--processes 2 --devices-per-process 4 -- rec.pretrain --preset demo --seed 3"
    assert entry.main(words.split()) == 0
    config = SupervisorConfig(processes=2, devices_per_process=4)
    assert seen == [(config, ["rec.pretrain", "--preset", "demo", "--seed", "3"])]
    assert entry.main(["--processes", "2"]) == 2
    assert entry.main(["--processes", "0", "--", "job"]) == 2
