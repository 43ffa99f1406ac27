"""The real jobs: each can be chosen, configured and read back from a run folder."""

import inspect
import json

import pytest

from core_jax.config import from_dict, to_dict
from launch import cli, local
from launch.jobs import JOBS

_CHOICES = [(job, preset) for job in JOBS for preset in JOBS[job].presets]


def parse(*arguments):
    return cli.parse(JOBS, arguments, program="test")


@pytest.mark.parametrize(("job", "preset"), _CHOICES)
def test_every_preset_is_documented_and_survives_flags_and_json(job, preset, tmp_path):
    expected = JOBS[job].presets[preset]()
    request = parse(job, "--preset", preset)
    assert request.job is JOBS[job]
    assert request.config == expected
    assert from_dict(type(expected), json.loads(json.dumps(to_dict(expected)))) == expected
    assert inspect.getdoc(JOBS[job].presets[preset]).partition("\n")[0].endswith(".")
    moved = parse(job, "--preset", preset, "--run-dir", str(tmp_path))
    assert to_dict(moved.config) == to_dict(expected) | {"run_dir": str(tmp_path)}


@pytest.mark.parametrize("job", JOBS)
def test_names_and_summaries(job):
    assert job.partition(".")[0] in ("rec", "reasoning")
    assert 10 < len(JOBS[job].summary) < 80


def test_a_nested_field_is_a_flag():
    config = parse("rec.pipeline", "--preset", "demo", "--model.d-model", "256").config
    assert config.model.d_model == 256
    assert config.optim == JOBS["rec.pipeline"].presets["demo"]().optim


@pytest.mark.parametrize("job", [name for name in JOBS if JOBS[name].short_flags])
def test_short_flags_of_jobs_are_flags(job):
    preset, *_ = JOBS[job].presets
    config = parse(job, "--preset", preset, "--task", "sums", "--limit", "11").config
    assert (config.problems.task, config.problems.limit) == ("sums", 11)
    assert set(JOBS[job].short_flags) == {"--task", "--limit"}


def test_the_program_lists_its_jobs(capsys):
    assert local.main(["--help"]) == 0
    assert "rec.pipeline" in capsys.readouterr().out
