"""The byte-level BPE inside a GGUF file, rebuilt as a tokenizer of the `tokenizers` package.

Dimension key: none.
"""

import functools
import os
from typing import Any

import gguf
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from core_jax.errors import DataError, nearest_name
from reasoning_jax.text.chat import ChatTemplate
from reasoning_jax.text.json_tokenizer import JsonTokenizer
from reasoning_jax.text.tokenizer import TokenPolicy

_CONTROL, _USER_DEFINED = 3, 4
_LLAMA = "llama-bpe"
_ENDS = ("<|im_end|>", "<|eot_id|>", "<|endoftext|>")
"""Tokens that end a turn or a text wherever a vocabulary has them."""

_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Pieces by a regular expression, each then as bytes."""
    pieces = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([pieces, _BYTES])


def _gpt2() -> pre_tokenizers.PreTokenizer:
    """GPT-2's pieces."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


_PRE_TOKENIZERS = {
    "gpt-2": _gpt2,
    "default": _gpt2,
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), _gpt2()]
    ),
    _LLAMA: lambda: _split(rf"{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"),
    "qwen2": lambda: _split(rf"{_LETTERS}|\p{{N}}|{_REST}"),
}
"""`tokenizer.ggml.pre` to how text is cut before merging. A file that says "default" or nothing
was converted without knowing; it is cut as the vocabulary's kind, GPT-2's, was made to be."""


def read_gguf_fields(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of a GGUF file that concern text.

    Args:
      path: the file.

    Returns:
      Field name to value, for every field that begins with "tokenizer.".

    Raises:
      DataError: not a GGUF file.
    """
    try:
        reader = gguf.GGUFReader(os.fspath(path))
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' cannot be read as GGUF: {error}") from error
    return {
        name: field.contents()
        for name, field in reader.fields.items()
        if name.startswith("tokenizer.")
    }


def load_gguf_tokenizer(
    path: str | os.PathLike[str], *, policy: TokenPolicy | None = None
) -> JsonTokenizer:
    """Rebuilds the tokenizer of a GGUF file.

    Args:
      path: the file.
      policy: special tokens around a sequence; by default a beginning-of-sequence token if the
        file asks for one (`tokenizer.ggml.add_bos_token`; "llama-bpe" has one unless the file
        says no), and an end after trained responses.

    Returns:
      The tokenizer.

    Raises:
      DataError: another kind of tokenizer, an unknown way of cutting text, absent fields.
    """
    fields = read_gguf_fields(path)
    required = functools.partial(_required, fields, path)
    if required("model") != "gpt2":
        raise DataError(
            f"'{path}': tokenizer.ggml.model is '{fields['tokenizer.ggml.model']}'; only "
            "byte-level BPE ('gpt2') is rebuilt from GGUF, use the model's own tokenizer files"
        )
    kind = fields.get("tokenizer.ggml.pre", "default")
    if kind not in _PRE_TOKENIZERS:
        raise DataError(
            f"'{path}': tokenizer.ggml.pre is '{kind}', which is not known here. "
            f"{nearest_name(kind, _PRE_TOKENIZERS)} Use the model's own tokenizer files"
        )
    tokens: list[str] = required("tokens")
    try:
        inner = _build(tokens, required("merges"), required("token_type"), kind)
    except Exception as error:  # the package raises bare Exception
        raise DataError(
            f"'{path}': tokens, token_type and merges do not make a tokenizer ({error}); fetch the "
            "file again or use the model's own tokenizer files"
        ) from error
    eos = int(required("eos_token_id"))
    ends = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom")]
    ends = [int(one) for one in ends if one is not None]
    ends += [token_id for name in _ENDS if (token_id := inner.token_to_id(name)) is not None]
    bos_id = fields.get("tokenizer.ggml.bos_token_id")
    pad_id = fields.get("tokenizer.ggml.padding_token_id", eos)
    by_default = kind == _LLAMA and bos_id is not None
    adds_bos = bool(fields.get("tokenizer.ggml.add_bos_token", by_default))
    return JsonTokenizer(
        inner,
        bos_id=None if bos_id is None else int(bos_id),
        eos_ids=tuple(dict.fromkeys([eos, *ends])),
        pad_id=int(pad_id),
        policy=policy or TokenPolicy(add_bos=adds_bos, add_eos=True),
    )


def load_gguf_chat_template(path: str | os.PathLike[str]) -> ChatTemplate | None:
    """Reads the chat template of a GGUF file, or None where it has none.

    Args:
      path: the file.
    """
    fields = read_gguf_fields(path)
    source = fields.get("tokenizer.chat_template")
    if source is None:
        return None
    tokens = fields["tokenizer.ggml.tokens"]
    bos, eos = (fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    return ChatTemplate(
        source=source,
        bos_token="" if bos is None else tokens[bos],
        eos_token="" if eos is None else tokens[eos],
    )


def _build(
    tokens: list[str], merges: list[str], types: list[int], kind: str
) -> tokenizers.Tokenizer:
    """The tokenizer itself: vocabulary, merges, cutting, special tokens."""
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        raise ValueError(f"{len(tokens) - len(vocabulary)} tokens stand in the list twice")
    model = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=kind == _LLAMA)
    inner = tokenizers.Tokenizer(model)
    if kind == "qwen2":
        inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = _PRE_TOKENIZERS[kind]()
    inner.decoder = decoders.ByteLevel()
    added = {_CONTROL: inner.add_special_tokens, _USER_DEFINED: inner.add_tokens}
    for token_type, add in added.items():
        add(
            [
                AddedToken(token, special=token_type == _CONTROL, normalized=False)
                for token, this_type in zip(tokens, types, strict=True)
                if this_type == token_type
            ]
        )
    return inner


def _required(fields: dict[str, Any], path: str | os.PathLike[str], name: str) -> Any:
    """A field that must be there."""
    if (value := fields.get(f"tokenizer.ggml.{name}")) is None:
        raise DataError(f"'{path}' has no tokenizer.ggml.{name}; it carries no whole tokenizer")
    return value
