"""The doctor: a table of what tracing needs on a machine, what was found, and the remedy for what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shlex
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, overload

import msgspec

from bpfnb.errors import BpfnbError, PrivilegeError, TracerDied
from bpfnb.host import ways
from bpfnb.host.tracer import Tracer
from bpfnb.protocol.messages import Check
from bpfnb.session import Session
from bpfnb.views.notebook import notebook

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Report", "examine", "examine_there", "without_tracer"]

LEVELS = ("required", "optional", "info")

_CELL = 'int bpfnb_doctor(void *ctx) { bpf_trace_printk("seen\\n"); return 0; }'
_SILENT_CELL = "int bpfnb_doctor(void *ctx) { return 0; }"
_THERE = "BPF_ARRAY(calls, u64, 1); int bpfnb_doctor(void *ctx) { calls.increment(0); return 0; }"
_ALONE = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
runpy.run_module("bpfnb.tracer.doctor.checks", run_name="__main__")
"""
_ALONE_TIMEOUT = 30  # seconds; a machine that is emulated takes a good part of it

# The packages whose version matters, and why.
_PACKAGES = {
    "ipykernel": "it runs the notebook, and 7.0 breaks widgets that change by themselves",
    "ipywidgets": "the live panel is made of it",
    "pandas": "all results are its DataFrames",
    "matplotlib": "it draws the plots",
    "pyarrow": "it holds the strings of DataFrames",
}
_WIDGETS = Path("share/jupyter/labextensions/@jupyter-widgets/jupyterlab-manager/package.json")


class Report(Sequence[Check]):
    """The doctor's rows, the required ones first. A notebook shows it as a table.

    ``ok``    whether tracing works: whether every required row is as it should be
    ``rows``  one a fact: .name, .level ("required", "optional", "info"), .state ("ok", "missing", "unknown"), .found,
              .remedy ("" where there is none to give)
    ``df``    the same as a DataFrame
    """

    def __init__(self, rows: Sequence[Check]) -> None:
        self.rows = tuple(sorted(rows, key=lambda row: LEVELS.index(row.level)))

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.rows if row.level == "required")

    @property
    def df(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(self.records(), columns=["name", "level", "state", "found", "remedy"])

    def records(self) -> list[dict[str, str]]:
        """Return the rows as plain dictionaries."""
        names = ("name", "level", "state", "found", "remedy")
        return [{name: getattr(row, name) for name in names} for row in self.rows]

    @overload
    def __getitem__(self, index: int) -> Check: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Check, ...]: ...
    def __getitem__(self, index: int | slice) -> Check | tuple[Check, ...]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        from bpfnb.views.html import checks_text

        return checks_text(self.rows)

    def _repr_html_(self) -> str:
        from bpfnb.views.html import checks_table

        return checks_table(self.rows)


def examine(
    connect: Callable[[], Tracer],
    trace: Callable[..., Session],
    alone: Callable[[BpfnbError], list[Check]] | None = None,
) -> Report:
    """Find out whether a host can trace: see ``Host.doctor``.

    ``connect``, ``trace``: the host's. ``alone``: what gives the rows about the machine where there is no tracer.
    """
    return Report([*_machine(connect, partial(_first_trace, trace), alone or without_tracer), *_python()])


def examine_there(
    connect: Callable[[], Tracer], trace: Callable[..., Session], alone: Callable[[], list[Check]]
) -> Report:
    """Find out whether another host can trace: see ``Host.doctor``. ``alone``: what gives the rows about it where it
    has no tracer; it may raise a BpfnbError."""

    def rows(error: BpfnbError) -> list[Check]:
        try:
            return alone()
        except (BpfnbError, OSError, subprocess.SubprocessError, msgspec.MsgspecError):
            return [Check("machine", "required", False, "could not be looked at", known=False)]

    return Report(_machine(connect, partial(_first_trace_there, connect, trace), rows))


# --- the machine --------------------------------------------------------------------------------------------------


def _machine(
    connect: Callable[[], Tracer], first: Callable[[], tuple[bool, str]], alone: Callable[[BpfnbError], list[Check]]
) -> list[Check]:
    try:
        tracer = connect()
        hello = tracer.hello()
        rows = tracer.run_checks()
    except BpfnbError as error:
        return [_failed("tracer", error), *alone(error)]
    started = Check("tracer", "required", True, f"runs as process {hello.pid}, with bcc {hello.bcc}")
    return [started, _traced(first), Check("way to the tracer", "info", True, tracer.reached), *rows]


def _failed(name: str, error: BpfnbError) -> Check:
    """Return the row of something required that failed; of a tracer that died, with its last line of output."""
    last = error.output.strip().splitlines()[-1:] if isinstance(error, TracerDied) else []
    return Check(name, "required", False, ": ".join([str(error), *last]), error.hint or "")


def _traced(first: Callable[[], tuple[bool, str]]) -> Check:
    begun = time.monotonic()
    try:
        ok, found = first()
    except BpfnbError as error:
        return _failed("a first trace", error)
    return Check("a first trace", "required", ok, f"{found}, in {time.monotonic() - begun:.2f} s")


def _first_trace(trace: Callable[..., Session]) -> tuple[bool, str]:
    """Compile, load and attach a cell; return whether it delivers a call of ours, and that in words."""
    attached = "a cell was compiled and attached to getpgid"
    try:
        rows = _rows_of(_CELL, trace)
    except PrivilegeError:  # this user's programs may not print, but may trace
        _rows_of(_SILENT_CELL, trace)
        return True, attached
    return rows > 0, f"{attached}, and {'saw' if rows else 'did not see'} a call of it"


def _first_trace_there(connect: Callable[[], Tracer], trace: Callable[..., Session]) -> tuple[bool, str]:
    """The same on another host: of a call that its tracer makes to answer us."""
    tracer = connect()
    attached = "a cell was compiled and attached to sendmsg"
    with trace(_THERE, name="bpfnb_doctor", attach={"syscall:sendmsg": "bpfnb_doctor"}, pid=tracer.hello().pid) as seen:
        tracer.ping()
    rows = seen.maps["calls"][0]
    return rows > 0, f"{attached}, and {'saw' if rows else 'did not see'} a call of it"


def _rows_of(cell: str, trace: Callable[..., Session]) -> int:
    """Trace a call that we make; return the number of rows, those of other processes included."""
    with trace(cell, name="bpfnb_doctor", attach={"syscall:getpgid": "bpfnb_doctor"}) as running:
        os.getpgid(0)
    return running.snapshot().rows


def without_tracer(error: BpfnbError, code: str = _ALONE, choose: Callable[[], ways.Way] = ways.choose) -> list[Check]:
    """Return the rows about the machine without a tracer, from a process with the most rights there are.

    ``error``: why there is no tracer. ``code``: what that process runs. ``choose``: how a tracer would be reached.
    """
    if sys.platform != "linux":
        return []  # that is what the error says
    python = [sys.executable, "-I", "-c", code, str(Path(__file__).parent.parent)]
    commands = [python]
    with suppress(BpfnbError):
        if not isinstance(error, PrivilegeError) and choose().kind == "sudo":
            commands.insert(0, ["sudo", "-n", "--", *python])
    for command in commands:
        with suppress(OSError, subprocess.SubprocessError, msgspec.MsgspecError):
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_ALONE_TIMEOUT, check=True
            )
            return msgspec.json.decode(done.stdout, type=list[Check])
    return [Check("machine", "required", False, "could not be looked at", known=False)]


# --- Python and Jupyter -------------------------------------------------------------------------------------------


def _python() -> Iterator[Check]:
    wanted = _requirements()
    for name, why in _PACKAGES.items():
        yield _package(name, wanted.get(name, ""), why)
    server = _server()
    yield _front_ends(server)
    yield _widgets(server, in_notebook=notebook() is not None)
    yield from _impostor()
    yield Check("Python", "info", True, f"{platform.python_version()}, {sys.executable}")


def _requirements() -> dict[str, str]:
    """Return what bpfnb asks of other packages: name to versions, such as "!=7.0.*,>=6.29"."""
    from packaging.requirements import Requirement  # here: most sessions need no doctor

    found: dict[str, str] = {}
    for requirement in map(Requirement, importlib.metadata.requires("bpfnb") or []):
        found.setdefault(requirement.name, str(requirement.specifier))
    return found


def _package(name: str, wanted: str, why: str) -> Check:
    """Return the row of a package. ``wanted``: its versions; ``why``: what they are needed for."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "optional", False, f"is not installed; {why}", _install(f"{name}{wanted}"))
    if _fits(version, wanted):
        return Check(name, "optional", True, version)
    found = f"{version}, but bpfnb needs {wanted}; {why}"
    return Check(name, "optional", False, found, _install(f"{name}{wanted}"))


def _fits(version: str, wanted: str) -> bool:
    """Return whether a version is among those wanted. One that follows no rules is somebody's own build, and is."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    try:
        return SpecifierSet(wanted).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return True


def _install(requirement: str) -> str:
    """Return the command that installs a package for this Python; "" where none is certain."""
    quoted = shlex.quote(requirement)
    if Path(sys.prefix, "conda-meta").is_dir():
        return f"conda install -p {shlex.quote(sys.prefix)} -c conda-forge {quoted}"
    if sys.prefix == sys.base_prefix and Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists():
        return "make a virtual environment for Jupyter and bpfnb: the distribution keeps pip out of its Python"
    if importlib.util.find_spec("pip"):
        return f"{shlex.quote(sys.executable)} -m pip install {quoted}"
    return f"uv pip install --python {shlex.quote(sys.executable)} {quoted}"


def _front_ends(server: Path | None) -> Check:
    """Return the row of the notebook front ends that are installed with the server, or here."""
    prefix = server or Path(sys.prefix)
    places = [str(place) for place in prefix.glob("lib/python3*/site-packages")]
    found = {
        name: package.version
        for name in ("jupyterlab", "notebook", "voila")
        for package in importlib.metadata.distributions(name=name, path=places)
    }
    versions = ", ".join(f"{name} {version}" for name, version in found.items())
    return Check("Jupyter", "info", bool(found), versions or f"none seen in {prefix}", known=bool(found))


def _widgets(server: Path | None, *, in_notebook: bool) -> Check:
    """Return the row on whether pages show the live panel. JupyterLab needs an extension beside its server."""
    version = _extension(server or Path(sys.prefix))
    installed = f"JupyterLab's widget extension {version} is installed" if version else ""
    if not in_notebook:
        found = "; ".join(filter(None, ("no notebook runs here", installed)))
        return Check("widgets", "info", bool(version), found, known=bool(version))
    if not server:
        found = "; ".join(filter(None, ("it is not seen which server shows the notebook", installed)))
        return Check("widgets", "info", bool(version), found, known=bool(version))
    if version:
        return Check("widgets", "optional", True, f"{installed}, with the server in {server}")
    remedy = f"{shlex.quote(str(server / 'bin/python'))} -m pip install jupyterlab_widgets"
    return Check("widgets", "optional", False, f"the server in {server} lacks JupyterLab's widget extension", remedy)


def _server() -> Path | None:
    """Return where the Jupyter server that started this kernel is installed; None where that cannot be seen."""
    try:
        words = Path("/proc", os.environ["JPY_PARENT_PID"], "cmdline").read_bytes().split(b"\0")
    except (KeyError, OSError):
        return None
    interpreter = Path(os.fsdecode(words[0]))
    is_server = interpreter.is_absolute() and any(b"jupyter" in word for word in words[1:3])
    return interpreter.parent.parent if is_server else None


def _extension(prefix: Path) -> str:
    """Return the version of JupyterLab's widget extension in an installation; "" where there is none."""
    with suppress(OSError, msgspec.MsgspecError, AttributeError):
        return str(msgspec.json.decode((prefix / _WIDGETS).read_bytes()).get("version", "of some version"))
    return ""


def _impostor() -> Iterator[Check]:
    """Yield a row where PyPI's package bcc is installed: another project, which bpfnb does not import."""
    for folder in sys.path:
        package = Path(folder, "bcc")
        if (package / "__init__.py").exists() and not (package / "libbcc.py").exists():
            found = f"installed in {folder}: another project than iovisor's bcc, and not used"
            remedy = f"{shlex.quote(sys.executable)} -m pip uninstall bcc"
            yield Check("bcc of PyPI", "info", False, found, remedy)
            return
