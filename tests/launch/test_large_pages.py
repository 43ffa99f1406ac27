"""A process asks for large pages once, by starting itself anew under its own number."""

import os
import subprocess
import sys

import pytest

from launch import large_pages

GRANTED, ALWAYS, NEVER = "always [madvise] never", "[always] madvise never", "madvise [never]"


@pytest.mark.parametrize(
    ("granted", "expected"), [(GRANTED, True), (ALWAYS, False), (NEVER, False)]
)
def test_wanted_where_linux_grants_them_to_who_asks(tmp_path, monkeypatch, granted, expected):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    (tmp_path / "enabled").write_text(granted)
    assert large_pages.wanted(tmp_path / "enabled") == expected
    assert not large_pages.wanted(tmp_path / "absent")
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    assert not large_pages.wanted(tmp_path / "enabled")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's tunables")
def test_a_process_starts_itself_anew_once_with_its_arguments(tmp_path):
    (tmp_path / "enabled").write_text(GRANTED)
    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, sys\n"
        "from launch import large_pages\n"
        f"large_pages._ENABLED = pathlib.Path({str(tmp_path / 'enabled')!r})\n"
        "print('start', os.getpid(), flush=True)\n"
        "large_pages.restart_with_large_pages()\n"
        "print(os.getpid(), os.environ['GLIBC_TUNABLES'], sys.argv[1:])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment["PYTHONPATH"] = os.getcwd()
    said = subprocess.run(
        [sys.executable, str(program), "a b", "--c"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    number = said[0].removeprefix("start ")
    assert said == [f"start {number}"] * 2 + [f"{number} glibc.malloc.hugetlb=1 ['a b', '--c']"]
