"""Tokenizers of the `tokenizers` package: `tokenizer.json` folders, and whatever is built of one.

Dimension key: none.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import tokenizers

from core_jax.errors import DataError
from reasoning_jax.text.tokenizer import TokenPolicy, fingerprint_of

_NAMES_OF_PAD = ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>")


class JsonTokenizer:
    """A tokenizer of the `tokenizers` package; see `Tokenizer` for its methods.

    Args:
      inner: the tokenizer; its post-processor is not used.
      bos_id: beginning of sequence, or None.
      eos_ids: tokens that end a response, at least one.
      pad_id: padding.
      policy: special tokens around a sequence.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        bos_id: int | None,
        eos_ids: tuple[int, ...],
        pad_id: int,
        policy: TokenPolicy,
    ):
        if not eos_ids:
            raise DataError(
                "the tokenizer names no end-of-sequence token; name one (eos_token in "
                "tokenizer_config.json), or responses never end"
            )
        if policy.add_bos and bos_id is None:
            raise DataError("the policy adds a beginning-of-sequence token, but there is none")
        self._inner = inner
        self.bos_id = bos_id
        self.eos_ids = eos_ids
        self.pad_id = pad_id
        self.policy = policy
        self.vocab_size: int = inner.get_vocab_size(with_added_tokens=True)
        self.fingerprint = fingerprint_of(
            json.loads(inner.to_str()), bos_id, eos_ids, pad_id, dataclasses.asdict(policy)
        )

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """See `Tokenizer.encode`."""
        self._inner.encode_special_tokens = not special
        return self._inner.encode(text, add_special_tokens=False).ids

    def decode(self, token_ids: Sequence[int], *, keep_special: bool = False) -> str:
        """See `Tokenizer.decode`."""
        return self._inner.decode(list(token_ids), skip_special_tokens=not keep_special)


def load_json_tokenizer(
    folder: str | os.PathLike[str], *, policy: TokenPolicy | None = None
) -> JsonTokenizer:
    """Loads a folder with `tokenizer.json`.

    The end-of-sequence tokens are those of `generation_config.json`, else of
    `tokenizer_config.json` or `special_tokens_map.json`. Padding is the token named there, else
    one that is called like padding, else the end of sequence: it is masked anyway.

    Args:
      folder: holds `tokenizer.json` and, usually, the files above.
      policy: special tokens around a sequence; by default a beginning-of-sequence token where
        the file's own post-processor adds one, and an end after trained responses.

    Returns:
      The tokenizer.

    Raises:
      DataError: an absent or damaged file; no end-of-sequence token.
    """
    folder = pathlib.Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"'{folder}' holds no tokenizer.json; give the folder of a fast tokenizer")
    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare Exception
        raise DataError(f"'{path}' cannot be read as a tokenizer: {error}") from error
    inner.no_padding()
    inner.no_truncation()
    named = _json(folder / "special_tokens_map.json") | _json(folder / "tokenizer_config.json")
    first = inner.encode("a").ids[:1]
    plain = inner.encode("a", add_special_tokens=False).ids[:1]
    adds_bos = first != plain
    bos_id = _id_of(inner, named.get("bos_token"))
    if bos_id is None and adds_bos:
        bos_id = first[0]
    eos_ids = _eos_ids(inner, folder, named)
    pad_id = _id_of(inner, named.get("pad_token"))
    for name in _NAMES_OF_PAD:
        pad_id = inner.token_to_id(name) if pad_id is None else pad_id
    if pad_id is None:
        pad_id = eos_ids[0] if eos_ids else 0
    chosen = policy or TokenPolicy(add_bos=adds_bos, add_eos=True)
    return JsonTokenizer(inner, bos_id=bos_id, eos_ids=eos_ids, pad_id=pad_id, policy=chosen)


def _eos_ids(
    inner: tokenizers.Tokenizer, folder: pathlib.Path, named: dict[str, Any]
) -> tuple[int, ...]:
    """End-of-sequence tokens, the tokenizer's own first."""
    own = _id_of(inner, named.get("eos_token"))
    listed = _json(folder / "generation_config.json").get("eos_token_id")
    listed = [] if listed is None else listed if isinstance(listed, list) else [listed]
    ids = ([] if own is None else [own]) + [int(token_id) for token_id in listed]
    return tuple(dict.fromkeys(ids))


def _id_of(inner: tokenizers.Tokenizer, token: Any) -> int | None:
    """The id of a special token given as text or as {"content": text}."""
    content = token.get("content") if isinstance(token, dict) else token
    return None if content is None else inner.token_to_id(content)


def _json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON file's fields; none where it is absent."""
    if not path.is_file():
        return {}
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"'{path}' is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise DataError(f"'{path}' holds no fields; expected a JSON object")
    return fields
