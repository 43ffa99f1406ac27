"""The import directions of pyproject.toml hold."""

import subprocess
import sys

from tests.architecture.sources import ROOT

_COMMAND = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def test_import_directions():
    """In a process of its own: import-linter takes over the standard streams."""
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, "--no-cache", "--no-logo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 kept, 0 broken" in done.stdout
