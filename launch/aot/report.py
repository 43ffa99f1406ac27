"""What is said of a program on a target: in words, as a row, as JSON.

Dimension key: none.
"""

import dataclasses
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from core_jax.programs import Kind, Program, Setting
from launch.aot.compiled import Outcome
from launch.aot.roofline import ASSUMPTIONS, Roofline, roofline
from launch.aot.target import Target

_GIB = 1 << 30
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """A program on a target.

    Attributes:
      program: of a job.
      target: devices.
      outcome: of the compiler.
      roofline: None unless it was compiled.
      settings: what would help where it does not fit, with the bytes that each saves.
      least: name of the smallest slice of the family that it fits; "" where none was looked for.
    """

    program: Program
    target: Target
    outcome: Outcome
    roofline: Roofline | None
    settings: Sequence[tuple[Setting, int]] = ()
    least: str = ""


def estimate(program: Program, target: Target, outcome: Outcome) -> Roofline | None:
    """The roofline of a compiled program."""
    if outcome.facts is None:
        return None
    devices = math.prod(outcome.mesh_shape.values())
    return roofline(
        target.chip,
        model_flops=program.model_flops / devices,
        hardware_flops=program.hardware_flops / devices,
        moved_bytes=outcome.facts.moved_bytes,
        collectives=outcome.facts.collectives,
        mesh_shape=outcome.mesh_shape,
        shape=target.shape,
    )


def mesh_text(shape: Mapping[str, int]) -> str:
    """The axes that split something.

    >>> mesh_text({"data": 2, "fsdp": 8, "expert": 1, "tensor": 1})
    'data=2 fsdp=8'
    """
    split = [f"{axis}={size}" for axis, size in shape.items() if size > 1]
    return " ".join(split) or "one device"


def text(report: Report) -> str:
    """The report in words."""
    outcome, program = report.outcome, report.program
    lines = [
        f"{program.name} on {report.target.name} ({mesh_text(outcome.mesh_shape)}): "
        f"{outcome.verdict.upper()}"
    ]
    if outcome.reason:
        lines.append(f"  why: {outcome.reason}")
    lines += _memory_lines(report)
    lines += _facts_lines(report)
    if report.least:
        lines.append(f"  least slice of this family: {report.least}")
    lines.append(f"  lowered and compiled in {outcome.seconds:.0f} s")
    return "\n".join(lines)


def _memory_lines(report: Report) -> list[str]:
    """Memory by kind, and what would help."""
    memory = report.outcome.memory
    if memory is None:
        return []
    told = "" if memory.is_exact else " (the compiler gave up: a lower bound of temporaries)"
    parts = ", ".join(f"{kind.value} {size / _GIB:.2f}" for kind, size in memory.by_kind.items())
    lines = [
        f"  HBM per device: {memory.total / _GIB:.2f} of {memory.limit / _GIB:.2f} GiB{told}",
        f"    GiB: {parts}",
    ]
    if memory.over:
        lines.append(f"  too much by {memory.over / _GIB:.2f} GiB; what would help most:")
        lines += [
            f"    {one.flag}: about {saved / _GIB:.2f} GiB less ({one.what})"
            for one, saved in report.settings
        ]
    return lines


def _facts_lines(report: Report) -> list[str]:
    """FLOPs, collectives, kernels, times."""
    facts, times, program = report.outcome.facts, report.roofline, report.program
    if facts is None or times is None:
        return []
    devices = math.prod(report.outcome.mesh_shape.values())
    lines = [
        f"  FLOPs per step and device: {program.hardware_flops / devices / 1e12:.3f} T, of which "
        f"the model needs {program.model_flops / devices / 1e12:.3f} T (XLA, which counts a loop's "
        f"body once: {facts.xla_flops / 1e12:.3f} T)",
        f"  HBM traffic per step and device: {facts.moved_bytes / 1e9:.1f} GB",
    ]
    lines += [
        f"  {one.kind} along {one.axes}: {one.count:,.0f} of {one.sent_bytes / 1e9:.3f} GB in all"
        for one in facts.collectives
    ]
    if facts.unknown_loops:
        times_run = "once" if facts.loop_steps == 1 else f"{facts.loop_steps} times each"
        lines.append(f"  loops of unknown length, counted {times_run}: {facts.unknown_loops}")
    named = ", ".join(f"{name} x {count:,.0f}" for name, count in facts.kernels.items())
    lines.append(f"  kernels: {named or 'none'}")
    links = ", ".join(f"{axes} {1e3 * time:.2f}" for axes, time in times.links.items())
    lines += [
        f"  at best, ms: compute {1e3 * times.compute:.2f}, HBM {1e3 * times.memory:.2f}, links "
        f"{links or 'none'}; bottleneck: {times.bottleneck}",
        f"  step {1e3 * times.overlapped:.1f} ms overlapped, {1e3 * times.serial:.1f} ms one by "
        f"one; MFU {times.mfu_overlapped:.1%} and {times.mfu_serial:.1%}; "
        f"{program.tokens / times.overlapped / devices:,.0f} tokens/s/device at best",
        f"  assumed: {ASSUMPTIONS}",
    ]
    return lines


TABLE_HEAD = (
    "| program | slice | mesh | verdict | HBM GiB of | parameters | optimizer | inputs | "
    "temporaries | step ms | MFU | bottleneck | kernels | compiled in |\n" + "|---" * 14 + "|"
)
"""Of `row`."""


def row(report: Report) -> str:
    """The report as a row of a table."""
    outcome = report.outcome
    memory, times, facts = outcome.memory, report.roofline, outcome.facts
    held = memory.by_kind if memory else {}
    sizes = [
        f"{held[kind] / _GIB:.2f}" if kind in held else ""
        for kind in (Kind.PARAMETERS, Kind.OPTIMIZER, Kind.INPUTS, Kind.TEMPORARIES)
    ]
    total = f"{memory.total / _GIB:.2f} of {memory.limit / _GIB:.2f}" if memory else ""
    step = f"{1e3 * times.overlapped:.0f} to {1e3 * times.serial:.0f}" if times else ""
    mfu = f"{times.mfu_serial:.0%} to {times.mfu_overlapped:.0%}" if times else ""
    cells = [
        report.program.name,
        report.target.name,
        mesh_text(outcome.mesh_shape),
        outcome.verdict,
        total,
        *sizes,
        step,
        mfu,
        times.bottleneck if times else "",
        ", ".join(facts.kernels) if facts else "",
        f"{outcome.seconds:.0f} s",
    ]
    return f"| {' | '.join(cells)} |"


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON values; bytes, FLOPs and seconds per device and step."""
    outcome, program = report.outcome, report.program
    memory, facts, times = outcome.memory, outcome.facts, report.roofline
    devices = math.prod(outcome.mesh_shape.values()) if outcome.mesh_shape else 0
    found: dict[str, Any] = {
        "program": program.name,
        "topology": report.target.name,
        "devices": len(report.target.devices),
        "mesh": dict(outcome.mesh_shape),
        "verdict": outcome.verdict,
        "reason": outcome.reason,
        "compile_seconds": round(outcome.seconds, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT,
        "least_slice": report.least,
        "settings": [
            {"flag": one.flag, "what": one.what, "saved_bytes": saved}
            for one, saved in report.settings
        ],
    }
    if memory:
        found["memory"] = {
            "by_kind": {kind.value: size for kind, size in memory.by_kind.items()},
            "total": memory.total,
            "limit": memory.limit,
            "over": memory.over,
            "is_exact": memory.is_exact,
        }
    if facts and times and devices:
        found |= {
            "model_flops": program.model_flops / devices,
            "hardware_flops": program.hardware_flops / devices,
            "xla_flops": facts.xla_flops,
            "hbm_traffic": facts.moved_bytes,
            "collectives": [dataclasses.asdict(one) for one in facts.collectives],
            "unknown_loops": facts.unknown_loops,
            "loop_steps": facts.loop_steps,
            "kernels": dict(facts.kernels),
            "roofline": dataclasses.asdict(times)
            | {"overlapped": times.overlapped, "serial": times.serial},
            "bottleneck": times.bottleneck,
            "assumptions": ASSUMPTIONS,
        }
    return found
