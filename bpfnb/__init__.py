"""bpfnb: explore a live Linux kernel from a Jupyter notebook.

    %load_ext bpfnb

    %%bpf clones -a syscall:clone=hello
    int hello(void *ctx) { bpf_trace_printk("my bcc program\\n"); return 0; }

    clones.df.tail()
    clones.live()

The same without magics: ``session = bpfnb.trace(source, name="clones", attach={"syscall:clone": "hello"})``.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from bpfnb.doctor import doctor
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
    UnsupportedError,
    VerifierError,
)
from bpfnb.results import accessor as _accessor  # noqa: F401  (registers df.bpf)
from bpfnb.session import Session, sessions, stop_all, trace
from bpfnb.views import live

__all__ = [
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

__version__ = version("bpfnb")


def load_ipython_extension(shell: Any) -> None:
    """%load_ext bpfnb: the magics, and a tracer that warms up while the person types."""
    import magics

    magics.register(shell)


def unload_ipython_extension(shell: Any) -> None:
    """%unload_ext bpfnb: every session stopped, the tracer ended, the magics gone."""
    import magics

    magics.unregister(shell)
