"""Fills the ${NAMES} of a manifest from the environment; a missing or empty one is an error.

    JOB=rec.pretrain ... python cloud/render.py cloud/gke_jobset.yaml > job.yaml

Derived: HOSTS, the pods of one slice, from TOPOLOGY and CHIPS_PER_HOST. Needs only Python.

Dimension key: none.
"""

import math
import os
import pathlib
import re
import string
import sys
from collections.abc import Mapping


def render(text: str, values: Mapping[str, str]) -> str:
    """Returns a manifest with its names filled in.

    Args:
      text: the manifest, with ${NAME} for each value.
      values: values by name.

    Raises:
      ValueError: a value is missing, empty or cannot be.
    """
    template = string.Template(text)
    known = dict(values)
    names = template.get_identifiers()
    if "HOSTS" in names and {"TOPOLOGY", "CHIPS_PER_HOST"} <= known.keys():
        known["HOSTS"] = str(hosts(known["TOPOLOGY"], known["CHIPS_PER_HOST"]))
    missing = [name for name in names if not known.get(name)]
    if missing:
        raise ValueError(f"not set: {', '.join(missing)}; see the head of the manifest")
    for name in names:
        if re.search(r"[\n\"\\]", known[name]):
            raise ValueError(f"{name} is {known[name]!r}; no quotes, backslashes or line breaks")
    return template.substitute(known)


def hosts(topology: str, chips_per_host: str) -> int:
    """Returns the hosts of a slice.

    >>> hosts("4x4", "4")
    4
    """
    if not re.fullmatch(r"\d+(x\d+){1,2}", topology):
        raise ValueError(f"TOPOLOGY is '{topology}'; it must be as 4x4 or 2x2x4")
    if chips_per_host not in ("1", "4", "8"):
        raise ValueError(f"CHIPS_PER_HOST is '{chips_per_host}'; it must be 1, 4 or 8")
    chips = math.prod(map(int, topology.split("x")))
    if chips % int(chips_per_host):
        raise ValueError(f"TOPOLOGY {topology} has {chips} chips, no multiple of {chips_per_host}")
    return chips // int(chips_per_host)


def main() -> int:
    """Renders the manifest that the command line names to standard output."""
    if len(sys.argv) != 2:
        print("usage: python cloud/render.py MANIFEST", file=sys.stderr)
        return 2
    try:
        text = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")
        print(render(text, os.environ), end="")
    except (OSError, ValueError) as error:
        print(f"{sys.argv[1]}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
