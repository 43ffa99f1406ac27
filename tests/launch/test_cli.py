import dataclasses
import json

import pytest

from core_jax.errors import DataError
from launch import cli, exits
from launch.places import Place
from tests.launch.fake_jobs import FakeConfig, FakeModelConfig, Kind, LookConfig, make_jobs


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command line in an empty folder; gives exit code, output, errors, configs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unchanged")
    monkeypatch.delenv("ALIGNAX_DEBUG", raising=False)

    def run_line(line):
        seen = []
        code = cli.main(make_jobs(seen), line.split(), program="python -m launch.local")
        output = capsys.readouterr()
        return code, output.out, output.err, seen

    return run_line


def test_preset_with_overrides(run):
    code, _, _, seen = run(
        "toy.pipeline --preset large --seed 11 --model.kind dense --model.sizes 13 17 19"
    )
    model = FakeModelConfig(d_model=1009, kind=Kind.DENSE, sizes=(13, 17, 19))
    assert (code, seen) == (0, [FakeConfig(seed=11, model=model)])


@pytest.mark.parametrize("flags", ["--preset=small", "--preset large --preset small"])
def test_preset_spellings(run, flags):
    assert run(f"toy.pipeline {flags}")[3] == [FakeConfig()]


@pytest.mark.parametrize(
    "flags",
    ["--width 11 --codes 13 17", "--codes 13 17 --width=11", "--model.d-model 11 --codes 13 17"],
)
def test_short_flags_stand_for_full_ones(run, flags):
    model = FakeModelConfig(d_model=11, sizes=(13, 17))
    assert run(f"toy.pipeline --preset small {flags}")[3] == [FakeConfig(model=model)]


def test_short_flags_are_those_of_their_job(run):
    """The help of the job lists them; another job does not know them."""
    code, out, _, _ = run("toy.pipeline --preset small --help")
    assert code == 0 and "--width for --model.d-model" in " ".join(out.split())
    code, _, err, seen = run("toy.train --preset small --width 11")
    assert (code, seen) == (2, []) and "--width" in err


def test_short_flags_work_without_a_preset(run, tmp_path):
    """In a run that exists."""
    line = f"toy.pipeline --run-dir {tmp_path}/run"
    assert run(f"{line} --preset small --width 11")[0] == 0
    assert run(f"{line} --width 11")[3][0].model.d_model == 11
    assert "was made with another config: model.d_model: 11 -> 13" in run(f"{line} --width 13")[2]


def test_a_preview_makes_no_run_and_changes_none(run, tmp_path):
    """It may have other settings than a run in the folder that it names."""
    line = f"toy.pipeline --preset small --run-dir {tmp_path}/run"
    assert run(f"{line} --plan")[3][0].plan
    assert not (tmp_path / "run").exists()
    assert run(line)[0] == 0
    before = (tmp_path / "run" / "config.json").read_text()
    code, _, _, seen = run(f"{line} --plan --width 13")
    assert (code, seen[0].model.d_model) == (0, 13)
    assert (tmp_path / "run" / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("", "toy.pipeline"),
        ("toy.pipelin --preset small", "Did you mean 'toy.pipeline'?"),
        ("--preset small toy.pipeline", "Known: toy.fail"),
        ("toy.pipeline", "Presets: large, small."),
        ("toy.pipeline --run-dir absent", "Presets: large, small."),
        ("toy.pipeline --preset smal", "Did you mean 'small'?"),
        ("toy.pipeline --preset", "needs a name: large, small"),
        ("toy.pipeline --preset --seed 3", "needs a name: large, small"),
        ("toy.pipeline --prset small", "Did you mean '--preset'?"),
        ("toy.pipeline --preset small --model.d-modle 3", "--model.d-model INT"),
        ("toy.pipeline --preset small --sed 3", "--seed INT"),
        ("toy.pipeline --preset small --seed many", "invalid literal for int"),
        ("toy.pipeline --preset small --model.kind spars", "'dense'"),
        ("toy.pipeline --preset small --model.d-model 0", "model.d_model is 0"),
    ],
)
def test_wrong_usage_says_what_was_meant(run, line, hint):
    code, out, err, seen = run(line)
    assert (code, out, seen) == (2, "", [])
    assert hint in err
    assert "Traceback" not in err


def test_help_lists_jobs_and_presets(run):
    code, out, _, seen = run("--help")
    assert (code, seen) == (0, [])
    lines = [line.strip() for line in out.splitlines()]
    train = lines.index("toy.train     The training stage.")
    assert lines[train + 1 : train + 3] == [
        "--preset small  Two minutes on two cores.",
        "--preset large  A night on a pod.",
    ]
    assert "--preset latest  The latest run." in lines
    assert out.count("A night on a pod.") == 1, "presets that jobs share are listed once"
    assert "Result" not in out


def test_help_of_a_job_lists_its_presets(run):
    code, out, _, _ = run("toy.train --help")
    assert code == 0
    assert "A night on a pod." in out
    assert "toy.look" not in out


@pytest.mark.parametrize("line", ["toy.train --preset large -h", "toy.fail --help"])
def test_help_of_a_preset_lists_its_fields(run, line):
    code, out, _, seen = run(line)
    assert (code, seen) == (0, [])
    assert "--model.d-model INT" in out
    assert "Width of the residual stream." in out
    assert ("A night on a pod." in out) == ("large" in line)


def test_errors_of_the_run_are_one_line(run):
    code, _, err, _ = run("toy.fail")
    assert code == 1
    assert err.strip().splitlines()[-1] == "DataError: 'runs/fake/events.csv' has no rows"
    assert "Traceback" not in err


def test_debug_lets_the_exception_through(run, monkeypatch):
    monkeypatch.setenv("ALIGNAX_DEBUG", "1")
    with pytest.raises(DataError, match="no rows"):
        run("toy.fail")


def test_interrupt(tmp_path, monkeypatch, capsys):
    def interrupt(config):
        raise KeyboardInterrupt

    jobs = make_jobs([])
    jobs["toy.stop"] = type(jobs["toy.fail"])(interrupt, jobs["toy.fail"].presets, "Stops.")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unchanged")
    assert cli.main(jobs, ["toy.stop"], program="test") == 130
    assert "goes on" in capsys.readouterr().err


def test_run_folder_stands_in_for_the_preset(run, tmp_path):
    run("toy.pipeline --preset large --run-dir mine --seed 23")
    assert json.loads((tmp_path / "mine" / "config.json").read_text())["seed"] == 23
    for place in ("--run-dir mine", "--run-dir=mine", "--run_dir mine"):
        code, _, _, seen = run(f"toy.train {place}")
        expected = FakeConfig(run_dir="mine", seed=23, model=FakeModelConfig(d_model=1009))
        assert (code, seen) == (0, [expected])


def test_moved_run_folder(run, tmp_path):
    run("toy.pipeline --preset large --run-dir mine")
    (tmp_path / "mine").rename(tmp_path / "moved")
    code, _, _, seen = run("toy.train --run-dir moved")
    assert (code, seen[0].run_dir, seen[0].model.d_model) == (0, "moved", 1009)


def test_changed_config_in_a_run_folder(run):
    run("toy.pipeline --preset small --run-dir mine")
    code, _, err, seen = run("toy.train --preset small --run-dir mine --model.d-model 29")
    assert (code, seen) == (1, [])
    assert "model.d_model: 7 -> 29" in err
    assert "--run-dir" in err


def test_job_that_looks_into_a_run(run, tmp_path):
    run("toy.pipeline --preset small --run-dir mine")
    before = (tmp_path / "mine" / "config.json").read_text()
    code, _, _, seen = run("toy.look --run-dir mine --user 31")
    assert (code, seen) == (0, [LookConfig(run_dir="mine", user="31")])
    assert (tmp_path / "mine" / "config.json").read_text() == before


def test_a_job_that_was_asked_to_end_says_so(tmp_path, monkeypatch, capsys):
    """Exit code 75: the same command goes on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unchanged")
    job = dataclasses.replace(make_jobs([])["toy.train"], run=lambda config: False)
    line = ["toy.train", "--preset", "small"]
    assert cli.main({"toy.train": job}, line, program="p") == exits.PREEMPTED
    assert "preempted: saved, run me again" in capsys.readouterr().err


def test_a_dry_run_prints_the_plan_and_makes_nothing(run, tmp_path):
    code, out, _, seen = run("toy.train --preset small --dry-run --seed 3")
    assert (code, seen) == (0, []) and not (tmp_path / "runs").exists()
    assert "job                      toy.train" in out and "processes                1" in out
    assert "8 x cpu" in out and "fingerprint config" in out
    other = run("toy.train --preset small --dry-run --seed 5")[1]
    assert other.splitlines()[:4] == out.splitlines()[:4] and other != out


def test_the_table_of_xla_flags(run):
    code, out, _, seen = run("--xla-flags")
    assert (code, seen) == (0, []) and "--xla_tpu_scoped_vmem_limit_kib=98304" in out


def test_one_process_knows_no_flags_of_many(run):
    code, _, err, _ = run("toy.train --preset small --process-id 1")
    assert code == 2 and "--process-id" in err


def test_a_job_that_only_looks_is_refused_to_several(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    two = Place(coordinator="localhost:1", num_processes=2, process_id=0)
    code = cli.main(make_jobs([]), ["toy.look"], program="p", find_place=lambda options: two)
    assert code == 1
    assert "toy.look works in one process, and this job has 2; use python -m launch.local" in (
        capsys.readouterr().err
    )
