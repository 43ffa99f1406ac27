"""Small files, short functions, no names that say nothing, nothing of one machine."""

import ast
import re

from tests.architecture.sources import PACKAGES, python_files, text_files

_MAX_FILE_LINES = 400
_MAX_FUNCTION_LINES = 60
_MAX_LOOP_LINES = 100
_LOOPS = {("core_jax/loop.py", "fit")}

# A home, a scratch or a work folder, or the address of a package index.
_MACHINE = re.compile(
    r"(?<![\w.~])/(root|home|Users|work|tmp)/|\.\./shared|(pypi|pythonhosted)\.org"
)


def function_lines(function):
    """Lines after the docstring."""
    first = function.body[0]
    has_docstring = ast.get_docstring(function) is not None
    return function.end_lineno - (first.end_lineno if has_docstring else function.lineno)


def test_files_are_short():
    lengths = {path: len(source.splitlines()) for path, source in python_files().items()}
    assert {path: n for path, n in lengths.items() if n > _MAX_FILE_LINES} == {}


def test_functions_are_short():
    lengths = {
        (path, node.name): function_lines(node)
        for path, source in python_files().items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
    }
    limits = {name: _MAX_LOOP_LINES if name in _LOOPS else _MAX_FUNCTION_LINES for name in lengths}
    assert {name: n for name, n in lengths.items() if n > limits[name]} == {}


def test_files_are_named_after_what_they_hold():
    """Also tells whether the limits above have seen any file at all."""
    names = {path.rpartition("/")[2] for path in python_files(*PACKAGES)}
    assert "local.py" in names
    assert names & {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"} == set()


def test_source_is_ascii():
    assert [path for path, source in python_files().items() if not source.isascii()] == []


def test_nothing_names_one_machine():
    this_test = "tests/architecture/test_layout.py"
    found = {
        (path, match.group())
        for path, text in text_files().items()
        if path != this_test
        for match in _MACHINE.finditer(text)
    }
    assert found == set()
