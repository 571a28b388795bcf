"""The line of a notebook or a script that a call came from. A cell that is run again has the same.

Of several calls on a line, as in ``with bpfnb.count(...) as a, bpfnb.count(...) as b``, each is one, from the left.

ipykernel and IPython compile every cell as a file of its own, whose name changes with the text or the count; a
notebook's front end names the cell in the request (``metadata.cellId``: JupyterLab 3.3, Notebook 7, VS Code).
"""

from __future__ import annotations

import dis
import inspect
import linecache
import sys
from collections.abc import Hashable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

__all__ = ["Origin", "origin", "stack_level"]

_OURS = ("bpfnb", "magics")
_CALLS = {number for number, name in enumerate(dis.opname) if name.startswith("CALL")}


class Origin(NamedTuple):
    """A line. ``notebook``: whether it is in a cell. ``key``: equal for equal lines; None where no line is known."""

    notebook: bool
    key: Hashable


def origin() -> Origin:
    """Return where bpfnb was called from: the line of the cell or module, and the calls from there to bpfnb.

    A helper called from two lines is two origins, a loop is one. Lines of functions count from the function's first, so
    that a cell changed elsewhere is still the same.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame and str(frame.f_globals.get("__name__")).partition(".")[0] in _OURS:
        frame = frame.f_back
    calls: list[Hashable] = []
    while frame and frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # a function's; a module or a cell has it not
        code = frame.f_code
        place = code.co_filename if _is_file(code.co_filename) else ""
        calls.append((place, code.co_name, frame.f_lineno - code.co_firstlineno, _nth_call(frame)))
        frame = frame.f_back
    if frame is None:  # in a thread
        return Origin(False, tuple(calls))
    cell = "" if _is_file(frame.f_code.co_filename) else _cell(frame)
    where = cell or (frame.f_code.co_filename if _is_file(frame.f_code.co_filename) else None)
    return Origin(bool(cell), where and (where, frame.f_lineno, _nth_call(frame), *calls))


def stack_level() -> int:
    """Return the ``stacklevel`` that has a warning of our caller's name the line that bpfnb was called from."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and str(frame.f_globals.get("__name__")).partition(".")[0] in _OURS:
        level, frame = level + 1, frame.f_back
    return level


def _nth_call(frame: FrameType) -> int:
    """Return which of the calls that begin on its line a frame is in, from the left; 0 where that is not known.

    Not the column, which changes with what stands before it. Python knows columns from 3.11 on.
    """
    positions = list(getattr(frame.f_code, "co_positions", list)())
    if not positions or frame.f_lasti < 0:
        return 0
    line, _, here, _ = positions[frame.f_lasti // 2]
    operations = frame.f_code.co_code[::2]
    columns = {
        column for (start, _, column, _), operation in zip(positions, operations, strict=False)
        if start == line and operation in _CALLS and column is not None
    }  # fmt: skip
    return sorted(columns).index(here) if here in columns else 0


def _is_file(name: str) -> bool:
    return not name.startswith("<") and Path(name).is_file()


def _cell(frame: FrameType) -> str:
    """Return the id of a frame's cell in the notebook, else the cell's text; "" where neither is known."""
    get_ipython = frame.f_globals.get("get_ipython")
    shell = get_ipython() if callable(get_ipython) else None
    if shell is None:
        return ""
    return f"id {cell_id}" if (cell_id := _cell_id(shell)) else "".join(linecache.getlines(frame.f_code.co_filename))


def _cell_id(shell: Any) -> str:
    """Return the id that the front end gave the running cell; "" where it gave none."""
    get_parent = getattr(shell, "get_parent", None)  # ipykernel's shell has it, IPython's has not
    request = get_parent() if callable(get_parent) else {}
    metadata = request.get("metadata") if isinstance(request, dict) else None
    cell_id = metadata.get("cellId") if isinstance(metadata, dict) else None
    return cell_id if isinstance(cell_id, str) else ""
