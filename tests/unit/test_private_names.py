"""Tests take what they change of bpfnb as arguments: a pinned private name breaks with every move of the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]

# Private names that tests may replace, and why there is no other way.
ALLOWED = {
    ("test_table.py", "Table._build"): "counts how often a frame is built, which nothing that is handed out shows",
    ("test_session.py", "printk.PrintkTable._build"): "as above",
    ("test_output.py", "Table._build"): "nothing may be built: a frame that is would be the same",
    ("test_maps.py", "Map._frame"): "Ctrl-C after entries were taken and before they are given out",
    ("test_maps.py", "Map._head"): "as above",
}


def pins(source: str) -> Iterator[str]:
    """The private names that a test's text replaces: by assignment those of bpfnb and magics, by setattr all."""
    tree = ast.parse(source)
    ours = set(_imported(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) in ("setattr", "delattr", "patch", "object"):
            yield from filter(_is_private, _replaced(node))
        elif isinstance(node, ast.Assign | ast.AugAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for part in ast.walk(target):
                    name = ast.unparse(part)
                    if isinstance(part, ast.Attribute) and name.split(".")[0] in ours and _is_private(name):
                        yield name


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.asname or a.name.split(".")[0] for a in node.names if _is_ours(a.name))
        elif isinstance(node, ast.ImportFrom) and _is_ours(node.module or ""):
            yield from (a.asname or a.name for a in node.names)


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in ("bpfnb", "magics")


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _replaced(call: ast.Call) -> Iterator[str]:
    """ "x._y" of setattr(x, "_y", ...) and of setattr("x._y", ...)."""
    first, second = [*call.args, None, None][:2]
    if isinstance(first, ast.Constant) and isinstance(first.value, str) and _is_ours(first.value):
        yield first.value
    elif first and isinstance(second, ast.Constant) and isinstance(second.value, str):
        yield f"{ast.unparse(first)}.{second.value}"


def _is_private(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last.startswith("_") and not last.startswith("__")


def test_no_test_replaces_a_private_name() -> None:
    found = {(path.name, name) for path in TESTS.rglob("*.py") for name in pins(path.read_text())}
    assert sorted(found - ALLOWED.keys()) == [], "make it an argument, with this as its default"
    assert sorted(ALLOWED.keys() - found) == [], "no longer needed"


def test_every_way_of_replacing_is_seen() -> None:
    assert list(pins('monkeypatch.setattr(memory, "_SLOW_NS", 1)')) == ["memory._SLOW_NS"]
    assert list(pins('patch.setattr("bpfnb.memory._SLOW_NS", 1)')) == ["bpfnb.memory._SLOW_NS"]
    assert list(pins('mock.patch.object(memory, "_SLOW_NS", 1)')) == ["memory._SLOW_NS"]
    assert list(pins("from bpfnb.tracer import rings\nrings._TURN, x = 1, 2")) == ["rings._TURN"]
    assert list(pins("from bpfnb import memory\nmemory.Memory._small += 1")) == ["memory.Memory._small"]
    assert list(pins('monkeypatch.setattr(os, "geteuid", f)\nself._x = 1\nx = rings._TURN')) == []
