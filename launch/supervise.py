"""Runs a job in several processes of this machine and watches them.

`python -m launch.supervise --processes 2 --devices-per-process 4 --restarts 3 -- rec.pretrain ...`
"""

import sys
from collections.abc import Sequence

import tyro

from core_jax.errors import AlignaxError
from launch import exits
from launch.supervisor import SupervisorConfig, supervise

_PROGRAM = "python -m launch.supervise"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line says: flags of the supervisor, "--", and the job's words.

    Args:
      arguments: everything after the program's name; None takes it from the process.

    Returns:
      The exit code, see `launch.supervisor.supervise`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    own, job = words[:end], words[end + 1 :]
    try:
        config = tyro.cli(SupervisorConfig, args=own, prog=_PROGRAM, description=__doc__)
        if not job:
            print(f"no job given; {_PROGRAM} --processes 2 -- JOB --preset NAME", file=sys.stderr)
            return exits.USAGE
        return supervise(config, job)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else exits.ERROR
    except AlignaxError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return exits.ERROR


if __name__ == "__main__":
    sys.exit(main())
