"""Bytes as tokens: for tests and for models made from scratch.

Dimension key: none.
"""

import dataclasses
import re
from collections.abc import Sequence

from reasoning_jax.text.tokenizer import TokenPolicy, fingerprint_of

SPECIALS = ("<pad>", "<bos>", "<eos>")
"""Ids 256, 257 and 258."""

BOTH = TokenPolicy(add_bos=True, add_eos=True)
"""A beginning and an end of sequence."""

_PATTERN = re.compile("|".join(map(re.escape, SPECIALS)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteTokenizer:
    """UTF-8 bytes as ids 0 to 255, then padding, beginning and end of sequence.

    >>> tokenizer = ByteTokenizer()
    >>> tokenizer.encode("1+1")
    [49, 43, 49]
    >>> tokenizer.decode([49, 43, 49, 258])
    '1+1'
    """

    policy: TokenPolicy = BOTH
    """Special tokens around a sequence."""

    vocab_size = 256 + len(SPECIALS)
    pad_id = 256
    bos_id = 257
    eos_ids = (258,)

    @property
    def fingerprint(self) -> str:
        """Changes with the policy alone."""
        return fingerprint_of("bytes", dataclasses.asdict(self.policy))

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """See `Tokenizer.encode`."""
        if not special:
            return list(text.encode())
        ids: list[int] = []
        start = 0
        for match in _PATTERN.finditer(text):
            ids += text[start : match.start()].encode()
            ids.append(256 + SPECIALS.index(match.group()))
            start = match.end()
        return ids + list(text[start:].encode())

    def decode(self, token_ids: Sequence[int], *, keep_special: bool = False) -> str:
        """See `Tokenizer.decode`; ids past the vocabulary say nothing."""
        written = [name.encode() * keep_special for name in SPECIALS]
        parts = [
            bytes([token_id]) if token_id < 256 else b"".join(written[token_id - 256 :][:1])
            for token_id in token_ids
        ]
        return b"".join(parts).decode(errors="replace")
