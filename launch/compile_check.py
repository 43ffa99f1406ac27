"""Compiles a job for a slice that is not here: does it fit, what does it do, how fast could it be?

    python -m launch.compile_check rec.pretrain --preset onerec_1b --topology v5e:4x4
    python -m launch.compile_check --table docs/compile_check.md

Exit codes: 0 all programs fit, 1 error, 2 wrong command line, 3 a program does not fit, 4 a program
cannot be compiled.
"""

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from core_jax.errors import AlignaxError, ConfigError, nearest_name
from core_jax.jobs import Job
from core_jax.mesh import make_mesh
from core_jax.programs import Program
from launch import cli, exits
from launch.aot.advice import best_settings, least_slice
from launch.aot.compiled import Outcome, compile_program
from launch.aot.report import TABLE_HEAD, Report, estimate, row, text, to_json
from launch.aot.table import update_table
from launch.aot.target import CannotCompileError, Target, load_target
from launch.jobs import JOBS

PROGRAM = "python -m launch.compile_check"
_EPILOG = """JOB, --preset and further flags are those of launch.local. Topologies: v5e:2x2 ...
v5e:16x16, v6e:4x4, v5p:2x2x1 ... v5p:8x8x16, v4:..., tpu7x:...; a10:1, a100:8, h100:64."""


def main(
    arguments: Sequence[str] | None = None,
    *,
    jobs: Mapping[str, Job] = JOBS,
    compile_on: Callable[[Program, Target], Outcome] = compile_program,
    load: Callable[[str], Target] = load_target,
) -> int:
    """Checks what the command line says.

    Args:
      arguments: everything after the program's name; None takes it from the process.
      jobs: the jobs by name.
      compile_on: compiles a program for a target.
      load: describes a topology.

    Returns:
      The exit code, see the module.
    """
    chosen = list(sys.argv[1:] if arguments is None else arguments)
    options, rest = _parser().parse_known_args(chosen)
    try:
        if options.table:
            missing = update_table(options.table, rest, again=options.again)
            return exits.TOO_LARGE if missing else 0
        programs = _programs(jobs, options, rest)
        if programs is None:
            return 0
        reports = [
            _check(program, name, options.least, compile_on, load)
            for name in options.topology
            for program in programs
        ]
    except CannotCompileError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return exits.CANNOT_COMPILE
    except AlignaxError as error:
        if os.environ.get(cli.DEBUG_VARIABLE) == "1":
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return exits.USAGE if isinstance(error, cli.UsageError) else exits.ERROR
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else exits.ERROR
    _show(reports, as_json=options.json)
    return exit_code(reports)


def exit_code(reports: Sequence[Report]) -> int:
    """The code of the worst report."""
    verdicts = {report.outcome.verdict for report in reports}
    if "cannot be compiled" in verdicts:
        return exits.CANNOT_COMPILE
    return exits.TOO_LARGE if "does not fit" in verdicts else 0


def _parser() -> argparse.ArgumentParser:
    """The flags of this command; the others are the job's."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, epilog=_EPILOG, allow_abbrev=False
    )
    parser.add_argument("--topology", action="append", default=[], help="FAMILY:SHAPE; repeat it")
    parser.add_argument("--program", default="", help="one program of the job, by its beginning")
    parser.add_argument("--least", action="store_true", help="also the least slice that fits")
    parser.add_argument(
        "--table",
        metavar="PAGE",
        default="",
        help="compile what the table of presets lacks and write it into PAGE (further words: only "
        "lines with one of them)",
    )
    parser.add_argument("--again", action="store_true", help="with --table: compile all anew")
    parser.add_argument("--json", action="store_true", help="print JSON instead of words")
    return parser


def _programs(
    jobs: Mapping[str, Job], options: argparse.Namespace, rest: Sequence[str]
) -> Sequence[Program] | None:
    """The programs that the command line chooses; None: help has been printed."""
    request = cli.parse(jobs, rest, program=PROGRAM)
    if request is None:
        return None
    if not options.topology:
        raise cli.UsageError("no topology given; say for example --topology v5e:4x4")
    if request.job.programs is None:
        able = ", ".join(name for name, job in jobs.items() if job.programs)
        raise ConfigError(f"job '{rest[0]}' does not tell what it compiles; these do: {able}")
    programs = request.job.programs(request.config)
    wanted = [one for one in programs if one.name.startswith(options.program)]
    if not wanted:
        names = [one.name for one in programs]
        raise ConfigError(
            f"job '{rest[0]}' has no program '{options.program}'. "
            f"{nearest_name(options.program, names)}"
        )
    return wanted


def _check(
    program: Program,
    name: str,
    least: bool,
    compile_on: Callable[[Program, Target], Outcome],
    load: Callable[[str], Target],
) -> Report:
    """Compiles a program for a topology, and sums up."""
    target = load(name)
    outcome = compile_on(program, target)
    settings = []
    if outcome.memory is not None and outcome.memory.over:
        settings = best_settings(
            program.settings(make_mesh(program.mesh, target.devices)), outcome.memory
        )
    found = None
    if least:
        found = least_slice(
            program,
            target.chip,
            compile_on=compile_on,
            load=load,
            known={name: outcome},
            say=functools.partial(print, file=sys.stderr, flush=True),
        )
    return Report(
        program=program,
        target=target,
        outcome=outcome,
        roofline=estimate(program, target, outcome),
        settings=settings,
        least="" if not least else found[0] if found else "none of those tried",
    )


def _show(reports: Sequence[Report], *, as_json: bool) -> None:
    """Prints the reports, and a table where there are several."""
    if as_json:
        print(json.dumps([to_json(report) for report in reports], indent=2))
        return
    print("\n\n".join(map(text, reports)))
    if len(reports) > 1:
        print("\n" + "\n".join([TABLE_HEAD, *map(row, reports)]))


if __name__ == "__main__":
    sys.exit(main())
