"""A panel in an empty page: the bundle, a stand-in for anywidget's model, and real messages of the Python side.

    page = PanelPage(browser)                 # the fixture ``panel_page``
    shown = page.show(views, sessions)        # a real Panel, whose messages go to the page, and back
    page.until(lambda: page.text(".bpfnb-title") == "clones")

``pump`` carries what waits on either side; ``until`` and ``rest`` pump.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from browsing import wait_until
from comm.base_comm import BaseComm

import bpfnb
from bpfnb.views import refresh
from bpfnb.views.live.panel import Panel

__all__ = ["PanelPage", "Wire"]

BUNDLE = Path(bpfnb.__file__).parent / "views" / "static" / "panel.js"
_MODEL = """() => {
window.sent = []; window.listeners = {};
window.model = {
  get: (name) => window.state[name],
  on: (name, heard) => (window.listeners[name] ??= []).push(heard),
  off: (name, heard) => (window.listeners[name] = (window.listeners[name] ?? []).filter((one) => one !== heard)),
  send: (content) => window.sent.push(content),
};
window.feed = (content, buffers) => {
  const views = buffers.map((text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer));
  for (const heard of window.listeners["msg:custom"] ?? []) heard(content, views);
};
window.open_panel = async (state) => {
  window.state = state;
  const url = URL.createObjectURL(new Blob([state._esm], { type: "text/javascript" }));
  const { default: widget } = await import(url);
  window.close_panel = widget.render({ model: window.model, el: document.getElementById("here") });
};
}"""


class Wire(BaseComm):
    """A comm that keeps what is sent: ``messages`` as (content, buffers), ``bytes`` as they would travel."""

    def __init__(self, **options: Any) -> None:
        self.messages: list[tuple[dict[str, Any], list[bytes]]] = []
        self.state: dict[str, Any] = options["data"]["state"]
        self.bytes = self.count = 0
        self.closed = False
        super().__init__(**options)

    def publish_msg(
        self, msg_type: str, data: Any = None, metadata: Any = None, buffers: Any = None, **keys: Any
    ) -> None:
        self.closed |= msg_type == "comm_close"
        if msg_type == "comm_msg" and data["method"] == "custom":
            kept = [bytes(buffer) for buffer in buffers or []]
            self.count += 1
            self.bytes += len(json.dumps(data["content"])) + sum(map(len, kept))
            self.messages.append((data["content"], kept))

    def receive(self, content: Any) -> None:
        self.handle_msg({"content": {"data": {"method": "custom", "content": content}}, "buffers": []})


class PanelPage:
    """A page with one panel on it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.wire: Wire | None = None
        page.goto("about:blank")
        page.set_content('<!doctype html><body style="margin: 16px"><div id="here"></div></body>')
        page.evaluate(_MODEL)

    def show(self, views: Sequence[Any], sessions: Sequence[Any]) -> Panel:
        """Make a panel of views and put it on the page."""
        panel = Panel(sessions, views, self._connect)
        self.attach()
        refresh.add(panel)
        return panel

    def attach(self) -> None:
        """Load the bundle into the page, as a page that is opened or opened again does."""
        assert self.wire
        self.page.evaluate("state => window.open_panel(state)", self.wire.state)

    def pump(self) -> None:
        """Carry messages from the page to Python, and back."""
        assert self.wire
        for content in self.page.evaluate("window.sent.splice(0)"):
            self.wire.receive(content)
        while self.wire.messages:
            content, buffers = self.wire.messages.pop(0)
            texts = [base64.b64encode(buffer).decode() for buffer in buffers]
            self.page.evaluate("([content, buffers]) => window.feed(content, buffers)", [content, texts])

    def rest(self, seconds: float = 0.05) -> None:
        """Let both sides work for a while."""
        end = time.monotonic() + seconds
        while True:
            self.pump()
            if time.monotonic() >= end:
                return
            self.page.wait_for_timeout(50)

    def until(self, happened: Callable[[], object], seconds: float = 10, what: str = "it does not happen") -> None:
        wait_until(happened, seconds, lambda: what, self.rest)

    def text(self, selector: str) -> str:
        found = self.page.locator(selector)
        return str(found.first.inner_text()).strip() if found.count() else ""

    def _connect(self, **options: Any) -> Wire:
        self.wire = Wire(**options)
        return self.wire
