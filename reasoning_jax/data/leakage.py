"""Leakage: test questions that stand, in whole or in large part, among the training questions.

Questions are compared by their shingles: the runs of `shingle_words` words after normalisation. A
question shorter than one shingle is one shingle by itself.

  containment = |A and B| / |A|         A: shingles of the test question
  Jaccard     = |A and B| / |A or B|    B: shingles of the training question

Broder, "On the resemblance and containment of documents", 1997. Shingles are compared by 64-bit
hashes, so that a pair counts by mistake with a chance of about 1e-19 per pair of shingles.

Dimension key: W words of all questions, S shingles, P pairs of equal shingles, Q questions.
"""

import dataclasses
import enum
import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from core_jax.errors import ConfigError, DataError
from reasoning_jax.data.problems import Problem

_WORD = re.compile(r"[^\W_]+")
_GROUPED_DIGITS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_FACTOR = 0x9E3779B97F4A7C15 | 1
"""Odd, so that no bit of a word's hash is lost when it is multiplied."""
_PAIRS_AT_ONCE = 1 << 21
_SHOWN_CHARACTERS = 60


class OverlapMeasure(enum.Enum):
    """How much two questions have in common."""

    CONTAINMENT = "containment"
    """Share of the test question's shingles."""
    JACCARD = "jaccard"
    """Share of the shingles of both."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeakageConfig:
    """What counts as leaked."""

    shingle_words: int = 8
    """Words per shingle; 8 finds reworded questions, 13 only long quotations."""
    measure: OverlapMeasure = OverlapMeasure.CONTAINMENT
    """How two questions are compared."""
    threshold: float = 0.5
    """A pair is reported from this share on."""

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.shingle_words < 1:
            raise ConfigError(f"leakage.shingle_words is {self.shingle_words}; give 8 to 13")
        if not 0 < self.threshold <= 1:
            raise ConfigError(
                f"leakage.threshold is {self.threshold}; give a share above 0, at most 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeakedPair:
    """A test question and the training question that it resembles."""

    test: Problem
    """Of the test split."""
    train: Problem
    """Of the training split."""
    overlap: float
    """Share of shingles, by the configuration's measure."""
    is_same_text: bool
    """Whether the two are equal after normalisation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeakageReport:
    """What was found."""

    config: LeakageConfig
    """How it was looked for."""
    num_train: int
    """Training questions."""
    num_test: int
    """Test questions."""
    pairs: tuple[LeakedPair, ...]
    """In the order of the test questions, for each the largest overlap first."""

    @property
    def num_leaked(self) -> int:
        """Test questions in at least one pair."""
        return len({pair.test.problem_id for pair in self.pairs})

    @property
    def num_same_text(self) -> int:
        """Test questions that stand word by word among the training questions."""
        return len({pair.test.problem_id for pair in self.pairs if pair.is_same_text})

    @property
    def share(self) -> float:
        """Share of the test questions that is leaked."""
        return self.num_leaked / self.num_test


def normalised_words(text: str) -> list[str]:
    """The words and numbers of a text in lower case, without punctuation.

    >>> normalised_words("He paid $1,200.50 for Bob's car")
    ['he', 'paid', '1200', '50', 'for', 'bob', 's', 'car']
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(_GROUPED_DIGITS.sub("", folded))


def find_leakage(
    train: Sequence[Problem], test: Sequence[Problem], config: LeakageConfig
) -> LeakageReport:
    """Compares every test question with every training question.

    Args:
      train: training problems.
      test: test problems, their ids distinct.
      config: what counts as leaked.

    Raises:
      DataError: no problem on one of the sides, a question without a word, or ids that repeat.
    """
    for name, problems in (("train", train), ("test", test)):
        if not problems:
            raise DataError(f"there is no {name} problem to compare; give both splits")
    if len({problem.problem_id for problem in test}) < len(test):
        raise DataError("test problems share an id; give every one its own")
    word_hashes: dict[str, int] = {}
    train_words = [_words(problem) for problem in train]
    test_words = [_words(problem) for problem in test]
    train_shingles, train_owners = _shingles(train_words, config.shingle_words, word_hashes)
    test_shingles, test_owners = _shingles(test_words, config.shingle_words, word_hashes)
    order_S = np.argsort(train_shingles, kind="stable")
    pairs, num_common = _common(
        train_shingles[order_S], train_owners[order_S], test_shingles, test_owners, len(train)
    )
    train_sizes = np.bincount(train_owners, minlength=len(train))
    test_sizes = np.bincount(test_owners, minlength=len(test))
    test_index, train_index = pairs // len(train), pairs % len(train)
    whole = test_sizes[test_index]
    if config.measure is OverlapMeasure.JACCARD:
        whole = whole + train_sizes[train_index] - num_common
    overlaps = num_common / whole
    found = [
        LeakedPair(
            test=test[t],
            train=train[r],
            overlap=float(overlap),
            is_same_text=test_words[t] == train_words[r],
        )
        for t, r, overlap in zip(test_index.tolist(), train_index.tolist(), overlaps, strict=True)
        if overlap >= config.threshold
    ]
    place = {problem.problem_id: index for index, problem in enumerate(test)}
    found.sort(key=lambda pair: (place[pair.test.problem_id], -pair.overlap))
    return LeakageReport(
        config=config, num_train=len(train), num_test=len(test), pairs=tuple(found)
    )


def leakage_text(report: LeakageReport, *, num_examples: int = 3) -> str:
    """Writes a report as a table with the pairs of the largest overlap as examples."""
    config = report.config
    lines = [
        f"shingles of {config.shingle_words} words, {config.measure.value} of at least "
        f"{config.threshold:g}",
        f"train questions        {report.num_train:>8,}",
        f"test questions         {report.num_test:>8,}",
        f"pairs found            {len(report.pairs):>8,}",
        f"test questions leaked  {report.num_leaked:>8,}  ({report.share:.2%})",
        f"of these, word by word {report.num_same_text:>8,}",
    ]
    for pair in sorted(report.pairs, key=lambda pair: (-pair.is_same_text, -pair.overlap))[
        :num_examples
    ]:
        lines.append(f"{pair.overlap:.2f}  test  {pair.test.problem_id}: {_shown(pair.test)}")
        lines.append(f"      train {pair.train.problem_id}: {_shown(pair.train)}")
    return "\n".join(lines)


def _shown(problem: Problem) -> str:
    text = " ".join(problem.question.split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def _words(problem: Problem) -> list[str]:
    """The question's words; where it has none but symbols, its characters."""
    words = normalised_words(problem.question) or list("".join(problem.question.split()))
    if not words:
        raise DataError(f"the question of problem '{problem.problem_id}' is empty; leave it out")
    return words


def _shingles(
    texts: Sequence[list[str]], size: int, word_hashes: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the distinct shingles of every text, and whose they are.

    A shingle's hash is sum_i hash(word_i) * factor**(size - i) modulo 2**64, the hash of a text
    shorter than one shingle that of all its words.
    """
    hashes_W = np.fromiter(
        (_word_hash(word, word_hashes) for text in texts for word in text), dtype=np.uint64
    )
    lengths_Q = np.array([len(text) for text in texts])
    starts_Q = np.concatenate([[0], np.cumsum(lengths_Q)[:-1]])
    counts_Q = np.maximum(lengths_Q - size + 1, 1)
    owners_S = np.repeat(np.arange(len(texts)), counts_Q)
    first_S = np.arange(len(owners_S)) - np.repeat(np.cumsum(counts_Q) - counts_Q, counts_Q)
    first_S = first_S + starts_Q[owners_S]
    ends_S = (starts_Q + lengths_Q)[owners_S]
    shingles_S = np.zeros(len(owners_S), dtype=np.uint64)
    for offset in range(size):
        place_S = first_S + offset
        is_inside_S = place_S < ends_S
        words_S = np.where(is_inside_S, hashes_W[np.minimum(place_S, len(hashes_W) - 1)], 0)
        grown_S = (shingles_S + words_S.astype(np.uint64)) * np.uint64(_FACTOR)
        shingles_S = np.where(is_inside_S, grown_S, shingles_S)
    order_S = np.lexsort((shingles_S, owners_S))
    shingles_S, owners_S = shingles_S[order_S], owners_S[order_S]
    is_new_S = np.ones(len(shingles_S), dtype=bool)
    is_new_S[1:] = (shingles_S[1:] != shingles_S[:-1]) | (owners_S[1:] != owners_S[:-1])
    return shingles_S[is_new_S], owners_S[is_new_S]


def _word_hash(word: str, known: dict[str, int]) -> int:
    """64 bits of a word's BLAKE2, the same in every process."""
    found = known.get(word)
    if found is None:
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        found = known[word] = int.from_bytes(digest, "little")
    return found


def _common(
    train_shingles: np.ndarray,
    train_owners: np.ndarray,
    test_shingles: np.ndarray,
    test_owners: np.ndarray,
    num_train: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs, as test index * num_train + train index, and their numbers of common shingles.

    The training side is sorted by shingle. Test questions are taken in blocks, so that phrases
    that everyone uses do not fill the memory with pairs.
    """
    left_S = np.searchsorted(train_shingles, test_shingles, side="left")
    right_S = np.searchsorted(train_shingles, test_shingles, side="right")
    num_pairs_S = right_S - left_S
    blocks_S = np.cumsum(num_pairs_S) // _PAIRS_AT_ONCE
    block_of_question_Q = np.zeros(test_owners[-1] + 1, dtype=np.int64)
    block_of_question_Q[test_owners[::-1]] = blocks_S[::-1]  # a question's first shingle decides
    blocks_S = block_of_question_Q[test_owners]
    found = []
    for block in np.unique(blocks_S):
        chosen_S = np.flatnonzero((blocks_S == block) & (num_pairs_S > 0))
        counts_S = num_pairs_S[chosen_S]
        step_P = np.arange(counts_S.sum()) - np.repeat(np.cumsum(counts_S) - counts_S, counts_S)
        train_P = train_owners[np.repeat(left_S[chosen_S], counts_S) + step_P]
        test_P = np.repeat(test_owners[chosen_S], counts_S)
        found.append(np.unique(test_P * num_train + train_P, return_counts=True))
    return np.concatenate([keys for keys, _ in found]), np.concatenate([n for _, n in found])
