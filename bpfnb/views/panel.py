"""A panel: sessions shown live while they run, then left in the notebook as a picture.

    main thread            makes the panel and shows it; buttons and methods set flags
    refresh thread         everything else: reads the sessions, writes the widgets, stops sessions, closes

In a notebook a panel takes two outputs of its cell. The first holds the widgets. The second, hidden as long as the
widgets are on the page, holds a static fallback, renewed every few seconds. A notebook saved, or a kernel killed, while
the panel runs shows it where the widgets would only say "Error displaying widget" (JupyterLab looks at no other
mimetype beside a widget's). When the panel ends, the totals (HTML) replace the first and the picture (PNG) the
second: what every reader of notebooks shows, trusted or not.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

import ipywidgets

from bpfnb.errors import escape, printable
from bpfnb.interrupts import Flag, start_new_thread, undoing
from bpfnb.views import html, refresh
from bpfnb.views.notebook import Bundle, Notebook, notebook
from bpfnb.views.pictures import Picture, RatesPicture, Traced, ended
from bpfnb.views.plots import HEIGHT, WIDTH

__all__ = ["Panel", "show"]

_FALLBACK_EVERY = 2.0  # seconds
_WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def show(sessions: Sequence[Traced], by: str | None = None) -> Panel:
    """Make a panel, show it in the cell being run, and keep it up to date.

    Raises what a session's meter raises: ProgramError without an output, ValueError for an unknown column.
    """
    picture = RatesPicture(sessions, by)
    panel = None
    try:
        panel = Panel(sessions, picture)
        refresh.add(panel)
        return panel
    except:
        if panel:  # nobody else would paint it, or take it off the page
            panel._close_asked = True
            start_new_thread(undoing, (refresh.add, panel))
        raise


class Panel:
    """Sessions shown live. It ends when all of them have ended, and then stays as a picture.

    ``png``      the last picture painted
    ``closed``   whether the panel has ended
    """

    def __init__(self, sessions: Sequence[Traced], picture: Picture) -> None:
        self._sessions = list(sessions)
        self._picture = picture
        self._error = ""
        self._stop_asked = self._close_asked = self._paused = False
        self._closed = Flag()
        self._read()
        self._widgets = _Widgets(self._ask_stop, self._toggle_pause)
        self._page = self._totals()
        self._widgets.write(self.png, self._status(), self._page)
        self._notebook = notebook()
        self._shown_in = self._show(self._notebook) if self._notebook else None
        self._fallback_due = time.monotonic() + _FALLBACK_EVERY

    @property
    def png(self) -> bytes:
        return self._painted.png

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def stop(self) -> None:
        """Stop the sessions, which ends the panel. Return when it has ended."""
        self._stop_asked = True
        self._finish()

    def close(self) -> None:
        """End the panel; the sessions go on."""
        self._close_asked = True
        self._finish()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the panel has ended, at most ``seconds``. Return whether it has."""
        return self._closed.wait(seconds)

    def __repr__(self) -> str:
        return self._text()

    # --- in the notebook ---

    def _show(self, where: Notebook) -> int:
        self._first = where.display({_WIDGET_VIEW: self._widgets.view(), "text/plain": self._text()})
        self._second = where.display(self._fallback())
        where.at_cell_end(self._settle)
        return where.cell

    def _ipython_display_(self) -> None:
        """Show a cell's last expression. In the cell that made the panel it is on display already."""
        here = notebook()
        if here is None:
            print(self._text())
        elif here.cell != self._shown_in:
            # One panel is painted; another cell gets it as it is now.
            here.display({"text/html": html.card(self._page), "text/plain": self._text()})
            here.display({"image/png": _base64(self.png), "text/plain": self._text()})

    def _settle(self, _: object) -> None:
        """Close at a cell's end if the sessions have ended: a notebook run to its end and saved at once has the last
        picture."""
        if ended(self._sessions):
            self._finish()

    def _finish(self) -> None:
        refresh.wake()
        self._closed.wait(10.0)

    def _ask_stop(self) -> None:
        self._stop_asked = True

    def _toggle_pause(self) -> None:
        self._paused = not self._paused

    # --- on the refresh thread ---

    def act(self) -> None:
        if self._stop_asked:
            self._widgets.stopping()
            for session in self._sessions:
                session.stop()
            self._stop_asked = False

    def paint(self) -> bool:
        if self.closed:
            return False
        over = self._close_asked or ended(self._sessions)  # looked at before reading: what comes later is not missed
        self._widgets.show_paused(self._paused)
        if over or not self._paused:
            self._read(over)
        self._page = self._totals(final=over)
        self._widgets.write(self.png, self._status(), self._page)
        if over:
            self._leave()
        elif self._notebook and time.monotonic() >= self._fallback_due:
            self._second.replace(self._fallback())
            self._fallback_due = time.monotonic() + _FALLBACK_EVERY
        return not over

    def fail(self, error: Exception) -> None:
        self._error = f"{type(error).__name__}: {error}"
        try:
            self._page += f"<div>{self._complaint()}</div>"
            self._widgets.write(self.png, self._status(), self._page)
            self._leave()
        except Exception:
            # Not even the notebook can be reached; there is nobody left to tell.
            self._closed.set()

    def _read(self, last: bool = False) -> None:
        """Take in what the sessions have now, and paint it."""
        self._painted = self._picture.paint(last)
        self._snapshots = [session.snapshot() for session in self._sessions]

    def _leave(self) -> None:
        """Replace the widgets by the picture, and let go of everything."""
        try:
            if self._notebook:
                self._notebook.forget(self._settle)
                self._first.replace({"text/html": html.card(self._page), "text/plain": self._text()})
                picture = {"image/png": _base64(self.png), "text/plain": self._text()}
                self._second.replace(picture, {"image/png": {"width": WIDTH, "height": HEIGHT}})
        finally:
            self._widgets.close()
            self._sessions.clear()  # the notebook's Out[] may hold on to us, but not through us to all rows
            del self._picture
            self._closed.set()

    # --- what is written ---

    def _text(self) -> str:
        facts = []
        for s in self._snapshots:
            name = printable(s.name)
            facts.append(f"{name}: {s.state}, {html.average(s)} rows/s, {html.count(s.rows, 'row')}, {s.lost:,} lost")
        return f"<Panel {'; '.join(facts)}>"

    def _status(self) -> str:
        if self._error:
            return html.line(self._complaint())
        return html.line(html.muted("paused; tracing goes on" if self._paused else "live"))

    def _complaint(self) -> str:
        return f'<span style="color:{html.BAD}">{escape(self._error)}</span>' if self._error else ""

    def _totals(self, final: bool = False) -> str:
        """Make the table of sessions, each in the colour of its line, where it has one."""
        dropped = any(s.dropped for s in self._snapshots)
        heads = ["session", "state", "rows/s on average" if final else "rows/s", "rows", "lost"]
        rows = []
        for s, now, colour in zip(self._snapshots, self._painted.rates, self._painted.colours, strict=True):
            rate = html.average(s) if final else f"{now:,}"
            row = [html.swatch(s.name, colour), html.badge(s.state), rate, f"{s.rows:,}", html.lost_cell(s.lost)]
            rows.append([*row, f"{s.dropped:,}"] if dropped else row)
        return html.table([*heads, "dropped by keep"] if dropped else heads, rows, numbers=range(2, 6))

    def _fallback(self) -> Bundle:
        """Return the picture for pages without the widgets. Its rules hide it where they are, and hide what JupyterLab
        says of widgets whose kernel is gone; a page that knows neither the rules nor HTML has the PNG."""
        mark = f"bpfnb-still-{self._widgets.mark}"
        gone = f".jp-OutputArea-child:has(+ .jp-OutputArea-child .{mark}) > .jupyter-widgets:not(:has(*))"
        rules = f"body:has(.bpfnb-live-{self._widgets.mark}) .{mark}, {gone} {{ display: none }}"
        image = f'<img alt="events per second" width="{WIDTH}" src="data:image/png;base64,{_base64(self.png)}">'
        page = f'<style>{rules}</style><div class="{mark}">{html.card(self._page)}<br>{image}</div>'
        return {"text/html": page, "image/png": _base64(self.png), "text/plain": self._text()}


class _Widgets:
    """The panel on the page. Made on the caller's thread, then written by the refresh thread only."""

    def __init__(self, on_stop: Callable[[], None], on_pause: Callable[[], None]) -> None:
        self.mark = uuid4().hex[:12]  # in the class of the whole, for the fallback's rules
        self._status, self._totals = ipywidgets.HTML(), ipywidgets.HTML()
        self._image = ipywidgets.Image(format="png", layout={"width": f"{WIDTH}px", "max_width": "100%"})
        small = {"width": "92px", "margin": "0 0 0 6px"}
        self._pause = ipywidgets.Button(description="Pause", icon="pause", layout=small)
        self._stop = ipywidgets.Button(description="Stop", icon="stop", layout=small)
        self._pause.on_click(lambda _: on_pause())
        self._stop.on_click(lambda _: on_stop())
        buttons = ipywidgets.HBox([self._pause, self._stop])
        layout = {"width": f"{WIDTH}px", "max_width": "100%", "justify_content": "space-between"}
        head = ipywidgets.HBox([self._status, buttons], layout=layout)
        self._box = ipywidgets.VBox([head, self._image, self._totals])
        self._box.add_class(f"bpfnb-live-{self.mark}")
        self._all = [self._box, head, buttons, self._status, self._totals, self._image, self._pause, self._stop]

    def view(self) -> dict[str, Any]:
        return {"version_major": 2, "version_minor": 0, "model_id": self._box.model_id}

    def write(self, png: bytes, status: str, totals: str) -> None:
        """Write all values. Only what differs is sent to the page."""
        self._image.value = png
        self._status.value = status
        self._totals.value = html.line(totals)

    def show_paused(self, paused: bool) -> None:
        self._pause.description, self._pause.icon = ("Resume", "play") if paused else ("Pause", "pause")

    def stopping(self) -> None:
        self._pause.disabled = self._stop.disabled = True
        self._status.value = html.line(html.muted("stopping"))

    def close(self) -> None:
        """Take the widgets off the page and out of ipywidgets' registry, which holds on to every open one."""
        for widget in self._all:
            for part in (getattr(widget, "style", None), widget.layout, widget):
                if part is not None:
                    part.close()


def _base64(png: bytes) -> str:
    return base64.b64encode(png).decode("ascii")
