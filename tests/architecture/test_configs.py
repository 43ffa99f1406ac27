"""No config field without an effect."""

import ast

import pytest

from tests.architecture.sources import PACKAGES, python_files


def config_fields(tree):
    """Class and field names of the dataclasses named `*Config`."""
    return {
        (node.name, item.target.id)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config") and node.decorator_list
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }


def fields_read(tree):
    """Attributes that are read, other than to check them or to hand them to another config.

    Checks are `__post_init__` methods; handing over is `OtherConfig(name=config.name)`. Where a
    module reads attributes by a variable name, `getattr(config, name)`, its strings count as read.
    """
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
            skipped |= set(ast.walk(node))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Config"):
            skipped |= {
                keyword.value
                for keyword in node.keywords
                if isinstance(keyword.value, ast.Attribute) and keyword.value.attr == keyword.arg
            }
    used = [node for node in ast.walk(tree) if node not in skipped]
    read = {
        node.attr
        for node in used
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    calls = [ast.unparse(node.func) for node in used if isinstance(node, ast.Call)]
    if "getattr" in calls:
        read |= {node.value for node in used if isinstance(node, ast.Constant)}
    return read


def dead_fields(trees):
    """Fields of configs that nothing reads, as `Class.field`."""
    read = set().union(*map(fields_read, trees))
    fields = set().union(*map(config_fields, trees))
    return sorted(f"{name}.{field}" for name, field in fields if field not in read)


def test_every_config_field_is_read():
    trees = [ast.parse(source) for source in python_files(*PACKAGES).values()]
    assert dead_fields(trees) == []


@pytest.mark.parametrize(
    ("use", "dead"),
    [
        ("print(config.rate)", []),
        ("pass", ["AConfig.rate"]),
        ("BConfig(rate=config.rate)", ["AConfig.rate"]),
        ("BConfig(speed=config.rate)", []),
        ("config.rate = 3", ["AConfig.rate"]),
        ("[getattr(config, name) for name in ('rate',)]", []),
    ],
)
def test_the_finder_finds(use, dead):
    """A field counts as read by a use, not by its check or by forwarding it."""
    source = f"""
@dataclass
class AConfig:
    rate: float
    def __post_init__(self):
        assert self.rate > 0
def work(config):
    {use}
"""
    assert dead_fields([ast.parse(source)]) == dead
