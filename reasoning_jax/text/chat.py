"""Chat templates, rendered in a sandbox: they come with models of others and are programs.

Dimension key: none.
"""

import dataclasses
import datetime
import functools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.sandbox

from core_jax.errors import DataError

_ROLES = ("system", "user", "assistant")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    """system, user or assistant."""
    content: str
    """The text."""

    def __post_init__(self) -> None:
        """Checks the role."""
        if self.role not in _ROLES:
            raise DataError(f"a message's role is '{self.role}'; expected {', '.join(_ROLES)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A model's way of writing a conversation as one text."""

    source: str
    """Jinja source."""
    bos_token: str = ""
    """What the template may write at the beginning."""
    eos_token: str = ""
    """What it may write after a turn."""

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """Writes a conversation.

        Args:
          messages: the turns so far.
          add_generation_prompt: whether the assistant's next turn is opened.

        Raises:
          DataError: the template is no Jinja, refuses the messages, or leaves its sandbox.
        """
        try:
            return _compiled(self.source).render(
                messages=[dataclasses.asdict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                bos_token=self.bos_token,
                eos_token=self.eos_token,
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise DataError(f"the chat template cannot be rendered: {error}") from error


def load_chat_template(folder: str | os.PathLike[str]) -> ChatTemplate | None:
    """Reads a model folder's chat template.

    `chat_template.jinja` comes before the field of `tokenizer_config.json`; of a list of named
    templates, "default" is taken.

    Args:
      folder: the model's folder.

    Returns:
      The template, or None where there is none (base models).

    Raises:
      DataError: a list of templates without a default.
    """
    folder = pathlib.Path(folder)
    path = folder / "tokenizer_config.json"
    fields: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    source = fields.get("chat_template")
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source}
        if "default" not in named:
            raise DataError(
                f"'{path}' has the chat templates {', '.join(named)}, and none called 'default'"
            )
        source = named["default"]
    own = folder / "chat_template.jinja"
    if own.is_file():
        source = own.read_text("utf-8")
    if source is None:
        return None
    tokens = [fields.get(name) for name in ("bos_token", "eos_token")]
    bos, eos = (token.get("content") if isinstance(token, dict) else token for token in tokens)
    return ChatTemplate(source=source, bos_token=bos or "", eos_token=eos or "")


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    """A template in a sandbox that can change nothing."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        loader=jinja2.DictLoader({}), trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    environment.filters["tojson"] = _to_json
    return environment.from_string(source)


def _raise(message: str) -> NoReturn:
    """What templates call to refuse a conversation."""
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    """The date, for templates that state it."""
    return datetime.datetime.now().strftime(form)


def _to_json(value: Any, indent: int | None = None) -> str:
    """JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
