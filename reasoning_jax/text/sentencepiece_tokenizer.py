"""SentencePiece models: loading one, and training a small one for models made from scratch.

Dimension key: none.
"""

import dataclasses
import hashlib
import io
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

import sentencepiece

from core_jax.errors import ConfigError, DataError
from reasoning_jax.text.tokenizer import TokenPolicy, fingerprint_of

_NUM_SPECIALS, _NUM_BYTES = 4, 256
_SPACE = "\u2581"
"""How SentencePiece writes a space in its pieces."""


class SentencePieceTokenizer:
    """A SentencePiece model; see `Tokenizer` for its methods.

    Control pieces ("<s>", "</s>") in a text are read as such where `special` says so; text
    between them is tokenised by itself. User-defined pieces are SentencePiece's to read, and it
    reads them always.

    Args:
      path: the file `tokenizer.model`.
      policy: special tokens around a sequence; both by default.

    Raises:
      DataError: the file is absent or damaged, or has no end of sequence.
    """

    def __init__(self, path: str | os.PathLike[str], *, policy: TokenPolicy | None = None):
        path = pathlib.Path(path)
        if not path.is_file():
            raise DataError(f"there is no SentencePiece model '{path}'")
        content = path.read_bytes()
        try:
            self._inner = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise DataError(f"'{path}' is no SentencePiece model: {error}") from error
        if self._inner.eos_id() < 0:
            raise DataError(f"'{path}' has no end-of-sequence token; responses would never end")
        self.policy = policy or TokenPolicy(add_bos=self._inner.bos_id() >= 0, add_eos=True)
        self.vocab_size: int = self._inner.vocab_size()
        pieces = range(self.vocab_size)
        controls = [one for one in pieces if self._inner.is_control(one)]
        self._controls = {self._inner.id_to_piece(one): one for one in controls}
        names = sorted(self._controls, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names)))
        self.bos_id = self._inner.bos_id() if self._inner.bos_id() >= 0 else None
        self.eos_ids = (self._inner.eos_id(),)
        pad_id = self._inner.pad_id()
        self.pad_id: int = pad_id if pad_id >= 0 else self._inner.eos_id()
        self.fingerprint = fingerprint_of(
            hashlib.sha256(content).hexdigest(), dataclasses.asdict(self.policy)
        )

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """See `Tokenizer.encode`."""
        if not special or not self._controls:
            return self._inner.encode(text)
        ids: list[int] = []
        start = 0
        for match in self._pattern.finditer(text):
            ids += self._inner.encode(text[start : match.start()])
            ids.append(self._controls[match.group()])
            start = match.end()
        return ids + self._inner.encode(text[start:])

    def decode(self, token_ids: Sequence[int], *, keep_special: bool = False) -> str:
        """See `Tokenizer.decode`; ids past the vocabulary say nothing."""
        ids = [int(one) for one in token_ids if 0 <= one < self.vocab_size]
        if not keep_special:
            return self._inner.decode(ids)
        parts: list[str] = []
        start = 0
        for index, one in enumerate(ids):
            if self._inner.is_control(one):
                parts += [self._inner.decode(ids[start:index]), self._inner.id_to_piece(one)]
                start = index + 1
        return "".join([*parts, self._inner.decode(ids[start:])])


def least_vocabulary(lines: Iterable[str], pieces: Sequence[str] = ()) -> int:
    """The smallest `vocab_size` of `train_sentencepiece`: with it, a token is a character or piece.

    Args:
      lines: the corpus.
      pieces: as there.

    >>> least_vocabulary(["abba: b", "aa: b"], pieces=(": ",)) - 4 - 256 == len("ab") + 1
    True
    """
    characters: set[str] = set()
    for line in lines:
        for piece in sorted(pieces, key=len, reverse=True):
            line = line.replace(piece, "")
        characters |= set(line)
    return _NUM_SPECIALS + _NUM_BYTES + len(set(pieces)) + len(characters)


def train_sentencepiece(
    lines: Iterable[str],
    path: str | os.PathLike[str],
    *,
    vocab_size: int,
    pieces: Sequence[str] = (),
) -> SentencePieceTokenizer:
    """Trains a unigram model with byte fallback: the same lines give the same file.

    Digits are tokens of their own, spaces and line breaks are kept as they are, so that text
    survives the round trip (but for U+2581, with which SentencePiece writes spaces).

    Args:
      lines: the corpus, one text each.
      path: the file to write.
      vocab_size: tokens, specials, 256 bytes and `pieces` included.
      pieces: texts that are one token each wherever they stand. The trainer finds none that stands
        in one word of the corpus alone, however often that word comes.

    Returns:
      The tokenizer.

    Raises:
      ConfigError: a vocabulary that the corpus cannot fill, or smaller than bytes and specials.
    """
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(list(lines)),
            model_writer=written,
            vocab_size=vocab_size,
            user_defined_symbols=[piece.replace(" ", _SPACE) for piece in pieces],
            model_type="unigram",
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            character_coverage=1.0,
            num_threads=1,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ConfigError(
            f"a SentencePiece model of {vocab_size} tokens cannot be trained on this corpus "
            f"({error}); choose another vocab_size or give more text"
        ) from error
    pathlib.Path(path).write_bytes(written.getvalue())
    return SentencePieceTokenizer(path)
