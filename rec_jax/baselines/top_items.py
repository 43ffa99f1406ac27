"""Best unseen items of a score table: what every non-generative baseline ends with.

Dimension key: U users, H history items, I catalogue items, K listed items.
"""

import jax
import jax.numpy as jnp
import numpy as np

from core_jax.arrays import Float, Int
from rec_jax.ranking_metrics import PADDING


def top_items(
    scores: Float[np.ndarray, "U I"],
    history: Int[np.ndarray, "U H"],
    popularity: Int[np.ndarray, " I"],
    *,
    k: int,
) -> Int[np.ndarray, "U K"]:
    """The k best-scored items that are not in the history, best first.

    Equal scores go to the more popular item, then to the lower index, so that a list never
    depends on the order in which a sort visits ties.

    Args:
      scores: one finite score per user and item.
      history: all items that may not be recommended again, padded with -1.
      popularity: training interactions per item, for ties.
      k: length of the lists.

    Returns:
      Int32 items; -1 where fewer than k items are left.

    >>> top_items(np.array([[0.5, 0.5, 2.0, 1.0]]), np.array([[2]]), np.array([1, 4, 9, 0]), k=4)
    array([[ 3,  1,  0, -1]], dtype=int32)
    """
    num_users, num_items = scores.shape
    open_UI = np.array(scores, np.float32)
    rows, columns = np.nonzero(history != PADDING)
    open_UI[rows, history[rows, columns]] = -np.inf
    # top_k gives ties to the lower column, so the columns stand in order of popularity.
    by_popularity_I = np.argsort(-popularity, kind="stable").astype(np.int32)
    best_UK, column_UK = jax.lax.top_k(jnp.asarray(open_UI[:, by_popularity_I]), min(k, num_items))
    items_UK = np.full((num_users, k), PADDING, np.int32)
    items_UK[:, : min(k, num_items)] = np.where(
        np.isneginf(np.asarray(best_UK)), PADDING, by_popularity_I[np.asarray(column_UK)]
    )
    return items_UK
