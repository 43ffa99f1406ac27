"""What is installed: bounded requirements, no heavy framework, the extras."""

import re
import subprocess
import sys

import pytest

from tests.architecture.sources import ROOT

_BOUNDED = re.compile(r"^[A-Za-z0-9_-]+(\[[a-z0-9_,-]+\])?>=[0-9.]+,<[0-9.]+$")


def requirement_lines():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_every_requirement_is_bounded_on_both_sides():
    assert [line for line in requirement_lines() if not _BOUNDED.match(line)] == []


def test_the_main_job_needs_no_other_framework():
    names = {re.split(r"[\[>]", line)[0].lower() for line in requirement_lines()}
    assert "jax" in names
    assert names & {"tensorflow", "torch", "keras", "pytorch-lightning"} == set()


def test_setup_py_declares_what_requirements_txt_lists(monkeypatch):
    declared = {}
    monkeypatch.setattr("setuptools.setup", lambda **fields: declared.update(fields))
    monkeypatch.chdir(ROOT)
    source = (ROOT / "setup.py").read_text()
    exec(compile(source, "setup.py", "exec"), {"__file__": str(ROOT / "setup.py")})
    assert declared["name"] == "alignax"
    assert declared["install_requires"] == requirement_lines()
    assert set(declared["extras_require"]) == {
        "tpu",
        "cuda12",
        "cuda13",
        "gs",
        "s3",
        "parity",
        "tasks",
        "dev",
    }
    assert {"core_jax", "rec_jax", "rec_jax.model", "launch"} <= set(declared["packages"])
    assert not [name for name in declared["packages"] if name.startswith("tests")]


@pytest.mark.parametrize(("version", "accepted"), [("3.10", False), ("3.14", False)])
def test_make_refuses_other_pythons(tmp_path, version, accepted):
    """`make` with an interpreter that claims to be of this version."""
    fake = tmp_path / "python"
    major, minor = version.split(".")
    claim = f"import sys; sys.version_info = ({major}, {minor}, 0); exec(sys.argv[1])"
    fake.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec "{sys.executable}" -c "{claim}" "$2"\n'
        f'echo "Python {version}.0"\n'
    )
    fake.chmod(0o755)
    done = subprocess.run(
        ["make", f"PYTHON={fake}", f"VENV={tmp_path / 'venv'}", "test"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == accepted
    assert "Alignax needs Python 3.11, 3.12 or 3.13" in done.stderr
    assert f"Python {version}.0" in done.stderr
    assert not (tmp_path / "venv").exists()
