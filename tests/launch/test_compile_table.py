"""The table of presets: lines that exist, made once, written between its marks."""

import json

import pytest

from core_jax.errors import AlignaxError
from launch import cli
from launch.aot import table
from launch.aot.target import parse_name
from launch.jobs import JOBS

PAGE = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
FITS = {
    "program": "train step",
    "verdict": "fits",
    "mesh": {"data": 1, "fsdp": 16, "expert": 1, "tensor": 1},
    "memory": {
        "by_kind": {"parameters": 1 << 30, "activations and temporaries": 3 << 29},
        "total": 5 << 29,
        "limit": 16 << 30,
    },
    "roofline": {
        "compute": 0.3,
        "memory": 0.2,
        "links": {"fsdp": 0.1},
        "overlapped": 0.3,
        "mfu_overlapped": 0.6,
    },
    "bottleneck": "compute",
    "kernels": {"ragged-dot-none": 48.0},
    "compile_seconds": 100.0,
    "cpu_seconds": 60.0,
    "peak_memory": 2 << 30,
}


@pytest.mark.parametrize("line", table.LINES, ids=lambda line: line.key)
def test_every_line_names_one_program_and_a_target(line):
    request = cli.parse(JOBS, [line.job, "--preset", line.preset, *line.flags], program="test")
    assert request is not None and request.job.programs is not None
    programs = request.job.programs(request.config)
    assert sum(one.name.startswith(line.program) for one in programs) == 1
    assert parse_name(line.topology)


def test_lines_are_made_once_and_kept(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    made = []

    def compile_apart(line):
        made.append(line.key)
        return FITS

    monkeypatch.setattr(table, "_compile_apart", compile_apart)
    first = table.LINES[0].key
    assert table.update_table(page, [first], again=False) == len(table.LINES) - 1
    assert table.update_table(page, [first], again=False) == len(table.LINES) - 1
    assert made == [first]
    table.update_table(page, [first], again=True)
    assert made == [first, first]
    text = page.read_text()
    assert text.startswith(f"before\n{table.BEGIN}\n| ") and text.endswith(f"{table.END}\nafter\n")
    assert "old" not in text
    # Between 0.3 s and 0.3 + 0.2 + 0.1 s, where the model needs 0.18 s at the peak.
    assert "| 300 to 600 | 30% to 60% | compute | ragged-dot-none x 48 | 100 s (60 s CPU)" in text
    assert "| 2.5 of 16.0 | 1.00 | 0.00 | 1.50 |" in text
    assert list(json.loads(page.with_suffix(".json").read_text())) == [first]


def test_a_page_without_marks_is_an_error(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(AlignaxError, match="has not one line"):
        table.update_table(page, [], again=False)
