"""Varied training examples: what may change, what never does, and that nothing is lost."""

import numpy as np
import pytest

from core_jax.errors import ConfigError
from rec_jax.data.augment import AugmentConfig, TargetOrder, augment

HISTORY, TARGET = 11, 7
ALL = AugmentConfig(target_order=TargetOrder.SHUFFLED, history_dropout=0.4, reversed_share=0.5)


def _example(num_history: int, num_targets: int) -> dict[str, np.ndarray]:
    """Items 0, 1, 2, ... in time order."""
    history = np.full(HISTORY, -1, np.int32)
    target = np.full(TARGET, -1, np.int32)
    history[HISTORY - num_history :] = np.arange(num_history)
    target[:num_targets] = num_history + np.arange(num_targets)
    return {"history": history, "target": target}


def _augmented(config: AugmentConfig, example: dict[str, np.ndarray], seed: int):
    return augment(config, example, np.random.default_rng(seed))


def _items(padded: np.ndarray) -> list[int]:
    return padded[padded >= 0].tolist()


@pytest.mark.parametrize("num_history, num_targets", [(HISTORY, TARGET), (5, 3), (1, 1), (0, 3)])
@pytest.mark.parametrize("seed", range(13))
def test_examples_keep_their_form(num_history, num_targets, seed):
    """Histories stay right-aligned, targets left-aligned and complete, no item is made up."""
    example = _example(num_history, num_targets)
    before = {name: array.copy() for name, array in example.items()}
    found, again = (_augmented(ALL, example, seed) for _ in range(2))
    for name, array in before.items():
        np.testing.assert_array_equal(example[name], array)
        np.testing.assert_array_equal(found[name], again[name])
        assert found[name].shape == array.shape and found[name].dtype == np.int32
    assert (np.diff((found["history"] >= 0).astype(int)) >= 0).all()
    assert (np.diff((found["target"] >= 0).astype(int)) <= 0).all()
    items = _items(found["history"]) + _items(found["target"])
    assert len(set(items)) == len(items)
    assert set(items) <= set(range(num_history + num_targets))
    assert len(_items(found["target"])) == num_targets
    assert bool(_items(found["history"])) == bool(num_history)


def test_nothing_is_varied_by_default():
    example = _example(5, 3)
    found = _augmented(AugmentConfig(), example, seed=0)
    for name in example:
        np.testing.assert_array_equal(found[name], example[name])


def test_an_example_read_backwards():
    """History 0..4 before session 5, 6, 7 becomes history 7..3 before session 2, 1, 0."""
    found = _augmented(AugmentConfig(reversed_share=1.0), _example(5, 3), seed=0)
    assert _items(found["history"]) == [7, 6, 5, 4, 3]
    assert _items(found["target"]) == [2, 1, 0]


def test_shares_are_those_asked_for():
    """Means over 4,000 draws, within 5 standard deviations of a binomial."""
    num_draws, example = 4000, _example(HISTORY, TARGET)
    config = AugmentConfig(history_dropout=0.3, reversed_share=0.2)
    kept = reversed_ = 0
    for seed in range(num_draws):
        found = _augmented(config, example, seed)
        kept += len(_items(found["history"]))
        reversed_ += found["target"][0] == TARGET - 1
    num_items = num_draws * HISTORY
    assert abs(kept - 0.7 * num_items) < 5 * (num_items * 0.3 * 0.7) ** 0.5
    assert abs(reversed_ - 0.2 * num_draws) < 5 * (num_draws * 0.2 * 0.8) ** 0.5


def test_items_that_stay_keep_their_order():
    config = AugmentConfig(history_dropout=0.5)
    left = {
        tuple(_items(_augmented(config, _example(7, 2), seed)["history"])) for seed in range(99)
    }
    assert len(left) > 30
    assert all(list(items) == sorted(items) for items in left)


def test_targets_are_shuffled_in_every_order():
    config = AugmentConfig(target_order=TargetOrder.SHUFFLED)
    orders = {
        tuple(_items(_augmented(config, _example(2, 3), seed)["target"])) for seed in range(99)
    }
    assert len(orders) == 6


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"history_dropout": 1.0}, r"augment.history_dropout is 1.0; it must be at least 0"),
        ({"history_dropout": -0.1}, r"augment.history_dropout is -0.1"),
        ({"reversed_share": 1.5}, r"augment.reversed_share is 1.5; it must lie between 0"),
    ],
)
def test_shares_outside_their_range(fields, message):
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**fields)
