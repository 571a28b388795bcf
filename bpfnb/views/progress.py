"""A line that says what goes on, and is gone when it is over: in a notebook an output of the cell, in a terminal the
line that the cursor is on. In a script, and where no terminal shows it, there is none.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

from bpfnb.errors import escape, printable
from bpfnb.progress import Line
from bpfnb.views import html
from bpfnb.views.notebook import EMPTY, DisplayHandle, Notebook, notebook

__all__ = ["open_line", "place_in"]

_CLEAR = "\r\x1b[K"  # ECMA-48: erase from the cursor to the end of the line

_free: list[tuple[int, DisplayHandle]] = []  # of the cell being run: the first output whose line is gone


def open_line() -> Line | None:
    """Return a line to write on; None where nobody would see it."""
    if where := notebook():
        return _NotebookLine(where)
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    interactive = shell is not None or hasattr(sys, "ps1")
    if interactive and sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        return _TerminalLine(sys.stdout)
    return None


def place_in(where: Notebook) -> DisplayHandle | None:
    """Return an output of the cell being run whose line is gone, for something else to stand there."""
    free = [handle for cell, handle in _free if cell == where.cell]
    _free.clear()
    return free[0] if free else None


class _NotebookLine:
    def __init__(self, where: Notebook) -> None:
        self._where = where
        self._handle: DisplayHandle | None = None

    def write(self, text: str) -> None:
        bundle = {"text/html": html.line(html.muted(escape(text))), "text/plain": printable(text)}
        if self._handle:
            self._handle.replace(bundle)
        else:
            self._handle = self._where.display(bundle)

    def erase(self, left: bool = False) -> None:
        if self._handle:
            self._handle.replace(EMPTY)
            if all(cell != self._where.cell for cell, _ in _free):  # the first of this cell, and none of those before
                _free[:] = [(self._where.cell, self._handle)]
            self._handle = None


class _TerminalLine:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._shown = ""

    def write(self, text: str) -> None:
        if text != self._shown:
            self._shown = text
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(_CLEAR + printable(text)[:width])
            self._stream.flush()

    def erase(self, left: bool = False) -> None:
        if not left:
            self._stream.write(_CLEAR)
            self._stream.flush()
