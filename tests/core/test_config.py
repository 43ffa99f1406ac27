"""Configs survive JSON, are told apart by their fingerprint, and are explained when wrong."""

import dataclasses
import enum
import json
from pathlib import Path

import pytest

from core_jax.config import difference, fingerprint, from_dict, to_dict
from core_jax.errors import ConfigError


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    width: int
    rate: float = 0.5

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"inner.width is {self.width}; it must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Other:
    name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner
    colour: Colour = Colour.RED
    sizes: tuple[int, ...] = ()
    pair: tuple[str, float] = ("a", 1.0)
    limit: float | None = None
    parts: tuple[Inner, ...] = ()
    folder: Path = Path("runs")
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    source: Inner | Other | None = None
    fast: bool = False


FULL = Outer(
    inner=Inner(width=3, rate=1e-3),
    colour=Colour.GREEN,
    sizes=(2, 3, 5),
    pair=("b", 2.5),
    limit=7.0,
    parts=(Inner(width=11), Inner(width=13, rate=0.25)),
    folder=Path("a") / "b",
    columns={"user": "uid"},
    source=Other(name="file"),
    fast=True,
)


@pytest.mark.parametrize("config", [FULL, Outer(inner=Inner(width=1))])
def test_json_round_trip(config):
    assert from_dict(Outer, json.loads(json.dumps(to_dict(config)))) == config


def test_defaults_fill_absent_fields_and_integers_become_floats():
    config = from_dict(Outer, {"inner": {"width": 3, "rate": 1}, "limit": 2})
    assert config == Outer(inner=Inner(width=3, rate=1.0), limit=2.0)
    assert isinstance(config.inner.rate, float) and isinstance(config.limit, float)


def _changed(path: tuple[str | int, ...], value: object) -> dict:
    data = json.loads(json.dumps(to_dict(FULL)))
    target = data
    for name in path[:-1]:
        target = target[name]
    target[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("colours",), "red", r"Outer has no field 'colours'. Did you mean 'colour'\?"),
        (("inner", "widht"), 3, r"'inner' \(Inner\) has no field 'widht'. Did you mean 'width'\?"),
        (("inner",), {"rate": 0.5}, r"'inner' \(Inner\) lacks its required field 'width'; add it"),
        (("inner",), 3, r"'inner' is 3 of type int; it must be Inner"),
        (("inner", "width"), 2.5, r"'inner.width' is 2.5 of type float; it must be int"),
        (("inner", "width"), True, r"'inner.width' is True of type bool; it must be int"),
        (("inner", "width"), 0, r"inner.width is 0; it must be at least 1"),
        (("inner", "rate"), "1", r"'inner.rate' is '1' of type str; it must be float"),
        (("fast",), 1, r"'fast' is 1 of type int; it must be bool"),
        (("colour",), "gren", r"'colour' is 'gren', no value of Colour. Did you mean 'green'\?"),
        (("sizes",), 3, r"'sizes' is 3 of type int; it must be tuple\[int, ...\]"),
        (("sizes", 1), "3", r"'sizes\[1\]' is '3' of type str; it must be int"),
        (("pair",), ["a"], r"'pair' has 1 entries \(\['a'\]\); it must have 2"),
        (("limit",), "x", r"'limit' is 'x' of type str; it must be float"),
        (("parts", 1, "width"), None, r"'parts\[1\].width' is None of type NoneType; it must be"),
        (("columns", "user"), 3, r"'columns.user' is 3 of type int; it must be str"),
        (("source",), {"nam": "x"}, r"'source' is {'nam': 'x'} of type dict; it must be .*Inner"),
    ],
)
def test_a_wrong_value_is_named_with_what_it_must_be(path, value, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(Outer, _changed(path, value))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_what_json_cannot_hold_is_named(value):
    with pytest.raises(ConfigError, match=r"config.limit is .*a config holds finite numbers"):
        to_dict(dataclasses.replace(FULL, limit=value))


def test_fingerprint_depends_on_every_value_and_on_nothing_else():
    same = from_dict(Outer, to_dict(FULL))
    assert fingerprint(same) == fingerprint(FULL)
    prints = {fingerprint(FULL)}
    for field in dataclasses.fields(Outer):
        if field.name != "inner":
            prints.add(fingerprint(dataclasses.replace(FULL, **{field.name: "other"})))
    prints.add(fingerprint(dataclasses.replace(FULL, inner=Inner(width=3, rate=2e-3))))
    assert len(prints) == len(dataclasses.fields(Outer)) + 1
    assert all(len(value) == 16 and int(value, 16) >= 0 for value in prints)


def test_fingerprint_takes_several_configs_by_name():
    left = fingerprint({"model": FULL, "seed": 3})
    assert left == fingerprint({"seed": 3, "model": to_dict(FULL)})
    assert left != fingerprint({"model": FULL, "seed": 5})


def test_difference_names_changed_added_and_removed_fields():
    old = {"model": {"d_model": 128, "sizes": [2, 3]}, "seed": 3, "gone": {"x": 1}, "same": None}
    new = {"model": {"d_model": 256, "sizes": [2, 5]}, "seed": 3, "added": "a", "same": None}
    assert difference(old, new) == [
        'added: (absent) -> "a"',
        "gone.x: 1 -> (absent)",
        "model.d_model: 128 -> 256",
        "model.sizes: [2, 3] -> [2, 5]",
    ]
    assert difference(old, old) == []
