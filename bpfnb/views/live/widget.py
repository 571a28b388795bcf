"""The panel's widget: one anywidget model, whose data travel as custom messages with binary buffers.

    to the page    {"frame": n, "base": m or null, "status": {...}, "views": [header or null, ...], "counts": [...]}
                   and the buffers of all views, of which ``counts`` has the number for each view
    from the page  PageMessage; each page that shows the panel has a name of its own

Messages come on whichever thread the kernel reads them on, and go into ``inbox``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any, Literal, NamedTuple
from uuid import uuid4

import anywidget
import comm
import msgspec
import traitlets
from comm.base_comm import BaseComm
from msgspec import Meta

from bpfnb.views.live.view import Part
from bpfnb.views.notebook import notebook

__all__ = ["VIEW_MIMETYPE", "Bundled", "Connect", "DirectComm", "Incoming", "PageMessage", "PanelWidget"]

VIEW_MIMETYPE = "application/vnd.jupyter.widget-view+json"
MAX_WAITING = 1_000  # messages of pages that are not read yet; what is more is dropped
_BUNDLE = Path(__file__).parents[1] / "static" / "panel.js"
_NOTHING = "export default {}"  # a bundle that draws nothing

Short = Annotated[str, Meta(max_length=16)]
Text = Annotated[str, Meta(max_length=1_000)]
Number = Annotated[int, Meta(ge=0, le=2**53)]


class PageMessage(msgspec.Struct, frozen=True):
    """What a page says. One of the fields beside ``page`` is given."""

    page: Short
    ready: bool | None = None  # it shows the panel from nothing, or has lost a frame: it needs all of it
    ack: Number | None = None  # it has drawn this frame
    visible: bool | None = None
    gone: bool | None = None
    do: Literal["stop", "pause", "resume", "live"] | None = None
    choose: Number | None = None  # a view's number, and what was chosen there
    choices: Annotated[dict[Short, Text | float | int | bool | None], Meta(max_length=16)] | None = None
    brush: tuple[float, float] | None = None


class Incoming(NamedTuple):
    """A page's message, and whether the kernel reads the page's messages while a cell runs."""

    message: PageMessage
    beside_cells: bool


Connect = Callable[..., BaseComm]


class DirectComm(BaseComm):
    """A comm of ipykernel's whose messages are handled where the page has sent them: beside a running cell, where both
    sides can do that (JupyterLab's subshells, ipykernel 7.1 or newer).

    ipykernel's own class hands them to the shell that has last sent on the comm (since 7.4, its
    ``_reply_subshell_for``), which for a thread's messages is the one that runs cells. It also has IPython's "execute"
    events fired for each message, upon which matplotlib shows the figures of a cell that is still drawing them.
    """

    def publish_msg(
        self, msg_type: str, data: Any = None, metadata: Any = None, buffers: Any = None, **keys: Any
    ) -> None:
        here = notebook()
        if here is None:
            return
        kernel = here.kernel
        content = {"data": data or {}, "comm_id": self.comm_id, **keys}
        # Of frames nobody asks which cell they belong to; of the widget itself and its state nbclient does.
        parent = {} if content["data"].get("method") == "custom" else kernel.get_parent()
        kernel.session.send(
            kernel.iopub_socket,
            msg_type,
            content,
            parent=parent,
            ident=self.topic,
            buffers=buffers,
            metadata=metadata or {},
        )

    def handle_msg(self, msg: dict[str, Any]) -> None:
        if self._msg_callback:
            self._msg_callback(msg)


class Bundled(anywidget.AnyWidget):
    """A widget that is drawn by a bundle of ours."""

    comm: Any

    def view(self) -> dict[str, Any]:
        return {"version_major": 2, "version_minor": 0, "model_id": self.model_id}

    def close(self) -> None:
        """Take the widget off the page and out of ipywidgets' registry, which holds on to every open one.

        nbclient (nbconvert --execute) writes the last state of closed widgets, too, into the notebook's file: that is
        not to be a copy of the bundle for each.
        """
        if self.comm is not None:
            self.comm.send(data={"method": "update", "state": {"_esm": _NOTHING}, "buffer_paths": []})
        layout = self.layout
        super().close()
        layout.close()


class PanelWidget(Bundled):
    """The panel on the page. ``heard`` is called, on any thread, when something has come into ``inbox``."""

    _esm = traitlets.Unicode(_BUNDLE.read_text(encoding="utf-8")).tag(sync=True)
    mark = traitlets.Unicode().tag(sync=True)  # in the class of the panel's element, for the static twins' rules

    def __init__(self, heard: Callable[[], None], connect: Connect = comm.create_comm, mark: str = "") -> None:
        self._connect = connect
        self._heard = heard
        self.inbox: SimpleQueue[Incoming] = SimpleQueue()
        super().__init__(mark=mark or uuid4().hex[:12])
        self.on_msg(self._on_message)

    def open(self) -> None:
        """Open the comm, with ``connect``."""
        if self.comm is None:
            self.comm = self._connect(
                target_name="jupyter.widget",
                data={"state": self.get_state(), "buffer_paths": []},
                metadata={"version": "2.1.0"},
            )

    def frame(self, number: int, base: int | None, status: object, parts: Sequence[Part | None]) -> None:
        """Send a frame; ``base`` None: it is whole."""
        content: dict[str, Any] = {"frame": number, "base": base}
        if status is not None:
            content["status"] = status
        if any(parts):
            content["views"] = [part and part.header for part in parts]
            content["counts"] = [len(part.buffers) if part else 0 for part in parts]
        self.send(content, [buffer for part in parts if part for buffer in part.buffers])

    def say(self, view: int, text: str) -> None:
        """Show one line in a view: why something could not be chosen."""
        self.send({"say": view, "text": text})

    def _on_message(self, _: object, content: object, __: object) -> None:
        if self.inbox.qsize() >= MAX_WAITING:
            return
        try:
            message = msgspec.convert(content, PageMessage)
        except msgspec.ValidationError:
            return  # not from a page of ours
        beside_cells = threading.current_thread() is not threading.main_thread()
        self.inbox.put(Incoming(message, beside_cells))
        self._heard()
