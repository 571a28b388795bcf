"""What a person sees: cards, panels, plots. Sole importer of ipywidgets and matplotlib."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bpfnb.errors import ProgramError
from bpfnb.interrupts import uninterrupted

if TYPE_CHECKING:
    from bpfnb.views.card import Carded
    from bpfnb.views.flamegraph import FlameGraph
    from bpfnb.views.panel import Panel
    from bpfnb.views.pictures import Traced

__all__ = ["flame", "live", "show_card"]


def live(*sessions: Traced, by: str | None = None) -> Panel:
    """Show sessions in one panel: events per second over the last minute, totals, Pause and Stop.

    A line for each session, or with ``by`` for each value of that column ("comm", "pid", ...), the small ones summed
    as "other". The panel ends with its sessions and leaves its last picture in the notebook.

    ProgramError for no session, something that is none, or a session without output; ValueError for an unknown column.
    """
    if not sessions:
        raise ProgramError("live() needs a session: bpfnb.live(clones)")
    for session in sessions:
        if not all(hasattr(session, name) for name in ("name", "state", "snapshot", "meter", "stop")):
            raise ProgramError(f"live() shows sessions, not {type(session).__name__}")
    return _show()(sessions, by=by)


def show_card(session: Carded, seconds: float | None = None, *, result: bool = False) -> bool:
    """Show a session's card in the cell being run; False where there is no notebook. See views.card.show."""
    from bpfnb.views.card import show

    return show(session, seconds, result=result)


def flame(source: Any, *arguments: Any, **options: Any) -> FlameGraph:
    """Make a flame graph: see bpfnb.views.flamegraph.flame."""
    from bpfnb.views.flamegraph import flame as made

    return made(source, *arguments, **options)


@uninterrupted
def _show() -> Callable[..., Panel]:
    # Here and not above: ipywidgets and matplotlib take most of a second to import, and most sessions need neither.
    # Not on the main thread: an import of matplotlib that Ctrl-C interrupts cannot be repeated.
    from bpfnb.views.panel import show

    return show
