"""Configs (frozen dataclasses) to JSON and back, their fingerprint, and the difference of two.

Dimension key: none.
"""

import dataclasses
import enum
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from core_jax.errors import ConfigError, nearest_name

ConfigT = TypeVar("ConfigT")

_FINGERPRINT_DIGITS = 16
_ABSENT = "(absent)"


def to_dict(config: Any) -> dict[str, Any]:
    """Turns a config into values that JSON can hold.

    Args:
      config: a dataclass, or a mapping from names to such; fields may be numbers, strings,
        booleans, None, enums (written as their value), paths, tuples, mappings and configs.

    Returns:
      Nested dicts and lists, ready for `json.dumps` and for `from_dict`.

    Raises:
      ConfigError: a field holds something that JSON cannot.
    """
    return _encode(config, "config")


def from_dict(cls: type[ConfigT], data: Mapping[str, Any]) -> ConfigT:
    """Builds a config from what `to_dict` wrote.

    Args:
      cls: the dataclass to build.
      data: one entry per field; fields with a default may be absent.

    Returns:
      The config, validated by its own `__post_init__`.

    Raises:
      ConfigError: an unknown or missing field, or a value of the wrong type.
    """
    return _decode(cls, data, "")


def fingerprint(config: Any) -> str:
    """Hashes a config: equal configs, and only those, share a fingerprint.

    Args:
      config: anything that `to_dict` takes.

    Returns:
      16 hexadecimal digits of the SHA-256 of the canonical JSON (sorted keys, no spaces).

    >>> fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1})
    True
    """
    canonical = json.dumps(to_dict(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:_FINGERPRINT_DIGITS]


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Says field by field how two configs differ.

    Args:
      old: `to_dict` of one config.
      new: `to_dict` of the other.

    Returns:
      One line per differing field, sorted by name; empty for equal configs.

    >>> difference({"model": {"d_model": 128}}, {"model": {"d_model": 256}})
    ['model.d_model: 128 -> 256']
    """
    before, after = _flatten(old, ""), _flatten(new, "")
    names = sorted(before.keys() | after.keys())
    pairs = [(name, before.get(name, _ABSENT), after.get(name, _ABSENT)) for name in names]
    return [f"{name}: {left} -> {right}" for name, left, right in pairs if left != right]


def _flatten(data: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """Dotted names to JSON texts; an empty mapping keeps an entry of its own."""
    flat = {}
    for name, value in data.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json.dumps(value)
    return flat


def _encode(value: Any, where: str) -> Any:
    """`to_dict` of any value; `where` names it in errors."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _encode(getattr(value, field.name), f"{where}.{field.name}")
            for field in dataclasses.fields(value)
        }
    if isinstance(value, enum.Enum):
        return _encode(value.value, where)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _encode(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and value - value == 0.0:
        return value
    raise ConfigError(
        f"{where} is {value!r} of type {type(value).__name__}; a config holds finite numbers, "
        "strings, booleans, None, enums, paths, tuples, mappings and configs"
    )


def _decode(hint: Any, value: Any, where: str) -> Any:
    """Checks and converts `value` to the annotated type `hint`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        return _decode_tuple(arguments, value, where)
    if origin is dict and isinstance(value, Mapping):
        return {
            name: _decode(arguments[1], item, f"{where}.{name}") for name, item in value.items()
        }
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return _decode_config(hint, value, where)
    if hint is bool or (isinstance(hint, type) and not isinstance(value, bool)):
        if isinstance(value, hint):
            return value
        if issubclass(hint, enum.Enum):
            return _decode_enum(hint, value, where)
        if hint is float and isinstance(value, int):
            return float(value)
        if hint is Path and isinstance(value, str):
            return Path(value)
    raise _wrong_type(hint, value, where)


def _decode_config(cls: Any, data: Mapping[str, Any], where: str) -> Any:
    """One dataclass from a mapping of its fields."""
    title = f"'{where}' ({cls.__name__})" if where else cls.__name__
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in data:
        if name not in fields:
            raise ConfigError(f"{title} has no field {name!r}. {nearest_name(name, fields)}")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise ConfigError(f"{title} lacks its required field {name!r}; add it")
    prefix = f"{where}." if where else ""
    return cls(**{name: _decode(hints[name], data[name], prefix + name) for name in data})


def _decode_union(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    """The first alternative that fits; with a single alternative to None, its own error."""
    if value is None and types.NoneType in choices:
        return None
    choices = tuple(choice for choice in choices if choice is not types.NoneType)
    if len(choices) == 1:
        return _decode(choices[0], value, where)
    for choice in choices:
        try:
            return _decode(choice, value, where)
        except ConfigError:
            continue
    raise _wrong_type(typing.Union[choices], value, where)  # noqa: UP007 (built at run time)


def _decode_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    """`tuple[X, ...]` of any length, or one type per entry."""
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise ConfigError(
            f"'{where}' has {len(value)} entries ({value!r}); it must have {len(arguments)}"
        )
    pairs = zip(arguments, value, strict=True)
    return tuple(
        _decode(hint, item, f"{where}[{index}]") for index, (hint, item) in enumerate(pairs)
    )


def _decode_enum(cls: type[enum.Enum], value: Any, where: str) -> enum.Enum:
    """An enum member from its value."""
    for member in cls:
        if member.value == value:
            return member
    known = [str(member.value) for member in cls]
    raise ConfigError(
        f"'{where}' is {value!r}, no value of {cls.__name__}. {nearest_name(str(value), known)}"
    )


def _wrong_type(hint: Any, value: Any, where: str) -> ConfigError:
    """The error for a value that does not fit its annotation."""
    expected = hint.__name__ if isinstance(hint, type) else str(hint)
    return ConfigError(
        f"'{where or 'config'}' is {value!r} of type {type(value).__name__}; it must be {expected}"
    )
