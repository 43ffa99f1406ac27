"""The import directions of pyproject.toml hold."""

import importlinter.cli

from tests.architecture.sources import ROOT


def test_import_directions(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    code = importlinter.cli.lint_imports(
        config_filename="pyproject.toml", no_cache=True, no_logo=True
    )
    assert code == 0, capsys.readouterr().out
