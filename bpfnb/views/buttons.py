"""The buttons of a session's card: a small widget beside the card's HTML."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import traitlets

from bpfnb.views.live.pages import Pages
from bpfnb.views.live.widget import VIEW_MIMETYPE, DirectComm, PanelWidget
from bpfnb.views.notebook import Bundle

__all__ = ["Buttons"]

_BUNDLE = Path(__file__).parent / "static" / "card.js"


class Buttons(PanelWidget):
    """Stop and Live. ``heard`` is called, on any thread, when a page has said something."""

    _esm = traitlets.Unicode(_BUNDLE.read_text(encoding="utf-8")).tag(sync=True)

    def __init__(self, heard: Callable[[], None], mark: str) -> None:
        super().__init__(heard, DirectComm, mark)
        self._pages = Pages()
        self._beside_cells: bool | None = None  # whether pages are heard while a cell runs; not known at first
        self._updates = 0

    def bundle(self) -> Bundle:
        return {VIEW_MIMETYPE: self.view(), "text/plain": ""}

    def asked(self) -> str:
        """Take the pages' messages; return what they ask for: "stop", "live" or ""."""
        asked = ""
        while not self.inbox.empty():
            message, self._beside_cells = self.inbox.get_nowait()
            self._pages.hear(message, self._updates)
            asked = message.do or asked
        return asked

    def updated(self) -> None:
        """Tell the pages that the card was updated: they acknowledge it."""
        self._updates += 1
        self.send({"frame": self._updates})

    def follow(self, in_cell: bool) -> bool:
        """Return whether the card is worth an update: somewhere it is seen, and what was sent before has arrived. Where
        no page has ever been, the notebook's file alone gets them."""
        if not self._pages.heard_of:
            return True
        blind = in_cell and not self._beside_cells
        return self._pages.visible() and (blind or self._pages.follow(self._updates))
