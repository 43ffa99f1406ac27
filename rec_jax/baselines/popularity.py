"""The popularity baseline: everybody gets the most consumed items they have not had yet.

Dimension key: U users, H history items, I catalogue items, K listed items.
"""

import numpy as np

from core_jax.arrays import Int
from rec_jax.baselines.top_items import top_items


def recommend_popular(
    popularity: Int[np.ndarray, " I"],
    history: Int[np.ndarray, "U H"],
    *,
    k: int,
    users_at_once: int = 512,
) -> Int[np.ndarray, "U K"]:
    """Lists the k most popular items outside each user's history.

    Args:
      popularity: training interactions per item.
      history: all items that may not be recommended again, padded with -1.
      k: length of the lists.
      users_at_once: users whose whole score table is held in memory at a time.

    Returns:
      Int32 items, best first; -1 where fewer than k items are left.

    >>> recommend_popular(np.array([1, 5, 3]), np.array([[1], [-1]]), k=2).tolist()
    [[2, 0], [1, 2]]
    """
    lists = [
        top_items(
            np.broadcast_to(popularity.astype(np.float64), (len(part), len(popularity))),
            part,
            popularity,
            k=k,
        )
        for part in np.split(history, range(users_at_once, len(history), users_at_once))
    ]
    return np.concatenate(lists)
