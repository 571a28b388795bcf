"""Live views: a panel, the views on it, and the thread that keeps them up to date."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bpfnb.interrupts import uninterrupted

if TYPE_CHECKING:
    from bpfnb.views.live.panel import Panel
    from bpfnb.views.notebook import DisplayHandle, Notebook

__all__ = ["live", "open_below"]


def live(*things: Any, by: str | None = None, output: str | None = None, window: float = 60.0) -> Panel:
    """Show sessions in one panel, live: events per second, and whatever views were asked for with ``session.view``.

    ``things``   sessions, which share one picture of rates: a line each, or with ``by`` a line for each value of that
                 column ("comm", "pid", ...), the small ones summed as "other"; and views: ``session.view("heatmap",
                 "latency")``
    ``output``   an output's name, of the sessions
    ``window``   seconds that are shown

    The panel has Pause and Stop, ends with its sessions, and leaves pictures in the notebook.

    ProgramError for nothing, something that is no session, or a session without output; ValueError for an unknown
    column.
    """
    specs_of, show = _imported()
    return show(specs_of(things, by, output, window))


def open_below(
    session: Any, where: Notebook, cell: int, cell_id: str | None, slots: Sequence[DisplayHandle], mark: str
) -> Panel:
    """Show a session's panel in two outputs of a cell that may have run long ago, which its card has kept for it.

    ``mark``: in the class of the panel's element. Raises what ``live`` does.
    """
    from bpfnb.views.below import Below

    specs_of, show = _imported()
    specs = specs_of([session])
    views = [group for group in specs if group[0].kind != "counters"]  # the card has these numbers
    return show(views or specs, Below(where, cell, cell_id, slots[0], slots[1]), mark)


@uninterrupted
def _imported() -> tuple[Callable[..., Any], Callable[..., Panel]]:
    # Here and not above: ipywidgets and matplotlib take most of a second to import, and most sessions need neither.
    # Not on the main thread: an import of matplotlib that Ctrl-C interrupts cannot be repeated.
    from bpfnb.views.live.panel import show
    from bpfnb.views.live.specs import specs_of

    return specs_of, show
