"""The notebook and its paired text agree, and it runs from top to bottom at reduced size."""

import json
import os
import subprocess
import sys

import pytest

from tests.architecture.sources import ROOT

_NOTEBOOKS = ROOT / "notebooks"

_PAIR = """
import jupytext, sys
text, notebook = (jupytext.read(path) for path in sys.argv[1:])
for cell in (*text.cells, *notebook.cells):
    print(cell.cell_type, repr(cell.source))
"""

_EXECUTE = """
import jupytext, nbclient, sys
notebook = jupytext.read(sys.argv[1])
nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
for cell in notebook.cells:
    for output in cell.get("outputs", []):
        print(output.get("text") or output.get("data", {}).keys())
"""


def run_python(code, *arguments, **settings):
    """In a process of its own: Jupyter's libraries warn, and start threads that stay."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **settings,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("text", sorted(_NOTEBOOKS.glob("*.py")), ids=lambda path: path.stem)
def test_pair_agrees_and_has_no_outputs(text):
    """`make notebooks` writes the notebook anew from its text."""
    notebook = text.with_suffix(".ipynb")
    cells = run_python(_PAIR, text, notebook).splitlines()
    half = len(cells) // 2
    assert half > 0
    assert cells[:half] == cells[half:]
    for cell in json.loads(notebook.read_text())["cells"]:
        assert not cell.get("outputs"), "strip the outputs: make notebooks"
        assert cell.get("execution_count") is None


@pytest.mark.long
def test_quickstart_runs(tmp_path):
    environment = os.environ | {"ALIGNAX_PRESET": "demo_tiny", "PYTHONPATH": str(ROOT)}
    output = run_python(
        _EXECUTE, _NOTEBOOKS / "onerec_quickstart.py", cwd=tmp_path, env=environment
    )
    assert "OneRec" in output
    assert "image/png" in output
    assert list(tmp_path.glob("runs/*/report/index.html"))
