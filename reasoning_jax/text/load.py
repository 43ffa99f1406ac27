"""The tokenizer and the chat template of a model, whichever form they have.

Dimension key: none.
"""

import os

from core_jax.errors import DataError
from core_jax.storage import local_path
from reasoning_jax.text.byte_tokenizer import BOTH, ByteTokenizer
from reasoning_jax.text.chat import ChatTemplate, load_chat_template
from reasoning_jax.text.gguf_tokenizer import load_gguf_chat_template, load_gguf_tokenizer
from reasoning_jax.text.json_tokenizer import load_json_tokenizer
from reasoning_jax.text.sentencepiece_tokenizer import SentencePieceTokenizer
from reasoning_jax.text.tokenizer import Tokenizer, TokenPolicy

BYTES = "bytes"
"""Names the byte tokenizer."""


def load_tokenizer(
    source: str | os.PathLike[str], *, policy: TokenPolicy | None = None
) -> Tokenizer:
    """Loads a tokenizer.

    Args:
      source: a folder with `tokenizer.json` or `tokenizer.model`, a `.gguf` or `.model` file, or
        "bytes".
      policy: special tokens around a sequence; None: what the source says.

    Raises:
      DataError: nothing of that kind there.
    """
    if source == BYTES:
        return ByteTokenizer(policy=policy or BOTH)
    path = local_path(source)
    if path.suffix == ".gguf" and path.is_file():
        return load_gguf_tokenizer(path, policy=policy)
    if path.suffix == ".model" and path.is_file():
        return SentencePieceTokenizer(path, policy=policy)
    if (path / "tokenizer.json").is_file():
        return load_json_tokenizer(path, policy=policy)
    if (path / "tokenizer.model").is_file():
        return SentencePieceTokenizer(path / "tokenizer.model", policy=policy)
    raise DataError(
        f"there is no tokenizer at '{source}'; give a folder with tokenizer.json or "
        "tokenizer.model, a .gguf or .model file, or 'bytes'"
    )


def load_chat(source: str | os.PathLike[str]) -> ChatTemplate | None:
    """Loads the chat template that stands beside a tokenizer; None where there is none.

    Args:
      source: as for `load_tokenizer`.
    """
    path = local_path(source)
    if path.suffix == ".gguf" and path.is_file():
        return load_gguf_chat_template(path)
    return load_chat_template(path) if path.is_dir() else None
