"""Prompts and responses as tokens of one sequence, with the boundary found.

A prompt and a response are tokenised as one text: "Answer: " and "She" may share the token " She".
The response starts at the first token in which the sequence differs from the prompt tokenised
alone. So the tokens before it are always a prefix of what the model is given when it samples, and
a token that reaches over the boundary belongs to the response, which is never trained on from its
middle. Where the response's first letters change how earlier letters of the prompt are cut, these
tokens of the prompt belong to the response too; text is never lost: the tokens before the start say
a prefix of the prompt, and all tokens say prompt and response.

Dimension key: none.
"""

import dataclasses
from collections.abc import Sequence

from core_jax.errors import DataError
from reasoning_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointTokens:
    """A prompt and a response as one sequence."""

    token_ids: list[int]
    """All tokens, special ones included."""
    response_start: int
    """Index of the response's first token."""


def encode_prompt(tokenizer: Tokenizer, prompt: str, *, special: bool = False) -> list[int]:
    """Token ids of a prompt alone, with a beginning of sequence if the policy says so.

    Args:
      tokenizer: the tokenizer.
      prompt: the text; a rendered chat template that writes the beginning itself gets no other.
      special: whether special tokens in the text are read as such (chat templates).
    """
    ids = tokenizer.encode(prompt, special=special)
    bos_id = tokenizer.bos_id
    if tokenizer.policy.add_bos and bos_id is not None and ids[:1] != [bos_id]:
        return [bos_id, *ids]
    return ids


def encode_pair(
    tokenizer: Tokenizer,
    prompt: str,
    response: str,
    *,
    special_prompt: bool = False,
    add_eos: bool | None = None,
) -> JointTokens:
    """Tokenises a prompt and its response together.

    Args:
      tokenizer: the tokenizer.
      prompt: what the model is given.
      response: what it writes.
      special_prompt: whether special tokens in the prompt are read as such. The response's never
        are; both are then tokenised apart where the prompt ends in a special token, which no
        token reaches over.
      add_eos: whether the end of sequence follows; None: the policy says.

    Returns:
      All tokens, and where the response starts.

    Raises:
      DataError: a response without a token.
    """
    alone = encode_prompt(tokenizer, prompt, special=special_prompt)
    if special_prompt:
        head, tail = _after_last_special(tokenizer, alone)
        joined = tokenizer.encode(tokenizer.decode(tail) + response)
        start = len(head) + _shared(tail, joined)
        token_ids = head + joined
    else:
        offset = len(alone) - len(tokenizer.encode(prompt))
        joined = tokenizer.encode(prompt + response)
        token_ids = alone[:offset] + joined
        start = offset + _shared(alone[offset:], joined)
    if len(token_ids) == start:
        raise DataError(f"a response without a token after the prompt '{prompt[-40:]}'")
    ends = tokenizer.policy.add_eos if add_eos is None else add_eos
    if ends:
        token_ids = [*token_ids, tokenizer.eos_ids[0]]
    return JointTokens(token_ids=token_ids, response_start=start)


def _shared(prompt: Sequence[int], joined: Sequence[int]) -> int:
    """How many first tokens two sequences share."""
    pairs = enumerate(zip(prompt, joined, strict=False))
    return next(
        (index for index, (one, other) in pairs if one != other), min(len(prompt), len(joined))
    )


def _after_last_special(tokenizer: Tokenizer, ids: list[int]) -> tuple[list[int], list[int]]:
    """Splits a prompt after its last special token: one that plain decoding leaves out."""
    for index in range(len(ids), 0, -1):
        if not tokenizer.decode(ids[index - 1 : index]) and tokenizer.decode(
            ids[index - 1 : index], keep_special=True
        ):
            return ids[:index], ids[index:]
    return [], ids


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    r"""Where the earliest stop string begins, or None.

    >>> first_stop("4.\n\nQuestion: and", ("Question:", "\n\n"))
    2
    """
    starts = [start for string in stop if (start := text.find(string)) >= 0]
    return min(starts, default=None)
