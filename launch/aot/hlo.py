"""A compiled program's text (XLA's HLO), as far as it is needed to count what it does.

A computation is a list of instructions; it runs once for every run of what calls it, a loop's body
once per iteration. Loops tell their number of iterations in their condition: they count up to a
constant.

Dimension key: none.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

ITEM_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "f8e4m3fn": 8, "f8e5m2": 8,
    "c64": 64, "c128": 128,
}  # fmt: skip
"""Bits of an element by type; other types (tokens, opaque) have none."""

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r"(?:^|\s)([a-z][a-z0-9\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_SETS = re.compile(r"(?:branch_computations|called_computations|calls)=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count":?\{"?n"?:"?(\d+)')
_OPERAND = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayType:
    """An array of an instruction's result."""

    bytes: int
    """Bytes, padding of layouts left out."""
    on_chip: bool
    """Whether it lies in the chip's fast memory and not in HBM."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line."""

    name: str
    """Unique in its computation."""
    operation: str
    """What is done ("fusion", "all-gather-start")."""
    result: tuple[ArrayType, ...]
    """Its arrays, those of a tuple in order."""
    operands: tuple[str, ...]
    """Names of what it reads."""
    text: str
    """All behind the operands' opening parenthesis."""

    def attribute(self, name: str) -> str:
        """The word behind NAME=, or ""."""
        found = re.search(rf"\b{name}=\"?%?([\w.$\-/]+)", self.text)
        return found[1] if found else ""

    @property
    def result_bytes(self) -> int:
        """Bytes of the result."""
        return sum(one.bytes for one in self.result)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Module:
    """A program.

    Attributes:
      computations: instructions by the computation's name.
      entry: name of the computation that runs.
      runs: by name how often a computation runs in a run of the program.
      unknown_loops: loops whose number of iterations the text does not tell.
    """

    computations: Mapping[str, Sequence[Instruction]]
    entry: str
    runs: Mapping[str, float]
    unknown_loops: int


def parse(text: str, unknown_trips: int = 1) -> Module:
    """Reads a program.

    Args:
      text: from `jax.stages.Compiled.as_text()`.
      unknown_trips: how often a loop runs of which the text does not tell it.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        header = _HEADER.match(line) if line[:1] not in (" ", "}", "") else None
        if header and not line.startswith("HloModule"):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
            continue
        found = _INSTRUCTION.match(line)
        if found and current is not None:
            instruction = _instruction(found[1], found[2])
            if instruction is not None:
                current.append(instruction)
    runs, unknown = _runs(computations, entry, unknown_trips)
    return Module(computations=computations, entry=entry, runs=runs, unknown_loops=unknown)


def called(instruction: Instruction) -> list[str]:
    """Names of the computations that an instruction calls."""
    names = _CALLED.findall(instruction.text)
    for group in _SETS.findall(instruction.text):
        names += _OPERAND.findall(group)
    return names


def _instruction(name: str, rest: str) -> Instruction | None:
    """One line behind its equals sign."""
    found = _OPERATION.search(rest)
    if found is None:
        return None
    shape, text = rest[: found.start()], rest[found.end() :]
    return Instruction(
        name=name,
        operation=found[1],
        result=tuple(_array(*parts) for parts in _ARRAY.findall(shape)),
        operands=tuple(_OPERAND.findall(_inside(text))),
        text=text,
    )


def _array(kind: str, dims: str, layout: str) -> ArrayType:
    """An array's bytes and place."""
    elements = 1
    for size in dims.split(",") if dims else []:
        elements *= int(size)
    bits = ITEM_BITS.get(kind, 0)
    return ArrayType(bytes=-(-elements * bits // 8), on_chip="S(" in layout)


def _inside(text: str) -> str:
    """The operands: up to the parenthesis that closes them."""
    depth = 1
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[:position]
    return text


def _runs(
    computations: Mapping[str, Sequence[Instruction]], entry: str, unknown_trips: int
) -> tuple[Mapping[str, float], int]:
    """How often each computation runs, and the number of loops of unknown length."""
    callers: dict[str, list[tuple[str, float]]] = defaultdict(list)
    unknown = 0
    for name, instructions in computations.items():
        for instruction in instructions:
            trips: float | None = 1.0
            if instruction.operation == "while":
                trips = _trips(instruction, computations)
                unknown += trips is None
            for other in called(instruction):
                callers[other].append((name, unknown_trips if trips is None else trips))
    found: dict[str, float] = {entry: 1.0}

    def count(name: str) -> float:
        if name not in found:
            found[name] = sum(count(caller) * trips for caller, trips in callers[name])
        return found[name]

    return {name: count(name) for name in computations}, unknown


def _trips(loop: Instruction, computations: Mapping[str, Sequence[Instruction]]) -> float | None:
    """Iterations of a loop, or None where they are not told."""
    known = _TRIPS.search(loop.text)
    if known:
        return float(known[1])
    condition = loop.attribute("condition")
    names, seen = [condition], set()
    limits: list[int] = []
    counts_up = False
    while names:
        name = names.pop()
        if name in seen:
            continue
        seen.add(name)
        for instruction in computations.get(name, ()):
            names += called(instruction)
            constant = re.match(r"(\d+)\)", instruction.text)
            if instruction.operation == "constant" and constant:
                limits.append(int(constant[1]))
            counts_up |= "direction=LT" in instruction.text
    return float(limits[0]) if counts_up and len(limits) == 1 else None
