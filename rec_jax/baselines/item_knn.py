"""Item-kNN: items that keep company with the user's most recent ones.

Company is counted on training positives, either in the whole profile of a user or within a
distance in the sequence, and normalised to a shrunk cosine:

    similarity(i, j) = count(i, j) / (sqrt(count(i) * count(j)) + shrinkage)
    score(i) = sum of similarity(i, j) over the last `window` items j of the history

Sarwar et al., 2001, "Item-based collaborative filtering recommendation algorithms", with the
shrinkage of Bell and Koren, 2007. Window, shrinkage and distance are chosen on validation.

Dimension key: P training positives, U users, H history items, M target items, I catalogue
items, K listed items.
"""

import dataclasses

import numpy as np
import scipy.sparse

from core_jax.arrays import Int
from core_jax.errors import ConfigError
from rec_jax.baselines.top_items import top_items
from rec_jax.ranking_metrics import PADDING, ndcg_at_k, recall_at_k


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemKnnConfig:
    """One item-kNN."""

    window: int
    """Number of most recent history items whose similarities are summed."""
    shrinkage: float = 0.0
    """Added to the cosine's denominator (interactions): distrust of rare items. 0: plain cosine."""
    distance: int = 0
    """Two items keep company when at most this many steps apart; 0: anywhere in the profile."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.window < 1 or self.shrinkage < 0 or self.distance < 0:
            raise ConfigError(
                f"item-kNN needs window >= 1, shrinkage >= 0 and distance >= 0, got {self}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemKnnGrid:
    """What the choice on validation tries: every combination."""

    windows: tuple[int, ...] = (1, 3, 5, 10, 20)
    """Numbers of most recent history items."""
    shrinkages: tuple[float, ...] = (0.0, 5.0, 10.0, 20.0, 50.0, 100.0)
    """Added to the cosine's denominator (interactions)."""
    distances: tuple[int, ...] = (0,)
    """Steps within which two items keep company; 0: anywhere in the profile."""
    k: int = 10
    """The choice maximises Recall@k (then NDCG@k) on validation."""

    def __post_init__(self) -> None:
        """Checks that there is something to try."""
        if not (self.windows and self.shrinkages and self.distances) or self.k < 1:
            raise ConfigError(
                f"the item-kNN grid needs a value in every field and k >= 1, got {self}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemKnnTrial:
    """Validation result of one point of the grid."""

    config: ItemKnnConfig
    recall: float
    ndcg: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemKnnChoice:
    """The best point of the grid, and every trial in the order tried."""

    k: int
    """Recall and NDCG are those of the first k items."""
    best: ItemKnnTrial
    trials: tuple[ItemKnnTrial, ...]


def company_counts(
    users: Int[np.ndarray, " P"],
    items: Int[np.ndarray, " P"],
    *,
    num_items: int,
    distance: int,
) -> scipy.sparse.csr_array:
    """Counts how often two different items keep company.

    Args:
      users: user of each training positive; a user's rows stand together, in time order.
      items: item of each training positive.
      num_items: size of the catalogue I.
      distance: 0 counts the users who have both items; d > 0 counts the pairs of positions of
        one user at most d steps apart.

    Returns:
      A symmetric sparse float32 matrix [I, I] with an empty diagonal.

    >>> users, items = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 2, 1])
    >>> company_counts(users, items, num_items=3, distance=0).toarray().tolist()
    [[0.0, 1.0, 1.0], [1.0, 0.0, 2.0], [1.0, 2.0, 0.0]]
    >>> company_counts(users, items, num_items=3, distance=1).toarray().tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 2.0], [0.0, 2.0, 0.0]]
    """
    if distance == 0:
        _, row_P = np.unique(users, return_inverse=True)
        profiles_UI = _sparse(row_P, items, (int(row_P.max(initial=-1)) + 1, num_items))
        profiles_UI.data[:] = 1.0  # an item consumed twice is in the profile once
        counts_II = (profiles_UI.T @ profiles_UI).tocsr()
    else:
        steps = range(1, min(distance, len(items) - 1) + 1)
        same = [users[:-step] == users[step:] for step in steps]
        first = [items[:-step][s] for step, s in zip(steps, same, strict=True)]
        second = [items[step:][s] for step, s in zip(steps, same, strict=True)]
        empty = np.zeros(0, np.int32)
        counts_II = _sparse(
            np.concatenate([empty, *first]),
            np.concatenate([empty, *second]),
            (num_items, num_items),
        )
        counts_II = (counts_II + counts_II.T).tocsr()
    counts_II.setdiag(0.0)
    counts_II.eliminate_zeros()
    return counts_II


def shrunk_cosine(
    counts: scipy.sparse.csr_array, item_counts: Int[np.ndarray, " I"], *, shrinkage: float
) -> scipy.sparse.csr_array:
    """Company counts as similarities: count / (sqrt(count_i * count_j) + shrinkage).

    Args:
      counts: symmetric company counts [I, I].
      item_counts: training positives per item.
      shrinkage: added to the denominator (interactions).

    Returns:
      A sparse float32 matrix of the same pattern.

    >>> counts = scipy.sparse.csr_array(np.array([[0.0, 3.0], [3.0, 0.0]]))
    >>> shrunk_cosine(counts, np.array([4, 9]), shrinkage=2.0)[0, 1].item() == 3 / (6 + 2)
    True
    """
    pairs = counts.tocoo()
    norm = np.sqrt(item_counts[pairs.row].astype(np.float64) * item_counts[pairs.col])
    similarity = (pairs.data / (norm + shrinkage)).astype(np.float32)
    return scipy.sparse.csr_array((similarity, (pairs.row, pairs.col)), shape=counts.shape)


def recommend_item_knn(
    similarity: scipy.sparse.csr_array,
    popularity: Int[np.ndarray, " I"],
    history: Int[np.ndarray, "U H"],
    *,
    window: int,
    k: int,
    users_at_once: int = 512,
) -> Int[np.ndarray, "U K"]:
    """Lists the k unseen items most similar to the last `window` items of each history.

    Args:
      similarity: sparse similarities [I, I].
      popularity: training interactions per item, for equal scores.
      history: the user's whole history, right-aligned and padded with -1: all of it is masked,
        its last `window` columns are summed.
      window: number of most recent items that vote.
      k: length of the lists.
      users_at_once: users whose whole score table is held in memory at a time.

    Returns:
      Int32 items, best first; -1 where fewer than k items are left.
    """
    lists = []
    for part in np.split(history, range(users_at_once, len(history), users_at_once)):
        voters_UI = _voters(part[:, -window:], len(popularity))
        scores_UI = scipy.sparse.csr_array(voters_UI @ similarity)
        lists.append(top_items(scores_UI.toarray(), part, popularity, k=k))
    return np.concatenate(lists)


def choose_item_knn(
    users: Int[np.ndarray, " P"],
    items: Int[np.ndarray, " P"],
    *,
    num_items: int,
    history: Int[np.ndarray, "U H"],
    targets: Int[np.ndarray, "U M"],
    grid: ItemKnnGrid,
) -> ItemKnnChoice:
    """Tries the grid on validation; the test split is no argument of this function.

    Args:
      users: user of each training positive; a user's rows stand together, in time order.
      items: item of each training positive.
      num_items: size of the catalogue.
      history: validation histories, right-aligned and padded with -1.
      targets: validation targets, padded with -1.
      grid: what to try and what to maximise.

    Returns:
      The best trial (of equal ones the first) and all trials.
    """
    popularity_I = np.bincount(items, minlength=num_items)
    trials = []
    for distance in grid.distances:
        counts_II = company_counts(users, items, num_items=num_items, distance=distance)
        for shrinkage in grid.shrinkages:
            similarity_II = shrunk_cosine(counts_II, popularity_I, shrinkage=shrinkage)
            for window in grid.windows:
                listed_UK = recommend_item_knn(
                    similarity_II, popularity_I, history, window=window, k=grid.k
                )
                config = ItemKnnConfig(window=window, shrinkage=shrinkage, distance=distance)
                trials.append(
                    ItemKnnTrial(
                        config=config,
                        recall=float(recall_at_k(listed_UK, targets, k=grid.k).mean()),
                        ndcg=float(ndcg_at_k(listed_UK, targets, k=grid.k).mean()),
                    )
                )
    best = max(trials, key=lambda trial: (trial.recall, trial.ndcg))
    return ItemKnnChoice(k=grid.k, best=best, trials=tuple(trials))


def _voters(recent_UH: np.ndarray, num_items: int) -> scipy.sparse.csr_array:
    """Recent items as a sparse 0/1 matrix [U, I]."""
    rows, columns = np.nonzero(recent_UH != PADDING)
    voters_UI = _sparse(rows, recent_UH[rows, columns], (len(recent_UH), num_items))
    voters_UI.data[:] = 1.0
    return voters_UI


def _sparse(
    rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]
) -> scipy.sparse.csr_array:
    """Counts of (row, column) pairs."""
    ones = np.ones(len(rows), np.float32)
    counts = scipy.sparse.csr_array((ones, (rows, columns)), shape=shape)
    counts.sum_duplicates()
    return counts
