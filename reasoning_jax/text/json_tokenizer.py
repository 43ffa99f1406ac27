"""Tokenizers of the `tokenizers` package: `tokenizer.json` folders, and whatever is built of one.

Dimension key: none.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

from core_jax.errors import DataError
from reasoning_jax.text.folder_fields import read_fields, read_token_fields, token_text
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
        # Ids may have gaps: the number of tokens would be too small.
        self.vocab_size: int = 1 + max(inner.get_vocab(with_added_tokens=True).values())
        specials = {"beginning": (bos_id,), "end": eos_ids, "padding": (pad_id,)}
        for name, ids in specials.items():
            if any(one is not None and not 0 <= one < self.vocab_size for one in ids):
                raise DataError(
                    f"the tokenizer's {name} is token {ids}, but its ids end at "
                    f"{self.vocab_size - 1}; correct the files beside it"
                )
        self._inner = inner
        self.bos_id = bos_id
        self.eos_ids = eos_ids
        self.pad_id = pad_id
        self.policy = policy
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

    Special tokens are named in `tokenizer_config.json`, before it in `special_tokens_map.json`.
    The end-of-sequence tokens are that one, which training appends, and those that
    `generation_config.json` lists. The beginning is what the file's own post-processor puts
    there, else the one that is named, else that of `generation_config.json`. Padding is the first
    of these that there is: the named token, that of `generation_config.json`, one that is called
    like padding, the end of sequence. It is masked anyway.

    Args:
      folder: holds `tokenizer.json` and, usually, the files above.
      policy: special tokens around a sequence; by default a beginning-of-sequence token where
        the file's own post-processor adds one, and an end after trained responses.

    Returns:
      The tokenizer.

    Raises:
      DataError: an absent or damaged file; no end-of-sequence token; a named beginning or end
        that the tokenizer does not have.
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
    named = read_token_fields(folder)
    generation = read_fields(folder / "generation_config.json")
    first = inner.encode("a").ids[:1]
    adds_bos = first != inner.encode("a", add_special_tokens=False).ids[:1]
    bos_id = first[0] if adds_bos else _id_of(inner, folder, named, "bos_token")
    if bos_id is None:
        bos_id = generation.get("bos_token_id")
    own = _id_of(inner, folder, named, "eos_token")
    listed = generation.get("eos_token_id", [])
    ends = ([] if own is None else [own]) + (listed if isinstance(listed, list) else [listed])
    pad_text = token_text(named.get("pad_token"))
    pad_ids = [generation.get("pad_token_id")]
    if not _is_id(inner, pad_ids[0]):  # some say -1
        pad_ids = []
    if pad_text is not None:
        pad_ids.insert(0, inner.token_to_id(pad_text))
    pad_ids += [inner.token_to_id(name) for name in _NAMES_OF_PAD] + ends[:1]
    return JsonTokenizer(
        inner,
        bos_id=bos_id,
        eos_ids=tuple(dict.fromkeys(ends)),
        pad_id=next((one for one in pad_ids if one is not None), 0),
        policy=policy or TokenPolicy(add_bos=adds_bos, add_eos=True),
    )


def _id_of(
    inner: tokenizers.Tokenizer, folder: pathlib.Path, named: Mapping[str, Any], name: str
) -> int | None:
    """The id of a special token, None where none is named."""
    if (text := token_text(named.get(name))) is None:
        return None
    if (token_id := inner.token_to_id(text)) is None:
        raise DataError(
            f"'{folder}': {name} is '{text}', which tokenizer.json does not have; correct "
            "tokenizer_config.json or special_tokens_map.json"
        )
    return token_id


def _is_id(inner: tokenizers.Tokenizer, value: Any) -> bool:
    """Whether a value is the id of a token."""
    return isinstance(value, int) and value >= 0 and inner.id_to_token(value) is not None
