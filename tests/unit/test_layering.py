"""The house's one direction of imports, read from the source."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

from bpfnb import release

ROOT = Path(__file__).parents[2]

# Lower layers first: a module imports only what is in its own package, or in a layer before its own.
NOTEBOOK = [
    {"errors", "interrupts", "origins", "release"},
    {"progress"},
    {"language"},
    {"protocol"},
    {"results", "host", "command"},
    {"recordings", "exports"},
    {"views"},
    {"session", "options"},
    {"doctor", "oneliners", "registry", "setup", "tools", "comparison"},
    {"hosts"},
    {"testing", "fleets", "imports"},
    {"opening"},
    {"magics", "terminal"},
    {"bpfnb"},
    {"__main__"},
]
TRACER = [
    {"kernel", "source_map", "cancel"},
    {"symbols", "loaded", "signatures"},
    {"link", "read", "diagnose", "access", "filters"},
    {"compile", "probes"},
    {"doctor", "guard", "outbox", "lanes", "loaders"},
    {"sessions"},
    {"service"},
    {"__main__"},
]
SHARED = set(release.SHARED)  # with the tracer


@functools.cache
def modules() -> dict[str, Path]:
    found = {}
    for path in [*ROOT.glob("bpfnb/**/*.py"), *ROOT.glob("magics/**/*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports(path: Path, *, lazy: bool = True) -> frozenset[str]:
    """The modules a file names in imports; without ``lazy`` only those that run when it is imported."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in ast.walk(tree) if lazy else _at_import(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or node.level):
            module = _absolute(node, path)
            names = {f"{module}.{alias.name}" for alias in node.names}
            # "from bpfnb.host import client" is about bpfnb.host.client, not about what bpfnb itself offers.
            found |= names if names <= modules().keys() else {module, *names}
    return frozenset(found)


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    """The module that is imported from: ``from .options import split`` of magics/bpf.py is about magics.options."""
    package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
    return ".".join([*package, *filter(None, [node.module])])


def _at_import(tree: ast.Module) -> list[ast.AST]:
    """Statements outside functions and outside ``if TYPE_CHECKING``."""
    found: list[ast.AST] = []
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        found.append(node)
        todo += list(ast.iter_child_nodes(node))
    return found


def top(name: str) -> str:
    return name.split(".")[0]


def room(name: str) -> str:
    """The package or module that a layer lists: ``tracer.link`` of bpfnb.tracer.link.usdt."""
    parts = name.split(".")
    if parts[0] == "magics" or len(parts) == 1:
        return parts[0]
    return ".".join(parts[1:3]) if parts[1] == "tracer" else parts[1]


def layer(name: str) -> int:
    side, short = (TRACER, name[len("tracer.") :]) if name.startswith("tracer.") else (NOTEBOOK, name)
    for number, members in enumerate(side):
        if short in members:
            return number
    raise AssertionError(f"{name} has no place in the layers: give it one")


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_only_its_own_package_and_what_lies_below(name: str) -> None:
    own = room(name)
    for used in imports(modules()[name]) & modules().keys():
        other = room(used)
        if used == "bpfnb" and own not in ("bpfnb", "__main__"):
            # Python imports it before any of its modules; nobody else may ask it for anything.
            assert not asks(modules()[name], "bpfnb"), name
            continue
        if other == own or (other == "tracer" and own.startswith("tracer")):
            continue
        if own.startswith("tracer"):
            if other.startswith("tracer."):
                assert layer(other) < layer(own), f"{name} imports {used}"
            else:
                assert other in SHARED, f"{name} imports {used}"
        else:
            assert not other.startswith("tracer"), f"{name} imports {used}"
            assert layer(other) < layer(own), f"{name} imports {used}"


def asks(path: Path, package: str) -> bool:
    """Whether it imports a package by itself, or a name of it that is no module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import) and package in {alias.name for alias in node.names}:
            return True
        if isinstance(node, ast.ImportFrom) and node.module == package:
            names = {f"{package}.{alias.name}" for alias in node.names}
            if not names <= modules().keys():
                return True
    return False


def test_nothing_imports_itself_by_way_of_others() -> None:
    graph = {name: imports(path, lazy=False) & modules().keys() - {name} for name, path in modules().items()}
    done: set[str] = set()

    def follow(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name in done:
            return
        for used in sorted(graph[name]):
            follow(used, (*above, name))
        done.add(name)

    for name in sorted(graph):
        follow(name, ())


@pytest.mark.parametrize("folder", sorted({str(path.parent.relative_to(ROOT)) for path in modules().values()}))
def test_a_folder_is_seen_at_a_glance(folder: str) -> None:
    assert len(list((ROOT / folder).glob("*.py"))) <= 15  # with its __init__


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("bcc", ("bpfnb.tracer.compile.engine",)),
        ("anywidget", ("bpfnb.views",)),
        ("matplotlib", ("bpfnb.views",)),
        ("IPython", ("magics",)),
        ("duckdb", ("bpfnb.results.queries",)),
        ("tree_sitter", ("bpfnb.language.syntax",)),
        ("dask", ("bpfnb.fleets",)),
        ("distributed", ("bpfnb.fleets",)),
    ],
)
def test_one_place_for_each_library(library: str, allowed: tuple[str, ...]) -> None:
    users = {name for name, path in modules().items() if library in {top(used) for used in imports(path)}}
    strangers = {name for name in users if not any(name == a or name.startswith(f"{a}.") for a in allowed)}
    assert not strangers
    if library != "bcc":  # bcc is imported by path
        assert users


def test_a_cell_is_read_once_on_each_side() -> None:
    """Others are given the Cell. rewrite reads where its caller has not; clashes, in a process of its own."""
    readers = {name for name, path in modules().items() if "bpfnb.language.scan" in imports(path)}
    assert readers == {
        "bpfnb.language.program",
        "bpfnb.tracer.compile.headers.clashes",
        "bpfnb.tracer.compile.loader",
        "bpfnb.tracer.compile.rewrite",
    }


def test_importing_bpfnb_brings_neither_bcc_nor_the_widgets() -> None:
    heavy = ("bcc", "ipywidgets", "matplotlib", "IPython", "dask", "distributed", "duckdb", "polars")
    code = f"import bpfnb, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_public_names_are_these() -> None:
    import bpfnb

    assert sorted(bpfnb.__all__) == [
        "AttachError",
        "BpfnbError",
        "CompileError",
        "Host",
        "InternalError",
        "MapError",
        "PrivilegeError",
        "ProgramError",
        "Session",
        "SetupError",
        "TracerDied",
        "UnknownName",
        "UnsupportedError",
        "VerifierError",
        "compare",
        "count",
        "doctor",
        "fleet",
        "hist",
        "latency",
        "live",
        "probes",
        "rows",
        "sessions",
        "stacks",
        "stats",
        "stop_all",
        "tools",
        "trace",
    ]
    assert all(hasattr(bpfnb, name) for name in bpfnb.__all__)
