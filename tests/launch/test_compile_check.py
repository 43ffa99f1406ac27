"""The command with a compiler that is made up: verdicts, exit codes, advice, the least slice."""

import dataclasses
import json
import math

import jax
import pytest

from core_jax.jobs import Job
from core_jax.mesh import MeshConfig, batch_sharding, make_mesh, replicated
from core_jax.nn.stack import Remat
from core_jax.programs import Kind, Program, train_settings
from launch.aot.advice import best_settings, least_slice
from launch.aot.chips import CHIPS
from launch.aot.collectives import Collective
from launch.aot.compiled import Facts, Memory, Outcome, _refused, with_beside
from launch.aot.target import CannotCompileError, Target, load_target, parse_name
from launch.compile_check import main
from tests.launch.fake_jobs import large, small

GIB = 1 << 30
LIMIT = CHIPS["v5e"].usable_bytes
PARAMETERS = 13 * GIB


def program(name="train step", *, parameters=PARAMETERS):
    """Parameters that fsdp shares, 17 rows per device, settings of a train step."""

    def held(mesh):
        # Sharded over the batch axes, as fsdp would.
        shape = (parameters // 4 // 16 * 16,)
        return {
            Kind.PARAMETERS: jax.ShapeDtypeStruct(shape, "float32", sharding=batch_sharding(mesh)),
            Kind.INPUTS: jax.ShapeDtypeStruct((7,), "int32", sharding=replicated(mesh)),
        }

    return Program(
        name=name,
        mesh=MeshConfig(),
        lower=lambda mesh: pytest.fail("nothing is lowered here"),
        held=held,
        model_flops=3e15,
        hardware_flops=4e15,
        tokens=1009,
        batch_size=64,
        num_microbatches=1,
        settings=lambda mesh: train_settings(
            mesh,
            mesh_flag="--mesh",
            part_flag="--pretrain.",
            remat_flag="--model.remat",
            remat=Remat.NONE,
            batch_size=64,
            num_microbatches=1,
        ),
    )


def outcome(total, *, reason="", devices=4):
    """Two thirds temporaries, one sixth parameters and optimizer state each."""
    shape = {"data": devices, "fsdp": 1, "expert": 1, "tensor": 1}
    if reason:
        return Outcome(mesh_shape=shape, memory=None, facts=None, reason=reason, seconds=3.0)
    by_kind = {
        Kind.PARAMETERS: total // 6,
        Kind.OPTIMIZER: total // 6,
        Kind.TEMPORARIES: total - 2 * (total // 6),
    }
    facts = Facts(
        xla_flops=1e12,
        moved_bytes=819e9,
        collectives=(Collective(kind="all-reduce", axes="data", count=2.0, sent_bytes=5e9),),
        kernels={"splash_mqa_fwd": 32.0},
        unknown_loops=0,
    )
    memory = Memory(by_kind=by_kind, total=total, limit=LIMIT, is_exact=True)
    return Outcome(mesh_shape=shape, memory=memory, facts=facts, reason="", seconds=3.0)


def load(name):
    """A target whose devices are this process's CPU devices."""
    chip, shape = parse_name(name)
    number = math.prod(shape)
    if number > 8:
        raise CannotCompileError(f"'{name}' has more devices than there are here")
    return Target(name=name, chip=chip, shape=shape, devices=tuple(jax.devices()[:number]))


JOBS = {
    "toy.train": Job(
        lambda config: None,
        {"small": small, "large": large},
        "Trains a toy.",
        programs=lambda config: (program(), program("search for sessions")),
    ),
    "toy.look": Job(lambda config: None, {"small": small}, "Compiles nothing."),
}


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.delenv("ALIGNAX_DEBUG", raising=False)

    def run_line(line, *outcomes):
        waiting = list(outcomes)
        code = main(
            line.split(), jobs=JOBS, compile_on=lambda one, target: waiting.pop(0), load=load
        )
        output = capsys.readouterr()
        return code, output.out, output.err

    return run_line


ONE = "toy.train --preset small --topology v5e:2x2 --program train"


def test_fits(run):
    code, out, _ = run(ONE, outcome(LIMIT))
    assert code == 0
    assert "train step on v5e:2x2 (data=4): FITS" in out
    assert "HBM per device: 15.75 of 15.75 GiB" in out
    assert "splash_mqa_fwd x 32" in out
    assert "all-reduce along data: 2 of 5.000 GB" in out


def test_does_not_fit_by_how_much_and_what_would_help(run):
    code, out, _ = run(ONE, outcome(LIMIT + GIB))
    assert code == 3
    assert "DOES NOT FIT" in out and "too much by 1.00 GiB" in out
    assert out.count("GiB less") == 3
    # Of two thirds temporaries, `full` keeps 0.3 and half the rows 0.5.
    assert out.index("--model.remat full") < out.index("--pretrain.num-microbatches 2")


def test_the_least_slice_is_told_and_none_is_compiled_twice(run):
    """The 13 GiB of parameters lie on one chip, but do not fit; 2 x 2 is known from before."""
    code, out, err = run(f"{ONE} --least", outcome(LIMIT), outcome(LIMIT + 1))
    assert code == 0
    assert "least slice of this family: v5e:2x2" in out
    assert err.splitlines() == [
        "v5e:1x1: compiling train step",
        "v5e:1x1: does not fit",
        "v5e:2x2: fits",
    ]


def test_what_the_search_passes_over_is_told():
    """31 GiB of parameters do not lie on one chip; here are no more than 8 devices."""
    told = []
    small = program(parameters=31 * GIB)
    least_slice(
        small,
        CHIPS["v5e"],
        compile_on=lambda one, target: outcome(LIMIT + 1),
        load=load,
        say=told.append,
    )
    assert told[0] == "v5e:1x1: passed over, 31.0 GiB lie there before it runs"
    assert told[-1].startswith("v5e:16x16: passed over, 'v5e:16x16' has more devices")


def test_cannot_be_compiled(run):
    code, out, _ = run(ONE, outcome(0, reason="NotImplementedError: no sort on this core"))
    assert code == 4
    assert "CANNOT BE COMPILED" in out and "no sort on this core" in out


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [((LIMIT, LIMIT), 0), ((LIMIT, LIMIT + 1), 3), ((LIMIT + 1, None), 4)],
)
def test_the_worst_of_several_counts_and_there_is_a_table(run, outcomes, expected):
    made = [outcome(total) if total else outcome(0, reason="why") for total in outcomes]
    code, out, _ = run("toy.train --preset small --topology v5e:2x2", *made)
    assert code == expected
    assert out.count("\n| ") == 3  # the head and two rows


def test_json_says_the_same(run):
    code, out, _ = run(f"{ONE} --json", outcome(LIMIT + GIB))
    (found,) = json.loads(out)
    assert code == 3
    assert found["verdict"] == "does not fit"
    assert found["memory"]["over"] == GIB
    assert found["mesh"] == {"data": 4, "fsdp": 1, "expert": 1, "tensor": 1}
    assert len(found["settings"]) == 3
    assert found["hardware_flops"] == 1e15
    assert found["bottleneck"] == "compute"


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("toy.train --preset small", 2, "no topology given"),
        ("toy.train --preset smal --topology v5e:2x2", 2, "small"),
        ("toy.look --preset small --topology v5e:2x2", 1, "does not tell what it compiles; these "),
        ("toy.train --preset small --topology v5e:2x2 --program tain", 1, "train step"),
        ("toy.train --preset small --topology v5:2x2", 1, "no chip 'v5'"),
        ("toy.train --preset small --topology v5e-4", 1, "is not FAMILY:SHAPE"),
        ("toy.train --preset small --topology v5p:2x2", 1, "has 2 dimensions, v5p has 3"),
        ("toy.train --preset small --topology v5e:4x4", 4, "more devices"),
    ],
)
def test_errors_name_the_remedy(run, line, code, words):
    found, _, err = run(line)
    assert found == code
    assert words in err and len(err.splitlines()) == 1


def test_settings_are_ranked_by_what_the_memory_is_taken_by():
    """With 90 % optimizer state, sharing it helps most; with 90 % temporaries, recomputing."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:4])
    settings = program().settings(mesh)

    def first(kind):
        by_kind = dict.fromkeys((Kind.OPTIMIZER, Kind.TEMPORARIES), 100) | {kind: 1800}
        memory = Memory(by_kind=by_kind, total=2000, limit=1000, is_exact=True)
        return best_settings(settings, memory)[0][0].flag

    assert first(Kind.OPTIMIZER) == "--mesh.fsdp 2 --mesh.data 2"
    assert first(Kind.TEMPORARIES) == "--model.remat full"


def test_the_least_slice_passes_over_what_cannot_hold_the_parameters():
    """31 GiB of parameters: 1 chip of 15.75 GiB cannot hold them, nor 2 x 2 with temporaries."""
    tried = []

    def compile_on(one, target):
        tried.append(target.name)
        return outcome(LIMIT + (1 if target.name == "v5e:2x2" else 0))

    found = least_slice(
        program(parameters=31 * GIB), CHIPS["v5e"], compile_on=compile_on, load=load
    )
    assert found is not None and found[0] == "v5e:2x4"
    assert tried == ["v5e:2x2", "v5e:2x4"]
    never = program(parameters=1000 * GIB)
    assert least_slice(never, CHIPS["v5e"], compile_on=compile_on, load=load) is None


@pytest.mark.parametrize(
    ("message", "total", "limit"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (22.50G) exceeds available HBM (15.75G).",
            22.5 * GIB + 600,
            LIMIT,
        ),
        ("RESOURCE_EXHAUSTED: Used 21.00G of 15.50G hbm. Exceeded.", 21 * GIB, 15.5 * GIB),
    ],
)
def test_what_the_compiler_says_of_memory(message, total, limit):
    memory = _refused(message, {Kind.PARAMETERS: 600}, LIMIT)
    assert (memory.total, memory.limit, memory.is_exact) == (total, limit, False)
    assert sum(memory.by_kind.values()) == total


def test_what_lies_beside_a_program_is_counted():
    memory = Memory(by_kind={Kind.CACHE: 7, Kind.CODE: 1}, total=8, limit=9, is_exact=True)
    found = with_beside(memory, {Kind.CACHE: 2, Kind.PARAMETERS: 3})
    assert found.by_kind == {Kind.CACHE: 9, Kind.CODE: 1, Kind.PARAMETERS: 3}
    assert (found.total, found.over) == (13, 4)


def test_the_least_slice_has_room_for_what_lies_beside():
    """31 GiB of parameters and 130 GiB beside them: no slice of fewer than 16 chips holds them."""
    one = program(parameters=31 * GIB)
    beside = program(parameters=130 * GIB).held
    tried = []

    def compile_on(_, target):
        tried.append(target.name)
        return outcome(LIMIT)

    with_more = dataclasses.replace(one, beside=beside)
    assert least_slice(with_more, CHIPS["v5e"], compile_on=compile_on, load=load) is None
    assert not tried
    assert least_slice(one, CHIPS["v5e"], compile_on=compile_on, load=load) is not None


@pytest.mark.parametrize(
    "message",
    ["INTERNAL: no", "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 1G of 1G"],
)
def test_other_failures_are_no_want_of_memory(message):
    assert _refused(message, {}, LIMIT) is None


def test_without_the_compiler_the_error_says_what_to_install(monkeypatch):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CannotCompileError, match=r"pip install '.\[tpu\]'"):
        load_target("v5e:2x2")
    with pytest.raises(CannotCompileError, match="jax-cuda12-plugin"):
        load_target("h100:8")
