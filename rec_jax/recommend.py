"""Recommendations in words: who asks, what they had, what was generated, what came true.

A request is a known user or a list of item ids; a sample is a request with its generated
sessions, as words, for the terminal and for the page.

Dimension key: H history items, K sessions, M session items.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from core_jax.arrays import Float, Int
from core_jax.errors import DataError
from rec_jax.catalogue import Catalogue, find_items, find_user
from rec_jax.data.sessions import SessionData, histories, targets
from rec_jax.ranking_metrics import PADDING

TITLE_WIDTH = 46
"""Columns for a title in the terminal; longer ones end in '...'."""
CATEGORY_WIDTH = 34
"""Columns for the categories of an item in the terminal."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Somebody to recommend for. NumPy arrays."""

    heading: str
    history: np.ndarray
    """Int32 [H]: items in time order, the last one the most recent; no padding."""
    targets: np.ndarray
    """Int32 [M]: the held-out next session, empty where there is none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemWords:
    """One item as people read it."""

    item_id: str
    title: str
    categories: tuple[str, ...]
    is_hit: bool = False
    """Whether the item is of the held-out session (for a target: whether it was generated)."""
    score: float | None = None
    """Log-probability that the item adds to its session, or None."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionWords:
    """One generated session."""

    score: float
    """Log-probability of the whole session, or what `score_name` says."""
    items: tuple[ItemWords, ...]
    score_name: str = "log-probability"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A request and what was generated for it."""

    heading: str
    num_history: int
    """Items of the whole history."""
    history: tuple[ItemWords, ...]
    """The most recent items of the history, in time order."""
    sessions: tuple[SessionWords, ...]
    """Best first."""
    targets: tuple[ItemWords, ...]
    """The held-out next session, empty where there is none."""


def request_of_user(data: SessionData, user_id: str) -> Request:
    """The request of a known user.

    A user with a test session is asked about at that moment: the history ends before it and the
    session is the truth to compare with. Any other user brings all positives and no truth.

    Args:
      data: the sessions.
      user_id: id as the log writes it.

    Returns:
      History and held-out session.

    Raises:
      DataError: an unknown user (near ids are named), or one without any positive item.
    """
    user = find_user(data.user_ids, user_id)
    own = np.flatnonzero(data.test.user == user)
    if len(own):
        last = own[-1:]
        history = histories(data, "test", 0, last)[0]
        truth = targets(data, "test", 0, last)[0]
    else:
        history = data.positives[data.user_starts[user] : data.user_starts[user + 1]]
        truth = np.zeros(0, np.int32)
    history = history[history != PADDING]
    if not len(history):
        raise DataError(
            f"user '{user_id}' has no positive item to start from; give another user, or a "
            "history of item ids"
        )
    return Request(heading=f"user {user_id}", history=history, targets=truth[truth != PADDING])


def request_of_history(catalogue: Catalogue, text: str) -> Request:
    """The request of somebody who is known by a history alone.

    Args:
      catalogue: the known items.
      text: item ids in time order, parted by commas.

    Returns:
      The history; there is no held-out session.

    Raises:
      DataError: no id at all, or an unknown one (near ids and titles are named).
    """
    item_ids = [part.strip() for part in text.split(",") if part.strip()]
    if not item_ids:
        raise DataError(
            f"the history '{text}' holds no item id; give ids parted by commas, as in "
            f"'{','.join(catalogue.item_ids[:2])}'"
        )
    return Request(
        heading=f"a history of {len(item_ids)} items",
        history=np.array(find_items(catalogue, item_ids), np.int32),
        targets=np.zeros(0, np.int32),
    )


def make_sample(
    catalogue: Catalogue,
    request: Request,
    *,
    sessions: Int[np.ndarray, "K M"],
    scores: Float[np.ndarray, " K"],
    item_scores: Float[np.ndarray, "K M"] | None = None,
    num_history: int = 10,
    num_sessions: int = 3,
    score_name: str = "log-probability",
) -> Sample:
    """Puts a request and its generated sessions into words.

    Args:
      catalogue: the words.
      request: who asked.
      sessions: generated items, best session first, padded with -1.
      scores: of each session, best first; sessions of score -inf do not exist.
      item_scores: the part of the score that each item adds, or None.
      num_history: most recent history items to keep.
      num_sessions: sessions to keep.
      score_name: what the scores are called.

    Returns:
      Words, with hits marked.
    """
    generated = []
    for row, score in list(enumerate(scores.tolist()))[:num_sessions]:
        if score == -np.inf:
            continue
        items = tuple(
            _words(
                catalogue,
                int(item),
                is_hit=bool(item in request.targets),
                score=None if item_scores is None else float(item_scores[row, place]),
            )
            for place, item in enumerate(sessions[row])
            if item != PADDING
        )
        generated.append(SessionWords(score=score, items=items, score_name=score_name))
    return Sample(
        heading=request.heading,
        num_history=len(request.history),
        history=tuple(_words(catalogue, int(item)) for item in request.history[-num_history:]),
        sessions=tuple(generated),
        targets=tuple(
            _words(catalogue, int(item), is_hit=bool(item in sessions[:num_sessions]))
            for item in request.targets
        ),
    )


def sample_text(sample: Sample) -> str:
    """A sample as readable text of at most about 100 columns."""
    num_shown = len(sample.history)
    shown = f"last {num_shown} of {sample.num_history}" if num_shown < sample.num_history else "all"
    lines = [
        f"Recommendations for {sample.heading}",
        "",
        f"History ({shown}, the most recent at the bottom)",
        *(_line(place, words) for place, words in enumerate(sample.history, start=1)),
    ]
    for number, session in enumerate(sample.sessions, start=1):
        lines += [
            "",
            f"Generated session {number} ({session.score_name} {session.score:.2f})",
            *(_line(place, words) for place, words in enumerate(session.items, start=1)),
        ]
    if not sample.sessions:
        lines += ["", "No session could be generated: the history holds every item it may use."]
    if sample.targets:
        lines += [
            "",
            "What came next in the log (held out)",
            *(_line(place, words) for place, words in enumerate(sample.targets, start=1)),
            "",
            "* generated and in the held-out session",
        ]
    return "\n".join(lines)


def sample_to_dict(sample: Sample) -> dict[str, Any]:
    """A sample as JSON-able data."""
    return dataclasses.asdict(sample)


def sample_from_dict(data: Mapping[str, Any]) -> Sample:
    """Rebuilds a sample from `sample_to_dict`'s data."""

    def words(rows: Any) -> tuple[ItemWords, ...]:
        return tuple(ItemWords(**{**row, "categories": tuple(row["categories"])}) for row in rows)

    return Sample(
        heading=data["heading"],
        num_history=data["num_history"],
        history=words(data["history"]),
        sessions=tuple(
            SessionWords(**{**session, "items": words(session["items"])})
            for session in data["sessions"]
        ),
        targets=words(data["targets"]),
    )


def _words(
    catalogue: Catalogue, item: int, *, is_hit: bool = False, score: float | None = None
) -> ItemWords:
    """The words of one dense item index."""
    return ItemWords(
        item_id=catalogue.item_ids[item],
        title=catalogue.titles[item],
        categories=catalogue.categories[item],
        is_hit=is_hit,
        score=score,
    )


def _line(place: int, words: ItemWords) -> str:
    """Place, hit mark, title, categories and score of one item."""
    mark = "*" if words.is_hit else " "
    title = _shortened(words.title, TITLE_WIDTH)
    categories = _shortened(", ".join(words.categories), CATEGORY_WIDTH)
    score = "" if words.score is None else f"{words.score:8.2f}"
    return (
        f"{place:4d} {mark} {title:<{TITLE_WIDTH}}  {categories:<{CATEGORY_WIDTH}}{score}".rstrip()
    )


def _shortened(text: str, width: int) -> str:
    """A text cut to a width, with dots where something is missing."""
    return text if len(text) <= width else text[: width - 3].rstrip() + "..."
