"""Golden files: texts that a change must leave alone unless it is meant to alter results.

Numbers may differ within a stated tolerance, since another CPU or another release of JAX rounds
differently; everything between them may not.
"""

import difflib
import os
import pathlib
import re

FOLDER = pathlib.Path(__file__).parent / "golden"
UPDATE_VARIABLE = "UPDATE_GOLDEN"
"""Environment variable: set to 1, files that do not match are written anew."""

_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w.])")


def check_golden(
    name: str, text: str, *, relative_tolerance: float = 0.0, folder: pathlib.Path = FOLDER
) -> None:
    """Compares a text with the golden file of this name.

    With `UPDATE_GOLDEN=1` a file that is absent or does not match is written; one that matches
    within the tolerance stays as it is.

    Args:
      name: file name in `tests/golden`.
      text: what the code says now, with a line break at its end.
      relative_tolerance: how far each number may be from the file's, as a share of the latter.
      folder: where the file lies.

    Raises:
      AssertionError: no such file, or it differs; the message shows how and what to do.
    """
    assert text.endswith("\n"), f"the text of '{name}' does not end a line"
    path = folder / name
    golden = path.read_text(encoding="utf-8") if path.is_file() else None
    if golden is not None and _matches(golden, text, relative_tolerance):
        return
    if os.environ.get(UPDATE_VARIABLE) == "1":
        path.write_text(text, encoding="utf-8")
        return
    if golden is None:
        raise AssertionError(
            f"there is no golden file '{path}'; {UPDATE_VARIABLE}=1 makes it. Text:\n{text}"
        )
    lines = golden.splitlines(), text.splitlines()
    diff = difflib.unified_diff(*lines, f"golden/{name}", "now", lineterm="")
    within = f" by more than {relative_tolerance:g} of a number" if relative_tolerance else ""
    raise AssertionError(
        f"golden file '{name}' differs{within}:\n"
        + "\n".join(diff)
        + f"\nRefresh it with {UPDATE_VARIABLE}=1 only if the change is meant to alter results; "
        "say why in CHANGELOG.md. Otherwise the change has done more than it should."
    )


def _matches(golden: str, text: str, relative_tolerance: float) -> bool:
    """Whether two texts are equal but for numbers within the tolerance."""
    if golden == text:
        return True
    if not relative_tolerance or _NUMBER.split(golden) != _NUMBER.split(text):
        return False
    pairs = zip(_NUMBER.findall(golden), _NUMBER.findall(text), strict=True)
    return all(
        abs(float(new) - float(old)) <= relative_tolerance * abs(float(old)) for old, new in pairs
    )
