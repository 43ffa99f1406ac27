"""The table of presets and the targets that they were compiled for.

Every row is compiled in a process of its own, so that its time and memory are its own. What was
found is kept beside the table as JSON, so that a row can be made again alone.

Dimension key: none.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from core_jax.errors import AlignaxError

_GIB = 1 << 30
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
"""Lines of the page between which the table stands."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One compilation: a program of a preset on a target.

    Attributes:
      job: name of the job.
      preset: of the job.
      program: by the beginning of its name.
      topology: the target.
      flags: further flags.
    """

    job: str
    preset: str
    program: str
    topology: str
    flags: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """Its command line."""
        words = [self.job, "--preset", self.preset, "--topology", self.topology]
        words += ["--program", self.program] if self.program else []
        return [*words, *self.flags]

    @property
    def key(self) -> str:
        """Its command line as text."""
        return " ".join(f"'{word}'" if " " in word else word for word in self.words)


_TRAIN, _BEAM, _DPO = "train step", "candidates", "dpo step"
_CONTRAST, _SCORE, _CDPO = "contrast model", "contrastive scoring", "position step"
_TURN, _READ, _FILL, _DECODE = "weights for decoding", "prefill", "filling", "decoding"
_PIPELINE = "reasoning.pipeline"

LINES = (
    Line(job="rec.pretrain", preset="onerec_1b", program=_TRAIN, topology="v5e:4x4"),
    Line(job="rec.align", preset="onerec_1b", program=_BEAM, topology="v5e:4x4"),
    Line(job="rec.align", preset="onerec_1b", program=_DPO, topology="v5e:4x4"),
    Line(job="rec.pretrain", preset="onerec_1b_gpu", program=_TRAIN, topology="a100:1"),
    Line(job="rec.align", preset="onerec_1b_gpu", program=_BEAM, topology="a100:1"),
    Line(job="rec.align", preset="onerec_1b_gpu", program=_DPO, topology="a100:1"),
    Line(job="rec.pretrain", preset="onerec_1b_gpu_24gb", program=_TRAIN, topology="a10:1"),
    Line(job=_PIPELINE, preset="llama3_8b_gpu", program=_CDPO, topology="a10:1"),
    Line(job=_PIPELINE, preset="llama3_8b_gpu", program=_CDPO, topology="a100:1"),
    Line(job=_PIPELINE, preset="llama3_8b_full", program=_CDPO, topology="a100:8"),
    Line(job=_PIPELINE, preset="deepseek_math_7b_pod", program=_CDPO, topology="a100:8"),
    Line(job=_PIPELINE, preset="deepseek_math_7b_full", program=_CDPO, topology="a100:8"),
    Line(job=_PIPELINE, preset="llama3_70b_pod", program=_CDPO, topology="a100:8"),
    Line(job=_PIPELINE, preset="llama3_8b_pod", program=_CDPO, topology="v5e:4x4"),
    Line(job=_PIPELINE, preset="llama3_8b_full", program=_CDPO, topology="v5e:4x8"),
    Line(job=_PIPELINE, preset="llama3_70b_pod", program=_CDPO, topology="v5e:8x8"),
    Line(job=_PIPELINE, preset="deepseek_math_7b_pod", program=_CDPO, topology="v5e:4x4"),
    Line(job=_PIPELINE, preset="deepseek_math_7b_full", program=_CDPO, topology="v5e:4x8"),
    Line(job=_PIPELINE, preset="llama3_8b_pod", program=_SCORE, topology="v5e:4x4"),
    Line(job=_PIPELINE, preset="llama3_8b_pod", program=_CONTRAST, topology="v5e:4x4"),
    *(
        Line(job=_PIPELINE, preset=preset, program=program, topology=topology)
        for preset, topology in (("llama3_8b_pod", "v5e:2x4"), ("llama3_8b_gpu", "a100:1"))
        for program in (_TURN, _READ, _FILL, _DECODE)
    ),
)
"""What the table has, in its order."""

_HEAD = (
    "| job, preset, program | target | mesh | verdict | GiB of limit | parameters | optimizer | "
    "temporaries | step ms | MFU | bottleneck | kernels | compiled in, memory |\n"
    + "|---" * 13
    + "|"
)


def update_table(page: str | os.PathLike[str], wanted: Sequence[str], *, again: bool) -> int:
    """Compiles what the table lacks, and writes it into a page.

    Args:
      page: Markdown with the lines `BEGIN` and `END`; the JSON stands beside it.
      wanted: only lines whose command has one of these words; all where there is none.
      again: compile what is known already as well.

    Returns:
      How many lines of the table do not fit, could not be compiled or are still missing.

    Raises:
      AlignaxError: the page has no place for a table.
    """
    path = pathlib.Path(page)
    _parts(path)  # before anything is compiled
    store = path.with_suffix(".json")
    for line in LINES:
        chosen = not wanted or any(word in line.key for word in wanted)
        if chosen and (again or line.key not in _known(store)):
            result = _compile_apart(line)
            if result is not None:
                found = _known(store) | {line.key: result}
                store.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found = _known(store)
    known = [(line, found[line.key]) for line in LINES if line.key in found]
    before, after = _parts(path)
    missing = "".join(f"\n* `{line.key}`" for line in LINES if line.key not in found)
    note = f"\n\nNot compiled yet:\n{missing}" if missing else ""
    path.write_text(f"{before}{BEGIN}\n{table(known)}{note}\n{END}{after}", encoding="utf-8")
    return len(LINES) - sum(result["verdict"] == "fits" for _, result in known)


def _known(store: pathlib.Path) -> dict[str, Any]:
    """What was found before, by the command line."""
    return json.loads(store.read_text(encoding="utf-8")) if store.is_file() else {}


def _parts(path: pathlib.Path) -> tuple[str, str]:
    """What stands before and behind the table."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise AlignaxError(f"'{path}' has not one line '{BEGIN}' and one '{END}'; add them")
    return text.split(BEGIN)[0], text.split(END)[1]


def table(known: Iterable[tuple[Line, Mapping[str, Any]]]) -> str:
    """Lines with what was found, as Markdown."""
    return "\n".join([_HEAD, *(_row(line, result) for line, result in known)])


def _compile_apart(line: Line) -> dict[str, Any] | None:
    """Compiles a line in a process of its own; None where the compiler is not installed."""
    command = [sys.executable, "-m", "launch.compile_check", *line.words, "--json"]
    print(" ".join(command[1:]), flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    start = done.stdout.find("[\n")
    if start < 0:
        print(f"  no result: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        return None
    result = json.loads(done.stdout[start:])[0]
    print(f"  {result['verdict']}, {result['compile_seconds']:.0f} s", flush=True)
    versions = f"jax {jax.__version__}, Python {platform.python_version()}"
    return result | {"date": datetime.date.today().isoformat(), "versions": versions}


def _row(line: Line, result: Mapping[str, Any]) -> str:
    """A line of the table."""
    memory, times = result.get("memory"), result.get("roofline")
    mesh = " ".join(f"{axis}={size}" for axis, size in result["mesh"].items() if size > 1)
    cells = [
        f"`{line.job} --preset {line.preset}`, {result['program']}",
        line.topology,
        mesh or "one device",
        result["verdict"],
    ]
    if memory:
        sizes = memory["by_kind"]
        kinds = ("parameters", "optimizer state", "activations and temporaries")
        cells.append(f"{memory['total'] / _GIB:.1f} of {memory['limit'] / _GIB:.1f}")
        cells += [f"{sizes.get(kind, 0) / _GIB:.2f}" for kind in kinds]
    else:
        cells += [""] * 4
    if times:
        links = max(times["links"].values(), default=0.0)
        longest = times["compute"] + times["memory"] + links
        ideal = times["mfu_overlapped"] * times["overlapped"]
        cells.append(f"{1e3 * times['overlapped']:,.0f} to {1e3 * longest:,.0f}")
        cells.append(f"{ideal / longest:.0%} to {times['mfu_overlapped']:.0%}")
        cells.append(result["bottleneck"])
        cells.append(", ".join(f"{name} x {n:,.0f}" for name, n in result["kernels"].items()))
    else:
        cells += [""] * 3 + [result["reason"]]
    used = f", {result['peak_memory'] / _GIB:.1f} GiB"
    busy = f" ({result['cpu_seconds']:.0f} s CPU)" if "cpu_seconds" in result else ""
    cells.append(f"{result['compile_seconds']:.0f} s{busy}{used}")
    return f"| {' | '.join(cells)} |"
