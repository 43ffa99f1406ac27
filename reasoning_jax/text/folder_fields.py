"""What the JSON files beside a tokenizer say.

Dimension key: none.
"""

import json
import os
import pathlib
from typing import Any

from core_jax.errors import DataError


def read_fields(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON file's fields that are not null; none where it is absent.

    Args:
      path: the file.

    Raises:
      DataError: it is no JSON object.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        return {}
    try:
        fields = json.loads(path.read_bytes().decode())
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is not JSON in UTF-8: {error}; fetch it again") from error
    if not isinstance(fields, dict):
        raise DataError(f"'{path}' holds no fields; expected a JSON object")
    return {name: value for name, value in fields.items() if value is not None}


def read_token_fields(folder: pathlib.Path) -> dict[str, Any]:
    """The fields of `special_tokens_map.json`, and over them those of `tokenizer_config.json`."""
    files = ("special_tokens_map.json", "tokenizer_config.json")
    first, over = (read_fields(folder / name) for name in files)
    return first | over


def token_text(token: Any) -> str | None:
    """A special token's text: it is given as that, or as {"content": text}."""
    return token.get("content") if isinstance(token, dict) else token
