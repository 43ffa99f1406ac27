"""Packing: every token once, nothing cut, masks exact, and the loss that one per row would give."""

import jax
import numpy as np
import pytest

from core_jax.data.pipeline import make_pipeline
from core_jax.errors import ConfigError, DataError
from reasoning_jax.data.packing import (
    Layout,
    Overlong,
    PackedBatch,
    PackedRows,
    PackingConfig,
    TokenExample,
    best_fit,
    to_packed_batch,
)

ROW_LENGTH = 11


def make_examples(lengths):
    """Example i: tokens 100 i + 1, 100 i + 2, ...; the response is its last third at least."""
    return [
        TokenExample(
            token_ids=[100 * number + place for place in range(1, length + 1)],
            response_start=max(1, length - 1 - number % 3),
        )
        for number, length in enumerate(lengths)
    ]


def segments(rows):
    """(tokens, positions, targets, loss_mask) of every segment of every row."""
    for row in (rows[index] for index in range(len(rows))):
        for segment in range(1, row["segment_ids"].max() + 1):
            inside = row["segment_ids"] == segment
            yield [row[name][inside] for name in ("tokens", "positions", "targets", "loss_mask")]


def test_one_row_by_hand():
    """Prompt 7 8, response 9 2; then prompt 5, response 6."""
    examples = [
        TokenExample(token_ids=[7, 8, 9, 2], response_start=2),
        TokenExample(token_ids=[5, 6], response_start=1),
    ]
    rows = PackedRows(examples, PackingConfig(row_length=7), pad_id=3)
    assert {name: values.tolist() for name, values in rows[0].items()} == {
        "tokens": [7, 8, 9, 2, 5, 6, 3],
        "segment_ids": [1, 1, 1, 1, 2, 2, 0],
        "positions": [0, 1, 2, 3, 0, 1, 0],
        "targets": [8, 9, 2, 0, 6, 0, 0],
        "loss_mask": [False, True, True, False, True, False, False],
    }
    assert (len(rows), rows.report.num_loss_tokens, rows.report.efficiency) == (1, 3, 6 / 7)


@pytest.mark.parametrize("layout", list(Layout))
def test_every_example_stands_once_and_whole(layout):
    lengths = np.random.default_rng(0).integers(2, ROW_LENGTH + 1, 53).tolist()
    examples = make_examples(lengths)
    rows = PackedRows(examples, PackingConfig(row_length=ROW_LENGTH, layout=layout))
    seen = {}
    for tokens, positions, targets, loss_mask in segments(rows):
        seen[tuple(tokens.tolist())] = targets[loss_mask].tolist()
        assert positions.tolist() == list(range(len(tokens)))
        assert targets[:-1].tolist() == tokens[1:].tolist()
    assert seen == {
        tuple(example.token_ids): list(example.token_ids[example.response_start :])
        for example in examples
    }
    report = rows.report
    assert report.num_tokens == sum(lengths)
    assert report.num_loss_tokens == sum(map(len, seen.values()))
    filled = sum(int((rows[index]["segment_ids"] > 0).sum()) for index in range(len(rows)))
    assert report.efficiency == filled / (len(rows) * ROW_LENGTH)
    if layout is Layout.ONE_PER_ROW:
        assert len(rows) == len(examples)


def test_best_fit_needs_few_rows_and_is_deterministic():
    """Any two rows of best fit hold together more than one row could: else they were one."""
    lengths = np.random.default_rng(1).integers(1, 102, 997).tolist()
    rows = best_fit(lengths, 101)
    assert rows == best_fit(list(lengths), 101)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    held = sorted(sum(lengths[index] for index in row) for row in rows)
    assert held[-1] <= 101 and held[0] + held[1] > 101
    assert sum(lengths) / (101 * len(rows)) > 0.97
    for row in rows:
        assert [lengths[index] for index in row] == sorted(
            (lengths[index] for index in row), reverse=True
        )


def test_best_fit_takes_the_tightest_row_and_the_oldest_of_equals():
    """After 7, 6, 6 the rooms are 3, 4, 4: the 4s go to rows 1 and 2, the 3 to row 0."""
    assert best_fit([7, 6, 6, 3, 4, 4], 10) == [[0, 3], [1, 4], [2, 5]]


def test_overlong_examples_are_refused_or_counted():
    examples = make_examples([5, 13, 7, 12])
    with pytest.raises(DataError, match=r"example 1 has 13 tokens.* 11, as have 2 of 4 .*to 13"):
        PackedRows(examples, PackingConfig(row_length=ROW_LENGTH))
    config = PackingConfig(row_length=ROW_LENGTH, overlong=Overlong.DROP)
    report = PackedRows(examples, config).report
    assert (report.num_examples, report.num_overlong, report.num_tokens) == (2, 2, 12)
    with pytest.raises(DataError, match=r"no example to lay .* 1 were given"):
        PackedRows(examples[1:2], config)


@pytest.mark.parametrize("response_start", [-1, 0, 4, 5])
def test_prompt_and_response_are_needed(response_start):
    examples = [
        TokenExample(token_ids=[1, 2], response_start=1),
        TokenExample(token_ids=[1, 2, 3, 4], response_start=response_start),
    ]
    with pytest.raises(DataError, match=f"example 1 .* at {response_start}; expected 1 to 3"):
        PackedRows(examples, PackingConfig(row_length=ROW_LENGTH))


def test_a_row_holds_two_tokens_at_least():
    with pytest.raises(ConfigError, match=r"packing.row_length is 1; .* at least 2"):
        PackingConfig(row_length=1)


def test_rows_go_through_the_pipeline():
    rows = PackedRows(make_examples([9, 8, 10, 7, 11]), PackingConfig(row_length=ROW_LENGTH))
    assert len(rows) == 5
    pipeline = make_pipeline(rows, batch_size=3, seed=0, transform=to_packed_batch, shuffle=False)
    batches = [next(pipeline) for _ in range(5)]
    assert all(isinstance(batch, PackedBatch) for batch in batches)
    assert {leaf.shape for leaf in jax.tree.leaves(batches)} == {(3, ROW_LENGTH)}
    np.testing.assert_array_equal(batches[1].tokens[2], rows[0]["tokens"])
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(batches[0])]
    assert dtypes == [np.int32] * 4 + [np.bool_]


def test_rows_in_order_have_one_shape_and_end_in_padding():
    rows = PackedRows(make_examples([9, 8, 10, 7, 11]), PackingConfig(row_length=ROW_LENGTH))
    first, second = rows.in_order(3)
    assert first.tokens.shape == second.tokens.shape == (3, ROW_LENGTH)
    np.testing.assert_array_equal(second.tokens[1], rows[4]["tokens"])
    assert not second.loss_mask[2].any() and not second.segment_ids[2].any()
