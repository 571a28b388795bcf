"""The ready-made tools of a host: ``host.tools.opensnoop()``, and ``host.tools`` as a table."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.resources import files
from typing import Any

import pandas as pd

from bpfnb.errors import near_or_all
from bpfnb.results.columns.text import text_dtype
from bpfnb.session import Session
from bpfnb.tools.describe import documentation, signature
from bpfnb.tools.tool import Starter, Tool

__all__ = ["Toolbox", "find", "names"]

# One folder a subject, one module a tool: the folders are the list.
_SUBJECTS = ("process", "file", "block", "sched", "net", "memory")


def names() -> dict[str, str]:
    """Return the tools' names, in alphabetical order, and the subject of each."""
    found = {}
    for subject in _SUBJECTS:
        folder = files("bpfnb.tools") / subject
        if folder.is_dir():
            modules = (entry.name for entry in folder.iterdir() if entry.name.endswith(".py"))
            found.update({name[:-3]: subject for name in modules if not name.startswith("_")})
    return dict(sorted(found.items()))


def find(name: str) -> Tool:
    """Return a tool by its name. AttributeError, with near names, where there is none."""
    known = names()
    if name not in known:
        raise AttributeError(f"there is no tool {name!r}{near_or_all(name, dict.fromkeys(known))}")
    tool: Tool = import_module(f"bpfnb.tools.{known[name]}.{name}").TOOL
    return tool


class Toolbox:
    """The ready-made tools. Each is a function that starts it and returns the running session."""

    def __init__(self, host: Starter) -> None:
        self._host = host

    def __getattr__(self, name: str) -> Callable[..., Session]:
        if name.startswith("_"):
            raise AttributeError(name)
        return _starter(find(name), self._host)

    def __dir__(self) -> list[str]:
        return list(names())

    @property
    def _df(self) -> pd.DataFrame:
        rows: list[dict[str, Any]] = [
            {"tool": name, "subject": subject, "shows": find(name).summary} for name, subject in names().items()
        ]
        return pd.DataFrame(rows, dtype=text_dtype())

    def __repr__(self) -> str:
        return str(self._df.to_string(index=False, max_colwidth=100))

    def _repr_html_(self) -> str:
        return str(self._df.to_html(index=False))


def _starter(tool: Tool, host: Starter) -> Callable[..., Session]:
    def start(**options: Any) -> Session:
        return tool.start(host, **options)

    start.__name__ = start.__qualname__ = tool.name
    start.__module__ = "bpfnb.tools"
    start.__doc__ = documentation(tool)
    start.__signature__ = signature(tool, host)  # type: ignore[attr-defined]
    return start
