"""The catalogue in words: id, title and categories of every dense item index.

Dimension key: I catalogue items, C categories.
"""

import dataclasses
import difflib
from collections.abc import Sequence

import numpy as np
import polars as pl

from core_jax.arrays import Bool
from core_jax.errors import DataError

NUM_HINTS = 3
"""How many near ids or titles an error names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Words for items; position i describes dense item i."""

    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]


def make_catalogue(item_ids: Sequence[str], items: pl.DataFrame) -> Catalogue:
    """Orders an item table like the dense item indices.

    Args:
      item_ids: id of every dense item index.
      items: item table with the columns item_id, title and categories (list of strings).

    Returns:
      The words of every item; an absent title is the item's id.

    Raises:
      DataError: an id is not in the table.
    """
    columns = [items[name].to_list() for name in ("item_id", "title", "categories")]
    rows = {item_id: words for item_id, *words in zip(*columns, strict=True)}
    unknown = [item_id for item_id in item_ids if item_id not in rows]
    if unknown:
        raise DataError(
            f"{len(unknown)} of {len(item_ids)} items are not in the item table of {len(rows)} "
            f"rows, the first is '{unknown[0]}'; give sessions and titles of the same log"
        )
    return Catalogue(
        item_ids=tuple(item_ids),
        titles=tuple(rows[item_id][0] or item_id for item_id in item_ids),
        categories=tuple(tuple(rows[item_id][1] or ()) for item_id in item_ids),
    )


def category_matrix(catalogue: Catalogue) -> Bool[np.ndarray, "I C"]:
    """True where an item belongs to a category; categories in alphabetical order."""
    names = sorted({name for names in catalogue.categories for name in names})
    column = {name: position for position, name in enumerate(names)}
    belongs_IC = np.zeros((len(catalogue.item_ids), len(names)), bool)
    for item, categories in enumerate(catalogue.categories):
        belongs_IC[item, [column[name] for name in categories]] = True
    return belongs_IC


def find_items(catalogue: Catalogue, item_ids: Sequence[str]) -> list[int]:
    """Dense indices of named items.

    Args:
      catalogue: the known items.
      item_ids: ids as the log writes them.

    Returns:
      One index per id, in the order given.

    Raises:
      DataError: an id is unknown; the message names near ids and the ids of near titles.
    """
    index = {item_id: position for position, item_id in enumerate(catalogue.item_ids)}
    for item_id in item_ids:
        if item_id not in index:
            raise DataError(
                f"item '{item_id}' is not in the catalogue of {len(index):,} items. "
                f"{_near_items(catalogue, item_id)}"
            )
    return [index[item_id] for item_id in item_ids]


def find_user(user_ids: Sequence[str], user_id: str) -> int:
    """Dense index of a user.

    Args:
      user_ids: id of every dense user index.
      user_id: an id as the log writes it.

    Returns:
      The position of the id.

    Raises:
      DataError: the id is unknown; the message names near ids.

    >>> find_user(["7", "11"], "11")
    1
    """
    if user_id in user_ids:
        return list(user_ids).index(user_id)
    near = difflib.get_close_matches(user_id, user_ids, n=NUM_HINTS, cutoff=0.0)
    raise DataError(
        f"user '{user_id}' is not among the {len(user_ids):,} users of this run (a user with too "
        f"few positive items is left out). Near ids: {', '.join(near)}. "
        "Give one of the run's users, or a history of item ids instead"
    )


def _near_items(catalogue: Catalogue, text: str) -> str:
    """Names the items whose title or id is nearest to a text."""
    wanted = text.casefold().strip()
    folded = [title.casefold() for title in catalogue.titles]
    near = [item for item, title in enumerate(folded) if wanted and wanted in title]
    if not near:
        close = difflib.get_close_matches(wanted, folded, n=NUM_HINTS, cutoff=0.6)
        near = [folded.index(title) for title in close]
    if not near:
        close = difflib.get_close_matches(text, catalogue.item_ids, n=NUM_HINTS, cutoff=0.0)
        near = [catalogue.item_ids.index(item_id) for item_id in close]
    hints = [f"'{catalogue.item_ids[i]}' ({catalogue.titles[i]})" for i in near[:NUM_HINTS]]
    return f"Did you mean {' or '.join(hints)}?" if hints else "The catalogue is empty."
