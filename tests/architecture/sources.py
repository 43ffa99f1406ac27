"""The project's own files, for tests that read source."""

import pathlib

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("core_jax", "rec_jax", "reasoning_jax", "launch")
_OTHERS = ("tests", "benchmarks", "docs", "notebooks", ".ci")
_TEXT = {".py", ".md", ".toml", ".txt", ".json", ".yaml", ".cfg", ".in", ".sh", ""}


def python_files(*folders):
    """Every Python file below the folders, by default all of ours, with its path from the root."""
    chosen = folders or (*PACKAGES, *_OTHERS)
    found = [path for folder in chosen for path in (ROOT / folder).rglob("*.py")]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in found}


def text_files():
    """Every text file of ours, with its path from the root (in a Git worktree .git is a file)."""
    found = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    found += [path for folder in (*PACKAGES, *_OTHERS) for path in (ROOT / folder).rglob("*")]
    found = [path for path in found if path.suffix in _TEXT and path.is_file()]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in found}
