"""bpfnb: explore a live Linux kernel from a Jupyter notebook.

    %load_ext bpfnb

    %%bpf clones -a syscall:clone=hello
    int hello(void *ctx) { bpf_trace_printk("my bcc program\\n"); return 0; }

    clones.df.tail()
    clones.live()

The same without magics: ``session = bpfnb.trace(source, name="clones", attach={"syscall:clone": "hello"})``.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from importlib.util import find_spec as _find_spec
from typing import Any as _Any

from bpfnb.comparison import compare
from bpfnb.errors import (
    AttachError,
    BpfnbError,
    CompileError,
    InternalError,
    MapError,
    PrivilegeError,
    ProgramError,
    SetupError,
    TracerDied,
    UnknownName,
    UnsupportedError,
    VerifierError,
)
from bpfnb.fleets import fleet
from bpfnb.hosts import Host
from bpfnb.hosts import default_host as _default_host
from bpfnb.opening import open as open
from bpfnb.session import Session
from bpfnb.views import events as _events  # noqa: F401  (registers df.bpf)

__all__ = [
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

__version__ = _version("bpfnb")

trace = _default_host.trace
count = _default_host.count
stats = _default_host.stats
hist = _default_host.hist
latency = _default_host.latency
rows = _default_host.rows
stacks = _default_host.stacks
sessions = _default_host.sessions
stop_all = _default_host.stop_all
probes = _default_host.probes
doctor = _default_host.doctor
live = _default_host.live
tools = _default_host.tools


def __dir__() -> list[str]:
    """What completion offers: not the modules that were imported on the way."""
    return sorted([*__all__, "open", "load_ipython_extension", "unload_ipython_extension"])


def load_ipython_extension(shell: _Any) -> None:
    """%load_ext bpfnb: the magics, and a tracer that warms up while the person types."""
    _magics().register(shell)


def unload_ipython_extension(shell: _Any) -> None:
    """%unload_ext bpfnb: every session stopped, the tracer ended, the magics gone."""
    _magics().unregister(shell)


def _magics() -> _Any:
    """Return the magics: bpfnb.magics where bpfnb is installed, the folder magics beside bpfnb in a checkout."""
    return _import_module("bpfnb.magics" if _find_spec("bpfnb.magics") else "magics")
