"""Runs a job on this machine: `python -m launch.local rec.pipeline --preset demo`."""

import sys
from collections.abc import Sequence

from launch.large_pages import restart_with_large_pages


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line says.

    Args:
      arguments: everything after the program's name; None takes it from the process.

    Returns:
      The exit code, see `launch.cli.main`.
    """
    # Imported here: a process that starts itself anew has not loaded them twice.
    from launch import cli
    from launch.jobs import JOBS

    chosen = sys.argv[1:] if arguments is None else arguments
    return cli.main(JOBS, chosen, program="python -m launch.local")


if __name__ == "__main__":
    restart_with_large_pages()
    sys.exit(main())
