"""From words on a command line to a job and its config: job + preset + typed overrides.

Every field of the config is a flag (`--model.d-model 256`); `tyro` derives the flags from the
dataclasses, with each field's docstring as its help. What is wrong is named with what was meant.
"""

import difflib
import inspect
import itertools
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import tyro

from core_jax.config import from_dict
from core_jax.errors import AlignaxError, ConfigError, nearest_name
from core_jax.jobs import Job
from core_jax.storage import is_url, pull, working_copy
from core_jax.storage_errors import describe_fault
from launch import exits, places, processes, runtime, xla_flags
from launch.options import Options, UsageError, options_help, take_options
from launch.plan import plan_text

DEBUG_VARIABLE = "ALIGNAX_DEBUG"
"""Environment variable: set to 1, errors come with their traceback."""

_HELP_FLAGS = ("-h", "--help")


class Request(NamedTuple):
    """A parsed command line.

    Attributes:
      job: the chosen job.
      config: the preset's config with the overrides.
    """

    job: Job
    config: Any


FindPlace = Callable[[Options], places.Place]
"""Says which process of which job this one is."""


def main(
    jobs: Mapping[str, Job],
    arguments: Sequence[str],
    *,
    program: str,
    find_place: FindPlace = places.alone,
) -> int:
    """Runs one job.

    Args:
      jobs: the jobs by name.
      arguments: job, preset and flags.
      program: how this program was started, for help texts.
      find_place: says which process of which job this one is; by default the only one.

    Returns:
      Exit code: 0, or 1 after an error of the run (one line says which; with `ALIGNAX_DEBUG=1`
      the exception goes on instead), or 2 for a wrong command line, or 75 when it was asked to
      end (SIGTERM) and has saved, or 130 when interrupted.
    """
    code = _main(jobs, arguments, program, find_place)
    if code not in (0, exits.PREEMPTED) and processes.joined():
        processes.leave(code)
    return code


def _main(
    jobs: Mapping[str, Job], arguments: Sequence[str], program: str, find_place: FindPlace
) -> int:
    """Runs one job; errors as exit codes."""
    try:
        options, rest = take_options(arguments, several=find_place is not places.alone)
        if options.xla_flags:
            print(xla_flags.table_text())
            return 0
        request = parse(jobs, rest, program=program)
        if request is None:
            if find_place is not places.alone:
                print(f"\nflags of processes:\n{options_help(several=True)}")
            return 0
        return _run(request, options, find_place(options), name=rest[0])
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return exits.INTERRUPTED
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else exits.ERROR
    except AlignaxError as error:
        if os.environ.get(DEBUG_VARIABLE) == "1":
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return exits.USAGE if isinstance(error, UsageError) else exits.ERROR
    except Exception as error:
        fault = describe_fault(error)
        if fault is not None and os.environ.get(DEBUG_VARIABLE) != "1":
            print(f"StorageError: {fault}", file=sys.stderr)
            return exits.ERROR
        if not processes.joined():
            raise
        traceback.print_exc()  # what ends a process of several must not wait for the others
        return exits.ERROR


def _run(request: Request, options: Options, place: places.Place, *, name: str) -> int:
    """Joins the job's processes and runs its work; returns the exit code."""
    job, config = request
    if place.num_processes > 1 and not job.owns_run:
        raise ConfigError(
            f"{name} works in one process, and this job has {place.num_processes}; use python -m "
            f"launch.local {name} on one host"
        )
    facts = processes.join(place, options, config)
    runtime.start()
    if options.dry_run:
        text = plan_text(name, config, place, facts)
        if place.process_id == 0:
            print(text)
        return 0
    only_looks = job.preview and getattr(config, job.preview)
    with runtime.on_disk(config) as config:
        if job.owns_run and not only_looks:
            runtime.open_run(config, may_change=job.may_change)
        finished = job.run(config)
    if finished is False:
        print("preempted: saved, run me again", file=sys.stderr)
        return exits.PREEMPTED
    return 0


def parse(jobs: Mapping[str, Job], arguments: Sequence[str], *, program: str) -> Request | None:
    """Turns a command line into a job and its config.

    Args:
      jobs: the jobs by name.
      arguments: job, preset and flags.
      program: how this program was started, for help texts.

    Returns:
      The request; None where the command line asked for help, which has been printed.

    Raises:
      UsageError: an absent or unknown job or preset.
      ConfigError: the run folder's config, which stands in for a preset, cannot be read.
      SystemExit: tyro has printed what is wrong with a flag or its value (2), or its help (0).
    """
    if not arguments:
        raise UsageError(f"no job given; {program} --help lists them. {nearest_name('', jobs)}")
    name, rest = arguments[0], list(arguments[1:])
    if name in _HELP_FLAGS:
        print(_overview(jobs, program))
        return None
    if name not in jobs:
        raise UsageError(f"unknown job '{name}'. {nearest_name(name, jobs)}")
    job = jobs[name]
    preset, rest = _take_preset(job, rest)
    wants_help = any(flag in rest for flag in _HELP_FLAGS)
    if wants_help and preset is None and len(job.presets) > 1:
        print(_overview({name: job}, program))
        return None
    base, source = _base_config(name, job, preset, rest)
    about = inspect.getdoc(job.presets[preset]) if preset else None
    if job.short_flags:
        listed = ", ".join(f"{short} for {flag}" for short, flag in job.short_flags.items())
        about = "\n\n".join(filter(None, (about, f"Short: {listed}.")))
    config = tyro.cli(
        type(base),
        default=base,
        args=[_in_full(word, job) for word in rest],
        prog=f"{program} {name}{source}",
        description="\n\n".join(filter(None, (job.summary, about))),
        config=(tyro.conf.EnumChoicesFromValues, tyro.conf.AvoidSubcommands),
    )
    return Request(job, config)


def _take_preset(job: Job, rest: Sequence[str]) -> tuple[str | None, list[str]]:
    """Splits `--preset NAME` off; the last one counts."""
    preset, others, words = None, [], iter(rest)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag == "--preset":
            preset = value if equals else next(words, "")
            if not preset or preset.startswith("-"):
                raise UsageError(f"--preset needs a name: {', '.join(sorted(job.presets))}")
        elif difflib.get_close_matches(flag, ["--preset"], cutoff=0.8):
            raise UsageError(f"unknown flag '{flag}'. Did you mean '--preset'?")
        else:
            others.append(word)
    return preset, others


def _in_full(word: str, job: Job) -> str:
    """A short flag as the one that it stands for; other words as they are."""
    flag, equals, value = word.partition("=")
    return job.short_flags.get(flag, flag) + equals + value


def _base_config(name: str, job: Job, preset: str | None, rest: Sequence[str]) -> tuple[Any, str]:
    """The config that the flags override, and the words that chose it.

    It is the named preset's; without one that of the run folder, if the flags name a run folder
    that has one; else the only preset's.
    """
    if preset is not None:
        if preset not in job.presets:
            hint = nearest_name(preset, job.presets)
            raise UsageError(f"{name} has no preset '{preset}'. {hint}")
        return job.presets[preset](), f" --preset {preset}"
    run_dir = _run_dir(rest)
    if job.owns_run and run_dir is not None and (run_dir / runtime.CONFIG_NAME).exists():
        config_type = type(next(iter(job.presets.values()))())
        return from_dict(config_type, runtime.read_config(run_dir)), ""
    if len(job.presets) == 1:
        return next(iter(job.presets.values()))(), ""
    raise UsageError(
        f"{name} needs --preset NAME, or --run-dir of a run that exists. "
        f"Presets: {', '.join(sorted(job.presets))}."
    )


def _run_dir(rest: Sequence[str]) -> pathlib.Path | None:
    """The value of `--run-dir` among the flags; tyro parses it again."""
    value = None
    for index, word in enumerate(rest):
        flag, equals, attached = word.partition("=")
        if flag in ("--run-dir", "--run_dir"):
            value = attached if equals else "".join(rest[index + 1 : index + 2])
    if value and is_url(value):
        pull(value, working_copy(value), may_be_absent=True)
    return working_copy(value) if value else None


def _overview(jobs: Mapping[str, Job], program: str) -> str:
    """The help text: usage, jobs, and the presets below the jobs that share them."""
    width = max(map(len, jobs))
    lines = []
    for _, group in itertools.groupby(jobs.items(), key=lambda entry: _preset_lines(entry[1])):
        members = list(group)
        lines += [f"  {name:<{width}}  {job.summary}" for name, job in members]
        lines += [*_preset_lines(members[0][1]), ""]
    return "\n".join(
        [
            f"usage: {program} JOB --preset NAME [--run-dir DIR] [--FIELD VALUE ...]",
            "",
            "jobs, and their presets:",
            *lines,
            f"{program} JOB --preset NAME --help lists every field of that preset's config.",
            "A job with one preset needs no --preset, nor does a run that exists (--run-dir DIR).",
        ]
    )


def _preset_lines(job: Job) -> list[str]:
    """Each preset with the first line of its docstring."""
    width = max((len(name) for name in job.presets), default=0)
    documents = {name: inspect.getdoc(make) or "" for name, make in job.presets.items()}
    return [
        f"      --preset {name:<{width}}  {document.partition(chr(10))[0]}".rstrip()
        for name, document in documents.items()
    ]
