"""The pages that show a panel: which of them can be seen, and what each has drawn."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bpfnb.views.live.widget import PageMessage

__all__ = ["Pages"]

IN_FLIGHT = 8  # frames sent beyond the last one that a page has drawn; it says so of every fourth
SILENCE = 10.0  # seconds without a word that was due: the page is gone without saying so
_MAX_PAGES = 32


@dataclass
class _Page:
    drawn: int
    visible: bool = True
    waiting_since: float | None = None  # it owes us a word since then


class Pages:
    """What is known of the pages. ``heard_of``: whether there has ever been one."""

    def __init__(self) -> None:
        self._pages: dict[str, _Page] = {}
        self.heard_of = False

    def hear(self, message: PageMessage, newest: int) -> None:
        """Take a page's message. ``newest``: the number of the newest frame."""
        self.heard_of = True
        if message.gone:
            self._pages.pop(message.page, None)
            return
        page = self._pages.get(message.page)
        if page is None:
            if len(self._pages) >= _MAX_PAGES:
                self._pages.pop(next(iter(self._pages)))
            page = self._pages[message.page] = _Page(newest)
        page.waiting_since = None
        if message.visible is not None:
            page.visible = message.visible
        if message.ready:
            page.drawn = newest
        if message.ack is not None:
            page.drawn = max(page.drawn, min(message.ack, newest))

    def visible(self) -> bool:
        """Return whether the panel can be seen anywhere."""
        return any(page.visible for page in self._pages.values())

    def follow(self, newest: int) -> bool:
        """Return whether the visible pages have drawn enough to be sent another frame; forget those that are silent."""
        now = time.monotonic()
        behind = [name for name, page in self._pages.items() if page.visible and newest - page.drawn >= IN_FLIGHT]
        for name in behind:
            page = self._pages[name]
            page.waiting_since = page.waiting_since or now
            if now - page.waiting_since > SILENCE:
                del self._pages[name]
        return not behind
