"""What every tokenizer here can do, and the policy for its special tokens.

Dimension key: none.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenPolicy:
    """Which special tokens stand around a sequence. Stored with whatever is tokenised."""

    add_bos: bool
    """Whether a sequence begins with the beginning-of-sequence token."""
    add_eos: bool
    """Whether a response that is trained on ends with the end-of-sequence token."""


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back. Neither adds special tokens: the policy's user does."""

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""
        ...

    @property
    def bos_id(self) -> int | None:
        """Beginning of sequence, if there is such a token."""
        ...

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a response; the first is the one that training appends."""
        ...

    @property
    def pad_id(self) -> int:
        """What fills rows up; masked wherever it is used."""
        ...

    @property
    def policy(self) -> TokenPolicy:
        """Special tokens around a sequence."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes with vocabulary, merges, special tokens and policy."""
        ...

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
          text: any text.
          special: whether special tokens written out in the text are read as such, which is for
            rendered chat templates. Otherwise they are letters like others.
        """
        ...

    def decode(self, token_ids: Sequence[int], *, keep_special: bool = False) -> str:
        """Text of token ids; ids that end inside a character give a replacement character."""
        ...


def fingerprint_of(*parts: Any) -> str:
    """SHA-256 of JSON-able parts, in hexadecimal."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
