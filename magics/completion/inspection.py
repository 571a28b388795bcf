"""Shift-Tab in a %%bpf cell.

ipykernel answers Shift-Tab, and the panel beside the completer, with its kernel object's ``do_inspect``, which reads
the cell as Python and gives the shell nothing but a name. So the one kernel object of this process gets a
``do_inspect`` of its own, in front of its class's; no class is changed. Cells that are not %%bpf go on to what was
there before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from .explaining import explain
from .matching import cell_of

__all__ = ["install", "remove"]


class _Inspect:
    """A ``do_inspect`` that explains %%bpf cells. ``before``: answers for all others."""

    def __init__(self, before: Callable[..., Any], own: bool) -> None:
        self.before, self.own = before, own

    def __call__(self, code: str, cursor_pos: int, detail_level: int = 0, omit_sections: Collection[str] = ()) -> Any:
        if not cell_of(code):
            return self.before(code, cursor_pos, detail_level, omit_sections)
        found = explain(code, cursor_pos)
        data = found.bundle() if found else {}
        return {"status": "ok", "found": bool(found), "data": data, "metadata": {}}


def install(shell: InteractiveShell) -> None:
    kernel = getattr(shell, "kernel", None)  # a shell in a terminal has none
    if kernel is None or isinstance(vars(kernel).get("do_inspect"), _Inspect):
        return
    kernel.do_inspect = _Inspect(kernel.do_inspect, own="do_inspect" in vars(kernel))


def remove(shell: InteractiveShell) -> None:
    kernel = getattr(shell, "kernel", None)
    if kernel is None or not isinstance(ours := vars(kernel).get("do_inspect"), _Inspect):
        return
    if ours.own:
        kernel.do_inspect = ours.before
    else:
        del kernel.do_inspect
