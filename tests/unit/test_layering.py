"""The house's one direction of imports, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from bpfnb import release

ROOT = Path(__file__).parents[2]

# Lower layers first: a module imports only from its own layer's left.
NOTEBOOK_SIDE = [
    {"bpfnb.errors", "bpfnb.origins", "bpfnb.release", "bpfnb.interrupts"},
    {"bpfnb.schema", "bpfnb.cell", "bpfnb.memory", "bpfnb.cflags"},
    {"bpfnb.includes"},
    {"bpfnb.program"},
    {"bpfnb.protocol", "bpfnb.columns", "bpfnb.padding"},
    {"bpfnb.frames", "bpfnb.refusals", "bpfnb.cost", "bpfnb.ways"},
    {"bpfnb.store", "bpfnb.client", "bpfnb.stacks", "bpfnb.accessor", "bpfnb.baseline"},
    {"bpfnb.maps"},
    {"bpfnb.views"},
    {"bpfnb.session", "bpfnb.doctor", "bpfnb.setup"},
    {"bpfnb"},
    {"bpfnb.testing", "bpfnb.__main__"},
    {"magics"},
]
SHARED = {f"bpfnb.{name}" for name in release.SHARED}


def modules() -> dict[str, Path]:
    found = {}
    for path in [*ROOT.glob("bpfnb/**/*.py"), *ROOT.glob("magics/**/*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, *, lazy: bool = True) -> set[str]:
    """The modules a file names in imports; without ``lazy`` only those that run when it is imported."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in ast.walk(tree) if lazy else _at_import(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            # "from bpfnb import client" is about bpfnb.client, not about what bpfnb itself offers.
            found |= names if names <= modules().keys() else {node.module, *names}
    return found


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


def layer(name: str) -> int:
    for number, members in enumerate(NOTEBOOK_SIDE):
        if name in members or (name.count(".") and any(name.startswith(f"{m}.") for m in members - {"bpfnb"})):
            return number
    raise AssertionError(f"{name} has no place in the layers: give it one in NOTEBOOK_SIDE")


@pytest.mark.parametrize("name", sorted(n for n in modules() if not n.startswith("bpfnb.tracer")))
def test_a_module_imports_only_what_lies_below_it(name: str) -> None:
    known = modules()
    for used in imports(modules()[name], lazy=False) & known.keys():
        if used == name or used.startswith("bpfnb.tracer"):
            continue
        if used == "bpfnb" and name != "bpfnb":
            assert layer(name) > layer("bpfnb"), f"{name} imports bpfnb itself"
            continue
        assert layer(used) <= layer(name), f"{name} imports {used}"


def test_the_tracer_shares_only_these_modules_with_the_notebook() -> None:
    for name, path in modules().items():
        if not name.startswith("bpfnb.tracer"):
            continue
        ours = {used for used in imports(path) if used in modules() and not used.startswith("bpfnb.tracer")}
        assert ours - {"bpfnb"} <= SHARED, name


def test_the_notebook_side_does_not_import_the_tracer() -> None:
    for name, path in modules().items():
        if name.startswith("bpfnb.tracer") or name == "bpfnb.testing":
            continue
        assert not {used for used in imports(path) if used.startswith("bpfnb.tracer")}, name


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("bcc", ("bpfnb.tracer.engine",)),
        ("ipywidgets", ("bpfnb.views",)),
        ("matplotlib", ("bpfnb.views",)),
        ("IPython", ("magics",)),
        ("tree_sitter", ("bpfnb.cell", "bpfnb.tracer.rewrite")),
    ],
)
def test_one_place_for_each_library(library: str, allowed: tuple[str, ...]) -> None:
    users = {name for name, path in modules().items() if library in {top(used) for used in imports(path)}}
    strangers = {name for name in users if not any(name == a or name.startswith(f"{a}.") for a in allowed)}
    assert not strangers
    if library != "bcc":  # bcc is imported by path
        assert users


def test_importing_bpfnb_brings_neither_bcc_nor_the_widgets() -> None:
    code = "import bpfnb, sys; print([m for m in ('bcc', 'ipywidgets', 'matplotlib', 'IPython') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_public_names_are_these() -> None:
    import bpfnb

    assert sorted(bpfnb.__all__) == [
        "AttachError",
        "BpfnbError",
        "CompileError",
        "InternalError",
        "MapError",
        "PrivilegeError",
        "ProgramError",
        "Session",
        "SetupError",
        "TracerDied",
        "UnsupportedError",
        "VerifierError",
        "doctor",
        "live",
        "sessions",
        "stop_all",
        "trace",
    ]
    assert all(hasattr(bpfnb, name) for name in bpfnb.__all__)
