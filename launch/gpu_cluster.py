"""Runs a job on a GPU cluster, one process per task of srun or mpirun, or by explicit flags."""

import sys
from collections.abc import Sequence

from launch import cli, places
from launch.jobs import JOBS


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line says, together with the other processes.

    Args:
      arguments: everything after the program's name; None takes it from the process.

    Returns:
      The exit code, see `launch.cli.main`.
    """
    chosen = sys.argv[1:] if arguments is None else arguments
    program = "python -m launch.gpu_cluster"
    return cli.main(JOBS, chosen, program=program, find_place=places.on_gpus)


if __name__ == "__main__":
    sys.exit(main())
