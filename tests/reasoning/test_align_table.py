"""The table of methods: means over seeds, differences by problem, what is printed and drawn."""

import csv

import numpy as np
import pytest

from core_jax.errors import DataError
from reasoning_jax.accuracy import IntervalMethod, bootstrap_interval
from reasoning_jax.align.methods import TITLES, Row
from reasoning_jax.align.table import (
    AGAINST,
    Resampling,
    measure,
    plot_accuracy,
    plot_curves,
    table_text,
    write_csv,
)

RESAMPLING = Resampling(seed=3, num_samples=97, confidence=0.9, method=IntervalMethod.PERCENTILE)
PROBLEMS = tuple(f"p{number}" for number in range(7))
ROWS = (Row.BASELINE, Row.DPO, Row.CDPO, Row.CDPO_SHUFFLED)
RNG = np.random.default_rng(0)
SHARES = {row: RNG.integers(0, 3, (2, len(PROBLEMS))) / 2 for row in ROWS}
"""[seeds, problems] of each row."""
SHARES[Row.BASELINE] = SHARES[Row.BASELINE][[0, 0]]


def solved(shares):
    return [dict(zip(PROBLEMS, row.tolist(), strict=True)) for row in shares]


def measured(rows=ROWS):
    return measure(
        {row: solved(SHARES[row]) for row in rows},
        weights={row: 0.375 if row is Row.CDPO else None for row in rows},
        tokens={row: 1009 * index for index, row in enumerate(rows)},
        resampling=RESAMPLING,
    )


def interval(values):
    return bootstrap_interval(
        values, seed=3, num_samples=97, confidence=0.9, method=IntervalMethod.PERCENTILE
    )


def test_accuracy_is_the_mean_over_problems_of_the_mean_over_seeds():
    for one in measured():
        shares = SHARES[one.row]
        assert one.accuracy == interval(shares.mean(axis=0))
        means = shares.mean(axis=1)
        assert (one.lowest, one.highest) == (means.min(), means.max())


def test_differences_are_paired_by_problem():
    """Against the rows of `AGAINST` that are there, never against itself."""
    for one in measured():
        assert set(one.differences) == {Row.DPO, Row.CDPO_SHUFFLED} - {one.row}
        for other, found in one.differences.items():
            assert found == interval((SHARES[one.row] - SHARES[other]).mean(axis=0))
    assert not any(one.differences for one in measured((Row.BASELINE, Row.CDPO)))


def test_problems_may_come_in_any_order():
    mixed = {
        row: [dict(reversed(list(run.items()))) if row is Row.CDPO else run for run in solved(two)]
        for row, two in SHARES.items()
    }
    found = measure(
        mixed, weights=dict.fromkeys(ROWS), tokens=dict.fromkeys(ROWS, 0), resampling=RESAMPLING
    )
    assert [one.accuracy for one in found] == [one.accuracy for one in measured()]
    assert [one.differences for one in found] == [one.differences for one in measured()]


def test_rows_over_other_problems_are_refused():
    shares = {row: solved(two) for row, two in SHARES.items()}
    del shares[Row.CDPO][1]["p3"]
    text = "row cdpo was tested on 6 problems that are not the 7 of the first row; test all rows"
    with pytest.raises(DataError, match=text):
        measure(
            shares,
            weights=dict.fromkeys(ROWS),
            tokens=dict.fromkeys(ROWS, 0),
            resampling=RESAMPLING,
        )


def test_the_text_has_a_line_per_row_and_a_column_per_comparison():
    text = table_text(measured(), title="sums", num_seeds=2)
    title, empty, head, rule, *rows = text.split("\n")
    assert title.startswith("sums") and "2" in title and not empty
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *rows)]
    assert {len(line) for line in cells} == {len(cells[0])} == {rule.count("---")}
    assert [line[0] for line in cells[1:]] == [TITLES[row] for row in ROWS]
    assert [name.startswith("minus ") for name in cells[0][4:]] == [True, True, False, False]
    by_name = dict(zip(cells[0], cells[3], strict=True))
    mean = SHARES[Row.CDPO].mean()
    assert by_name["accuracy"] == f"{mean:.4f}"
    assert cells[3][4].startswith(f"{mean - SHARES[Row.DPO].mean():+.4f} [")
    assert (by_name["mean rejected weight"], by_name["tokens"]) == ("0.375", "2,018")
    dpo = dict(zip(cells[0], cells[2], strict=True))
    assert cells[2][4] == dpo["mean rejected weight"] == ""


def test_the_file_has_every_number(tmp_path):
    path = tmp_path / "table.csv"
    write_csv(path, {"sums": measured(), "products": measured(ROWS[:2])})
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["test"], row["row"]) for row in rows] == [
        *(("sums", row.value) for row in ROWS),
        *(("products", row.value) for row in ROWS[:2]),
    ]
    for row, one in zip(rows, measured(), strict=False):
        own = (one.accuracy.mean, one.accuracy.low, one.accuracy.high, one.lowest, one.highest)
        names = ("accuracy", "low", "high", "lowest_seed", "highest_seed")
        assert tuple(float(row[name]) for name in names) == own
        assert row["rejected_weight"] == ("0.375" if one.row is Row.CDPO else "")
        assert int(row["tokens"]) == one.tokens
        for other in AGAINST:
            found = one.differences.get(other)
            cells = [row[f"minus_{other.value}{end}"] for end in ("", "_low", "_high")]
            expected = ["", "", ""] if found is None else [found.mean, found.low, found.high]
            assert cells == [str(number) for number in expected]


@pytest.mark.parametrize("num_rows", [1, 5])
def test_pictures_are_drawn(num_rows, tmp_path):
    """Of one row and of more than fit side by side."""
    rows = [row for row in Row if row is not Row.BASELINE][:num_rows]
    plot_curves(tmp_path / "curves.png", {row: [(2, -3.0, -5.0), (7, -2.0, -9.0)] for row in rows})
    plot_accuracy(tmp_path / "table.png", {"sums": measured(ROWS[:num_rows])})
    for name in ("curves.png", "table.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
