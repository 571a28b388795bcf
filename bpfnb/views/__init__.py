"""What a person sees: cards, panels, plots. Sole importer of anywidget and matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bpfnb.views.card import Carded
    from bpfnb.views.flamegraph import FlameGraph

__all__ = ["flame", "show_card"]


def show_card(session: Carded, seconds: float | None = None, *, result: bool = False, live: bool = False) -> bool:
    """Show a session's card in the cell being run; False where there is no notebook. See views.card.show."""
    from bpfnb.views.card import show

    return show(session, seconds, result=result, live=live)


def flame(source: Any, *arguments: Any, **options: Any) -> FlameGraph:
    """Make a flame graph: see bpfnb.views.flamegraph.flame."""
    from bpfnb.views.flamegraph import flame as made

    return made(source, *arguments, **options)
