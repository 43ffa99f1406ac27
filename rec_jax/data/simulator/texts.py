"""Titles and texts in made-up words: each topic has its own, and some are everybody's.

Dimension key: T topics, I items, W words of a text.
"""

import dataclasses
import itertools

import numpy as np

from core_jax.arrays import Int, Shaped

TOPIC_WORDS = 24
"""Words of a topic's own vocabulary."""
SHARED_WORDS = 60
"""Words that every topic uses."""
TITLE_WORDS = 4
"""Words of a title, of the topic's own."""
TEXT_WORDS = 12
"""Words of a text after the title."""
TOPIC_WORD_SHARE = 0.6
"""Probability that a word of a text is of the topic's own."""

_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = "aeiou"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """What is written of the items."""

    topic_names: np.ndarray
    """Str [T]."""
    titles: np.ndarray
    """Str [I]."""
    texts: np.ndarray
    """Str [I]; a text begins with the title."""


def make_texts(
    item_topic: Int[np.ndarray, " I"], num_topics: int, generator: np.random.Generator
) -> Texts:
    """Writes titles and texts.

    Every word is drawn from its vocabulary with a probability proportional to 1 / rank (Zipf). A
    title is `TITLE_WORDS` words of the topic; the text is the title and `TEXT_WORDS` more, each
    of the topic's own words with probability `TOPIC_WORD_SHARE` and a shared one otherwise. A
    topic is called by its most frequent word.

    Args:
      item_topic: topic of each item.
      num_topics: number of topics.
      generator: draws words and texts.

    Returns:
      Names, titles and texts.
    """
    words = _words(num_topics * TOPIC_WORDS + SHARED_WORDS, generator)
    own_TW = words[: num_topics * TOPIC_WORDS].reshape(num_topics, TOPIC_WORDS)
    shared = words[num_topics * TOPIC_WORDS :]
    num_items = len(item_topic)
    title_IW = _draw(own_TW[item_topic], TITLE_WORDS, generator)
    topical_IW = _draw(own_TW[item_topic], TEXT_WORDS, generator)
    shared_IW = _draw(np.broadcast_to(shared, (num_items, SHARED_WORDS)), TEXT_WORDS, generator)
    is_topical_IW = generator.random((num_items, TEXT_WORDS)) < TOPIC_WORD_SHARE
    body_IW = np.where(is_topical_IW, topical_IW, shared_IW)
    titles = [" ".join(row).capitalize() for row in title_IW]
    bodies = [" ".join(row) for row in body_IW]
    texts = [f"{title}. {body}" for title, body in zip(titles, bodies, strict=True)]
    return Texts(topic_names=own_TW[:, 0].copy(), titles=np.array(titles), texts=np.array(texts))


def _words(count: int, generator: np.random.Generator) -> np.ndarray:
    """Distinct words of two syllables and a final consonant, in random order."""
    syllables = [first + vowel for first in _CONSONANTS for vowel in _VOWELS]
    stems = np.array([first + second for first, second in itertools.product(syllables, repeat=2)])
    chosen = generator.choice(len(stems), size=count, replace=False)
    finals = generator.choice(list(_CONSONANTS), size=count)
    return np.strings.add(stems[chosen], finals)


def _draw(
    vocabulary: Shaped[np.ndarray, "I V"], count: int, generator: np.random.Generator
) -> Shaped[np.ndarray, "I W"]:
    """`count` words per row, with probability proportional to 1 / rank."""
    num_rows, num_words = vocabulary.shape
    weights = 1 / np.arange(1, num_words + 1)
    edges = np.cumsum(weights / weights.sum())
    ranks_IW = np.searchsorted(edges[:-1], generator.random((num_rows, count)), side="right")
    return np.take_along_axis(vocabulary, ranks_IW, axis=1)
