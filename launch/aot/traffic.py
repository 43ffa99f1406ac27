"""How many bytes a compiled program moves between HBM and the chip in a step.

Every instruction reads its operands and writes its result; what lies in the chip's fast memory
costs nothing. A fusion that only takes a slice of an operand reads the slice; one that only
overwrites a slice, or scatters into it, writes the slice. So the weights of a layer, which a loop
over layers takes out of a stack, count once and not as the stack, and a token that enters a cache
of keys and values does not count as the cache. A collective that runs beside several fusions is
written into each of them, with the buffer that it fills as operand and result: the fusions only
hand it on, and it counts where the collective starts and ends.

Dimension key: none.
"""

from collections.abc import Mapping, Sequence

from launch.aot.collectives import KINDS
from launch.aot.hlo import Instruction, Module

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "iota", "partition-id", "replica-id", "copy-done", "all-gather-done",
    "all-reduce-done", "collective-permute-done", "async-start", "async-update", "async-done",
    "opt-barrier",
}  # fmt: skip
"""Move nothing by themselves; the computations that they call are counted."""
_SLICES = ("dynamic-slice", "slice", "gather")
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}
"""Change a part of their first operand; which operand is as large as the part."""


def hbm_bytes(module: Module) -> float:
    """Bytes read and written per step by one device."""
    fused = _fused(module)
    return sum(
        module.runs[name] * _moved(instructions, module.computations)
        for name, instructions in module.computations.items()
        if name not in fused
    )


def _fused(module: Module) -> set[str]:
    """Computations inside a fusion or a reduction: what they touch stays on the chip."""
    inside = ("fusion", "reduce", "scatter", "sort", "map", "reduce-window", "select-and-scatter")
    inside += ("all-reduce", "reduce-scatter", "all-reduce-start")
    return {
        one.attribute(name)
        for instructions in module.computations.values()
        for one in instructions
        if one.operation in inside
        for name in ("calls", "to_apply")
    }


def _moved(
    instructions: Sequence[Instruction], computations: Mapping[str, Sequence[Instruction]]
) -> float:
    """Bytes of one run of a computation."""
    results = {one.name: one for one in instructions}
    total = 0.0
    for one in instructions:
        if one.operation in _FREE:
            continue
        body = computations.get(one.attribute("calls"), ()) if one.operation == "fusion" else ()
        total += _written(one, body, instructions)
        for place, name in enumerate(one.operands):
            if name in results:
                total += _read(one, results[name], place, body)
    return total


def _written(one: Instruction, body: Sequence[Instruction], around: Sequence[Instruction]) -> float:
    """Bytes of the result that go to HBM."""
    off_chip = sum(array.bytes for array in one.result if not array.on_chip)
    last = body[-1] if body else one
    if last.operation == "tuple":
        inner = {other.name: other.operation for other in body}
        handed_on = [inner.get(name) in ("parameter", *KINDS) for name in last.operands]
        if any(handed_on) and len(handed_on) == len(one.result):
            pairs = zip(one.result, handed_on, strict=True)
            return sum(array.bytes for array, same in pairs if not (array.on_chip or same))
    part = _IN_PLACE.get(last.operation, len(last.operands))
    if part < len(last.operands):
        sizes = {inner.name: inner.result_bytes for inner in body or around}
        return min(off_chip, sizes.get(last.operands[part], off_chip))
    return off_chip


def _read(one: Instruction, source: Instruction, place: int, body: Sequence[Instruction]) -> float:
    """Bytes of an operand that come from HBM."""
    whole = sum(array.bytes for array in source.result if not array.on_chip)
    if one.operation in _SLICES:
        return min(whole, one.result_bytes)
    if one.operation in _IN_PLACE:
        return 0.0 if place == 0 else whole
    inner = next(
        (
            other.name
            for other in body
            if other.operation == "parameter" and other.text.startswith(f"{place})")
        ),
        None,
    )
    users = [other for other in body if inner in other.operands] if inner else []
    if users and all(other.operation in ("tuple", *KINDS) for other in users):
        return 0.0  # handed on
    if users and all(_touches_slice(other, inner) for other in users):
        return min(whole, sum(_slice_bytes(other, body) for other in users))
    return whole


def _touches_slice(user: Instruction, operand: str | None) -> bool:
    """Whether an instruction of a fusion reads or overwrites a part of an operand alone."""
    first = bool(user.operands) and user.operands[0] == operand
    return first and user.operation in (*_SLICES, *_IN_PLACE)


def _slice_bytes(user: Instruction, body: Sequence[Instruction]) -> int:
    """Bytes of the part; an overwritten one is not read."""
    return 0 if user.operation in _IN_PLACE else user.result_bytes
