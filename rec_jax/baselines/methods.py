"""The baselines' lists for one split of one data set, tuned where they have something to tune.

Dimension key: P training positives, U examples of the split, K listed items.
"""

import dataclasses

import numpy as np

from core_jax.arrays import Int
from rec_jax.baselines.item_knn import (
    ItemKnnChoice,
    ItemKnnGrid,
    choose_item_knn,
    company_counts,
    recommend_item_knn,
    shrunk_cosine,
)
from rec_jax.baselines.popularity import recommend_popular
from rec_jax.data.sessions import SessionData, histories, targets

POPULARITY = "popularity"
"""Name of the popularity baseline in every table."""
ITEM_KNN = "item-kNN"
"""Name of the item-kNN whose company is the whole profile."""
ITEM_KNN_NEAR = "item-kNN, near"
"""Name of the item-kNN whose company is within a few steps of the sequence."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselinesConfig:
    """Which baselines are made and what is tried for each on validation."""

    item_knn: ItemKnnGrid = dataclasses.field(default_factory=ItemKnnGrid)
    """Item-kNN on whole profiles: the classic one."""
    item_knn_near: ItemKnnGrid = dataclasses.field(
        default_factory=lambda: ItemKnnGrid(distances=(5, 10, 20, 50))
    )
    """Item-kNN on company within a few steps: it sees the order of the log, as OneRec does."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineLists:
    """One baseline's recommendations."""

    name: str
    items: np.ndarray
    """Int32 [U, K]: best first, padded with -1."""
    choice: ItemKnnChoice | None
    """What was tried on validation, or None where there is nothing to choose."""


def training_sequences(
    data: SessionData,
) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, " P"]]:
    """Users and items of all training positives, by user in time order.

    Args:
      data: the sessions.

    Returns:
      User index and item index of every positive before its user's validation part.
    """
    lengths_U = np.diff(data.user_starts)
    user_of_positive = np.repeat(np.arange(len(lengths_U), dtype=np.int32), lengths_U)
    is_training = np.arange(len(data.positives)) < data.train_ends[user_of_positive]
    return user_of_positive[is_training], data.positives[is_training]


def baseline_lists(
    data: SessionData, split: str, config: BaselinesConfig, *, k: int
) -> tuple[BaselineLists, ...]:
    """Lists of every baseline; the whole history of an example is left out of its list.

    Similarities and counts are of training positives only; what comes later is input to
    `window`, never to a count. Hyper-parameters are chosen on "valid" whatever `split` is.

    Args:
      data: the sessions.
      split: the split whose examples get lists.
      config: what is tried.
      k: length of the lists.

    Returns:
      Popularity, item-kNN, and item-kNN on near company.

    Raises:
      ConfigError: an unknown split.
    """
    history_UH = histories(data, split, 0)
    num_items, popularity_I = len(data.item_ids), data.train_item_counts
    users_P, items_P = training_sequences(data)
    lists = [
        BaselineLists(
            name=POPULARITY, items=recommend_popular(popularity_I, history_UH, k=k), choice=None
        )
    ]
    for name, grid in ((ITEM_KNN, config.item_knn), (ITEM_KNN_NEAR, config.item_knn_near)):
        choice = choose_item_knn(
            users_P,
            items_P,
            num_items=num_items,
            history=histories(data, "valid", 0),
            targets=targets(data, "valid", 0),
            grid=grid,
        )
        best = choice.best.config
        counts_II = company_counts(users_P, items_P, num_items=num_items, distance=best.distance)
        items_UK = recommend_item_knn(
            shrunk_cosine(counts_II, popularity_I, shrinkage=best.shrinkage),
            popularity_I,
            history_UH,
            window=best.window,
            k=k,
        )
        lists.append(BaselineLists(name=name, items=items_UK, choice=choice))
    return tuple(lists)
