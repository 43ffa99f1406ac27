"""Compiles one program for one target, and reads off what it takes.

Dimension key: none.
"""

import dataclasses
import re
import time
from collections.abc import Mapping
from typing import Any

from jax.errors import JaxRuntimeError

from core_jax.arrays import PyTree
from core_jax.errors import AlignaxError
from core_jax.mesh import make_mesh
from core_jax.programs import Kind, Program, held_bytes
from launch.aot.collectives import Collective, collectives, kernels
from launch.aot.hlo import parse
from launch.aot.target import Target
from launch.aot.traffic import hbm_bytes

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TEMPORARIES = re.compile(r"HLO temporaries \(([\d.]+)([KMGT]?)\)")
_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of one device.

    Attributes:
      by_kind: bytes by what takes them; layouts' padding of arguments is with the inputs.
      total: bytes in all, the most that are held at a time.
      limit: bytes that a program may take.
      is_exact: False where the compiler gave up, and told no more than the temporaries.
    """

    by_kind: Mapping[Kind, int]
    total: int
    limit: int
    is_exact: bool

    @property
    def over(self) -> int:
        """Bytes above the limit; 0 where it fits."""
        return max(0, self.total - self.limit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What the compiled program does in a step, on one device.

    Attributes:
      xla_flops: as XLA counts them: a loop's body once.
      moved_bytes: to and from HBM.
      collectives: of a step.
      kernels: hand-written kernels by name, with their runs.
      unknown_loops: loops whose number of iterations the text does not tell.
      loop_steps: how often each of them is taken to run.
    """

    xla_flops: float
    moved_bytes: float
    collectives: tuple[Collective, ...]
    kernels: Mapping[str, float]
    unknown_loops: int
    loop_steps: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a program on a target.

    Attributes:
      mesh_shape: devices by axis; empty where there is no such mesh.
      memory: None where it cannot be compiled.
      facts: None unless it was compiled.
      reason: why it cannot be compiled, or "".
      seconds: to lower and compile.
    """

    mesh_shape: Mapping[str, int]
    memory: Memory | None
    facts: Facts | None
    reason: str
    seconds: float

    @property
    def verdict(self) -> str:
        """One of: fits, does not fit, cannot be compiled."""
        if self.memory is None:
            return "cannot be compiled"
        return "does not fit" if self.memory.over else "fits"


def compile_program(program: Program, target: Target) -> Outcome:
    """Lowers and compiles a program for a target; nothing runs.

    What a chip cannot hold, and what cannot be compiled for it, is an outcome and no error.
    """
    began = time.monotonic()
    shape: Mapping[str, int] = {}
    held: Mapping[Kind, int] = {}
    beside: Mapping[Kind, int] = {}
    try:
        mesh = make_mesh(program.mesh, target.devices)
        shape = dict(mesh.shape)
        held, beside = (_device_bytes(trees(mesh)) for trees in (program.held, program.beside))
        compiled = program.lower(mesh).compile(_options(target))
    except JaxRuntimeError as error:
        memory = _refused(str(error), held, target.chip.usable_bytes)
        reason = "" if memory else _first_line(error)
        return _outcome(shape, memory and with_beside(memory, beside), None, reason, began)
    except (AlignaxError, NotImplementedError, ValueError) as error:
        return _outcome(shape, None, None, _first_line(error), began)
    memory = _memory(compiled.memory_analysis(), held, target.chip.usable_bytes)
    memory = with_beside(memory, beside)
    return _outcome(shape, memory, read_facts(compiled, shape, program.loop_steps), "", began)


def _options(target: Target) -> Any:
    """Options of the compiler.

    Without a GPU nothing can be tried out, and the one tiling that the compiler then guesses for
    its own matrix products fails for some shapes; the vendor's library takes them all.
    """
    return {"xla_gpu_enable_triton_gemm": False} if target.chip.is_gpu else None


def read_facts(compiled: Any, mesh_shape: Mapping[str, int], loop_steps: int = 1) -> Facts:
    """Reads a compiled program's text; a loop of unknown length runs `loop_steps` times."""
    module = parse(compiled.as_text(), loop_steps)
    return Facts(
        xla_flops=float((compiled.cost_analysis() or {}).get("flops", 0.0)),
        moved_bytes=hbm_bytes(module),
        collectives=collectives(module, mesh_shape),
        kernels=kernels(module),
        unknown_loops=module.unknown_loops,
        loop_steps=loop_steps,
    )


def _outcome(
    shape: Mapping[str, int], memory: Memory | None, facts: Facts | None, reason: str, began: float
) -> Outcome:
    """An outcome with its time."""
    return Outcome(
        mesh_shape=shape,
        memory=memory,
        facts=facts,
        reason=reason,
        seconds=time.monotonic() - began,
    )


def with_beside(memory: Memory, beside: Mapping[Kind, int]) -> Memory:
    """The account of a program with what lies on the device as well, and is no argument of it."""
    by_kind = {
        kind: memory.by_kind.get(kind, 0) + beside.get(kind, 0)
        for kind in (*memory.by_kind, *beside)
    }
    total = memory.total + sum(beside.values())
    return dataclasses.replace(memory, by_kind=by_kind, total=total)


def _device_bytes(trees: Mapping[Kind, PyTree]) -> dict[Kind, int]:
    """Bytes per device of what lies there while the program runs."""
    return {kind: held_bytes(tree) for kind, tree in trees.items()}


def _memory(analysis: Any, held: Mapping[Kind, int], limit: int) -> Memory:
    """The compiler's account."""
    padding = max(0, analysis.argument_size_in_bytes - sum(held.values()))
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    by_kind = dict(held) | {
        Kind.INPUTS: held.get(Kind.INPUTS, 0) + padding,
        Kind.TEMPORARIES: analysis.temp_size_in_bytes + max(0, outputs),
        Kind.CODE: analysis.generated_code_size_in_bytes,
    }
    return Memory(by_kind=by_kind, total=sum(by_kind.values()), limit=limit, is_exact=True)


def _refused(message: str, held: Mapping[Kind, int], limit: int) -> Memory | None:
    """The account of a compiler that gave up for want of memory; None: it was something else.

    It tells either the temporaries, to which the arguments come, or all that it used.
    """
    if "RESOURCE_EXHAUSTED" not in message or "vmem" in message.lower():
        return None
    temporaries, used = _TEMPORARIES.search(message), _USED.search(message)
    if temporaries:
        total = _bytes(*temporaries.groups()) + sum(held.values())
    elif used:
        total, limit = _bytes(*used.groups()[:2]), _bytes(*used.groups()[2:])
    else:
        return None
    rest = max(0, total - sum(held.values()))
    return Memory(
        by_kind=dict(held) | {Kind.TEMPORARIES: rest}, total=total, limit=limit, is_exact=False
    )


def _bytes(number: str, unit: str) -> int:
    """A number with XLA's unit.

    >>> _bytes("1.5", "K")
    1536
    """
    return int(float(number) * _UNITS[unit])


def _first_line(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:400]}"
