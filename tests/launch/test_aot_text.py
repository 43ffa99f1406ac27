"""What is read off a compiled program's text, on a small one that is written out.

It runs 5 layers in a loop on 8 devices, mesh data=4 x fsdp=2: in each an all-gather of 2 devices
along fsdp, whose result stays on the chip, the layer's slice of the weights, and a kernel; after
it an all-reduce of 4 devices along data and a permutation along fsdp.
"""

import pathlib

import pytest

from launch.aot.collectives import collectives, kernels
from launch.aot.hlo import parse
from launch.aot.traffic import hbm_bytes

TEXT = (pathlib.Path(__file__).parent / "hlo_sample.txt").read_text(encoding="utf-8")
MESH = {"data": 4, "fsdp": 2, "expert": 1, "tensor": 1}
ARRAY = 16 * 64 * 4


def test_computations_run_as_often_as_their_loop():
    module = parse(TEXT)
    assert module.entry == "main"
    assert module.unknown_loops == 0
    runs = {"main": 1, "body": 5, "take_layer": 5, "cond": 5, "add": 1}
    assert {name: module.runs[name] for name in runs} == runs


def test_a_loop_that_does_not_tell_its_length_counts_once_and_is_counted():
    module = parse(TEXT.replace("direction=LT", "direction=NE"))
    assert (module.unknown_loops, module.runs["body"]) == (1, 1)
    assert parse(TEXT.replace("direction=LT", "direction=NE"), 11).runs["body"] == 11
    assert parse(TEXT, 11).runs["body"] == 5


def test_a_known_trip_count_is_believed():
    told = TEXT.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert parse(told).runs["body"] == 7


def test_collectives_by_kind_and_axis():
    """The gathered array has 2 x ARRAY bytes, of which half is sent; an all-reduce of 4 sends
    twice 3/4."""
    found = {(one.kind, one.axes): one for one in collectives(parse(TEXT), MESH)}
    assert set(found) == {
        ("all-gather", "fsdp"),
        ("all-reduce", "data"),
        ("collective-permute", "fsdp"),
    }
    gathers = found["all-gather", "fsdp"]
    assert (gathers.count, gathers.sent_bytes) == (5, 5 * ARRAY)
    assert found["all-reduce", "data"].sent_bytes == pytest.approx(1.5 * ARRAY)
    assert found["collective-permute", "fsdp"].sent_bytes == ARRAY


def test_a_collective_that_is_written_twice_counts_once():
    """Its channel is the same."""
    line = next(line for line in TEXT.splitlines() if "all-reduce(" in line)
    twice = TEXT.replace(line, f"{line}\n{line.replace('%grads =', '%again =')}")
    assert collectives(parse(twice), MESH) == collectives(parse(TEXT), MESH)


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups=[1,8]<=[8]", "data+fsdp"),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", "data"),
        ("replica_groups={}", "data+fsdp"),
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", "fsdp"),
    ],
)
def test_groups_of_devices_are_named_by_the_axes(groups, axes):
    text = TEXT.replace("replica_groups={{0,2,4,6},{1,3,5,7}}", groups)
    reduces = [one for one in collectives(parse(text), MESH) if one.kind == "all-reduce"]
    assert [one.axes for one in reduces] == [axes]


def test_kernels_have_names_and_counts():
    assert kernels(parse(TEXT)) == {"kernel": 5}


def test_traffic_counts_slices_of_stacks_and_nothing_on_the_chip():
    """Per layer: the slice is read and written, the all-gather reads its input, the kernel reads
    the slice and writes its result (what was gathered is on the chip), the counter is read and
    written; then the all-reduce reads and writes, the permutation reads and writes two."""
    per_layer = 2 * ARRAY + ARRAY + 2 * ARRAY
    counters = 5 * 4 * 4
    after = 2 * ARRAY + 3 * ARRAY
    assert hbm_bytes(parse(TEXT)) == pytest.approx(5 * per_layer + after, abs=2 * counters)


def test_a_scatter_into_a_cache_moves_what_is_scattered():
    """Reads 4 places and 4 rows of 64 numbers, writes the rows; the 512 others stay."""
    text = """HloModule jit_step, is_scheduled=true

%put (cache: f32[512,64], at: s32[4,1], new: f32[4,64]) -> f32[512,64] {
  %cache = f32[512,64]{1,0} parameter(0)
  %at = s32[4,1]{1,0} parameter(1)
  %new = f32[4,64]{1,0} parameter(2)
  ROOT %scatter = f32[512,64]{1,0} scatter(%cache, %at, %new), update_window_dims={1}
}

ENTRY %main (c: f32[512,64], a: s32[4,1], n: f32[4,64]) -> f32[512,64] {
  %c = f32[512,64]{1,0} parameter(0)
  %a = s32[4,1]{1,0} parameter(1)
  %n = f32[4,64]{1,0} parameter(2)
  ROOT %out = f32[512,64]{1,0} fusion(%c, %a, %n), kind=kInput, calls=%put
}
"""
    moved = 4 * 4 + 2 * 4 * 64 * 4
    assert hbm_bytes(parse(text)) == moved
    plain = text.replace("fusion(%c, %a, %n), kind=kInput, calls=%put", "scatter(%c, %a, %n)")
    assert hbm_bytes(parse(plain)) == moved


def test_a_collective_beside_a_fusion_is_not_moved_by_the_fusion():
    """The fusion reads and writes one array; the buffer of two that is being filled it hands on."""
    one, two = "f32[16,64]{1,0:T(8,128)}", "f32[32,64]{1,0:T(8,128)}"
    beside = f"""%beside (a: f32[16,64], buffer: f32[32,64]) -> (f32[16,64]) {{
  %a = {one} parameter(0)
  %buffer = {two} parameter(1)
  %filled = {two} all-gather(%a), channel_id=3, replica_groups=[4,2]<=[8], dimensions={{0}}
  %twice = {one} add(%a, %a)
  ROOT %all = ({one}, {two}, {two}) tuple(%twice, %buffer, %filled)
}}

ENTRY"""
    call = f"""  %half = {two} bitcast(%q)
  %both = ({one}, {two}, {two}) fusion(%last, %half), kind=kOutput, calls=%beside
  %grads ="""
    text = TEXT.replace("ENTRY", beside).replace("  %grads =", call)
    assert hbm_bytes(parse(text)) - hbm_bytes(parse(TEXT)) == 2 * ARRAY
