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
from reasoning_jax.text.folder_fields import read_token_fields, token_text

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
                tools=None,  # defined, as templates of the reference expect: "tools is not none"
                documents=None,
            )
        except Exception as error:  # a template is a program and can fail in any way
            what = str(error) or type(error).__name__
            raise DataError(f"the chat template cannot be rendered: {what}") from error


def load_chat_template(folder: str | os.PathLike[str]) -> ChatTemplate | None:
    """Reads a model folder's chat template.

    `chat_template.jinja` comes before the field of `tokenizer_config.json`; of a list of named
    templates, "default" is taken.

    Args:
      folder: the model's folder.

    Returns:
      The template, or None where there is none (base models).

    Raises:
      DataError: a damaged file; a list of templates without a default.
    """
    folder = pathlib.Path(folder)
    fields = read_token_fields(folder)
    source = fields.get("chat_template")
    own = folder / "chat_template.jinja"
    if own.is_file():
        source = own.read_text("utf-8")
    if isinstance(source, list):
        named = _named_templates(source, folder)
        if "default" not in named:
            raise DataError(
                f"'{folder}' has the chat templates {', '.join(named)}, and none called 'default'; "
                "put the one to use into chat_template.jinja"
            )
        source = named["default"]
    if source is None:
        return None
    if not isinstance(source, str):
        raise DataError(f"'{folder}': chat_template is {source!r}; expected text or a list")
    bos, eos = (token_text(fields.get(name)) for name in ("bos_token", "eos_token"))
    return ChatTemplate(source=source, bos_token=bos or "", eos_token=eos or "")


def _named_templates(entries: list[Any], folder: pathlib.Path) -> dict[str, str]:
    """Name to source, of a list of named templates."""
    try:
        return {entry["name"]: entry["template"] for entry in entries}
    except (TypeError, KeyError) as error:
        raise DataError(
            f"'{folder}': chat_template lists an entry without name and template: {entries!r:.80}"
        ) from error


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    """A template in a sandbox that can change nothing."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        loader=jinja2.DictLoader({}),
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols"],
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


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
