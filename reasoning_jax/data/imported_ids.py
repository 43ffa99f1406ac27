"""Token ids that another engine wrote beside its texts: kept where they say these texts.

Engines differ in what stands around the texts. A beginning of sequence that the prompt does not
write, an end of sequence after the response, and a character that was cut off at the end are all
allowed; special tokens may be written out in the prompt (chat templates). Where ids go on past the
response, as after a stop string that the engine took from the text only, they are cut there.

Dimension key: none.
"""

import dataclasses
from collections.abc import Sequence

from reasoning_jax.text.tokenizer import Tokenizer

_CUT_OFF = "\ufffd"
"""What stands for a character whose last bytes are missing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckedIds:
    """Ids that say their texts."""

    token_ids: list[int]
    """Prompt and response."""
    response_start: int
    """Index of the response's first token."""
    is_cut: bool
    """Whether ids past the response's text were left out."""


def check_ids(
    tokenizer: Tokenizer, token_ids: Sequence[int], start: int, prompt: str, response: str
) -> CheckedIds | None:
    """Compares ids with the texts that they are to say.

    Args:
      tokenizer: which must have all of the ids.
      token_ids: prompt and response.
      start: index of the response's first token. That token may begin in the prompt, as in
        `encode_pair`; the ones before it may not reach into the response.
      prompt: the prompt's text.
      response: the response's text.

    Returns:
      The ids, or None where they say something else.
    """
    ids = list(token_ids)
    for keep_special in (False, True):
        for first in (0, 1) if ids[:1] == [tokenizer.bos_id] else (0,):
            texts = _Texts(tokenizer, ids, first, keep_special)
            if not texts.begins_with(prompt, start):
                continue
            if (stop := _end(texts, start, prompt + response, tokenizer.eos_ids)) is None:
                continue
            is_cut = stop < len(ids)
            return CheckedIds(token_ids=ids[:stop], response_start=start, is_cut=is_cut)
    return None


@dataclasses.dataclass(frozen=True)
class _Texts:
    """One way to read the ids."""

    tokenizer: Tokenizer
    ids: list[int]
    first: int
    keep_special: bool

    def until(self, stop: int) -> str:
        """The text of the first ids."""
        return self.tokenizer.decode(self.ids[self.first : stop], keep_special=self.keep_special)

    def begins_with(self, prompt: str, start: int) -> bool:
        """Whether the response starts at `start`: the prompt's text ends there or a token later."""
        before = self.until(start).rstrip(_CUT_OFF)
        if not prompt.startswith(before):
            return False
        return before == prompt or len(self.until(start + 1).rstrip(_CUT_OFF)) > len(prompt)


def _end(texts: _Texts, start: int, text: str, eos_ids: Sequence[int]) -> int | None:
    """How many ids say the text, an end of sequence included; None where no number does."""
    ids = texts.ids
    stop = len(ids)
    if stop > start and ids[-1] in eos_ids:
        stop -= 1
    whole = texts.until(stop)
    if whole.rstrip(_CUT_OFF) == text.rstrip(_CUT_OFF):
        return len(ids)
    if not whole.startswith(text):
        return None
    low, high = start, stop  # the shortest beginning that says the text; longer ones do as well
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if texts.until(middle).startswith(text) else (middle + 1, high)
    return low if texts.until(low) == text else None
