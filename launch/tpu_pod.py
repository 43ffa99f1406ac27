"""Runs a job on TPU slices, started on every host: `python -m launch.tpu_pod rec.pretrain ...`."""

import sys
from collections.abc import Sequence

from launch import cli, places
from launch.jobs import JOBS


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line says, together with the other hosts.

    Args:
      arguments: everything after the program's name; None takes it from the process.

    Returns:
      The exit code, see `launch.cli.main`.
    """
    chosen = sys.argv[1:] if arguments is None else arguments
    program = "python -m launch.tpu_pod"
    return cli.main(JOBS, chosen, program=program, find_place=places.on_tpus)


if __name__ == "__main__":
    sys.exit(main())
