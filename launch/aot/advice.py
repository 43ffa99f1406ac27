"""Which settings would make a program fit, and the least slice that holds it.

Dimension key: none.
"""

from collections.abc import Callable, Mapping, Sequence

from core_jax.errors import AlignaxError
from core_jax.mesh import make_mesh
from core_jax.programs import Program, Setting, held_bytes
from launch.aot.chips import Chip
from launch.aot.compiled import Memory, Outcome, compile_program
from launch.aot.target import Target, load_target

NUM_SETTINGS = 3
_GIB = 1 << 30


def saved_bytes(setting: Setting, memory: Memory) -> int:
    """Bytes that a setting is expected to save, by its rule of thumb."""
    return round(
        sum(memory.by_kind.get(kind, 0) * (1.0 - keeps) for kind, keeps in setting.keeps.items())
    )


def best_settings(settings: Sequence[Setting], memory: Memory) -> list[tuple[Setting, int]]:
    """The settings that save most, given what the memory is taken by."""
    ranked = [(one, saved_bytes(one, memory)) for one in settings]
    ranked = [(one, saved) for one, saved in ranked if saved > 0]
    return sorted(ranked, key=lambda pair: -pair[1])[:NUM_SETTINGS]


def least_slice(
    program: Program,
    chip: Chip,
    *,
    compile_on: Callable[[Program, Target], Outcome] = compile_program,
    load: Callable[[str], Target] = load_target,
    known: Mapping[str, Outcome] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[str, Outcome] | None:
    """The smallest slice of a family that a program fits, with its outcome; None: it fits none.

    Slices that cannot hold what lies there before the program runs, or over which its mesh or
    batch does not split, are passed over without compiling.

    Args:
      program: to be placed.
      chip: the family.
      compile_on: compiles a program for a target.
      load: describes a topology.
      known: outcomes of slices, by name, that need not be compiled again.
      say: is told what is done with each slice, as a compilation takes minutes.
    """
    for shape in chip.slices:
        name = f"{chip.name}:{shape}"
        try:
            target = load(name)
            mesh = make_mesh(program.mesh, target.devices)
            trees = [*program.held(mesh).values(), *program.beside(mesh).values()]
            held = sum(map(held_bytes, trees))
        except AlignaxError as error:
            # A shape that this compiler does not know, or over which the mesh or batch does not
            # split.
            say(f"{name}: passed over, {error}")
            continue
        if held >= chip.usable_bytes:
            say(f"{name}: passed over, {held / _GIB:.1f} GiB lie there before it runs")
            continue
        outcome = (known or {}).get(name)
        if outcome is None:
            say(f"{name}: compiling {program.name}")
            outcome = compile_on(program, target)
        say(f"{name}: {outcome.verdict}")
        if outcome.verdict == "fits":
            return name, outcome
    return None
