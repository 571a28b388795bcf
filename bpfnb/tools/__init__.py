"""Ready-made tools: a folder a subject, a file a tool. ``bpfnb.tools`` is the default host's ``Toolbox``.

``from bpfnb.tools import opensnoop`` imports the tool of the default host.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from bpfnb.tools import toolbox


def __getattr__(name: str) -> Any:
    if name not in toolbox.names():  # such as a module that is about to be imported
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("bpfnb").tools, name)
