"""A panel: views of sessions, live while these run, then left in the notebook as pictures.

    main thread            makes the panel and shows it; methods set flags
    any thread             a page's messages wait in the widget's inbox
    refresh thread         everything else: reads the sessions, sends frames, stops sessions, closes

In a notebook a panel takes an output of its cell for the widget, and one for each view. The latter, hidden as long as
the widget is on the page, hold the views' static twins, renewed every now and then. A notebook saved, or a kernel
killed, while the panel runs shows them where the widget would only say "Error displaying widget" (JupyterLab looks at
no other mimetype beside a widget's). When the panel ends, the totals (HTML) replace the widget, and pictures the rest:
what every reader of notebooks shows, trusted or not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

import msgspec
import pandas as pd

from bpfnb.errors import escape, printable
from bpfnb.interrupts import Flag, start_new_thread, undoing
from bpfnb.results.snapshot import Snapshot
from bpfnb.views import html, refresh
from bpfnb.views.live.frames import NUMBERS_EVERY, Frames
from bpfnb.views.live.pages import Pages
from bpfnb.views.live.selection import Selection
from bpfnb.views.live.specs import Played, Traced, ended, sessions_of, views_of
from bpfnb.views.live.twins import Twin
from bpfnb.views.live.view import View, ViewSpec
from bpfnb.views.live.widget import VIEW_MIMETYPE, Connect, DirectComm, Incoming, PanelWidget
from bpfnb.views.notebook import EMPTY, Bundle, DisplayHandle, Notebook, notebook

__all__ = ["Panel", "show"]

_ASLEEP = 1.0  # seconds between two looks at sessions whose panel is paused, or cannot be seen
_BLIND = 1.0  # between two frames where no page can answer
_TWINS_EVERY = (10.0, 60.0)  # at first, and later
_FINISH_TIMEOUT = 10.0


def show(specs: Sequence[Sequence[ViewSpec]], where: Notebook | None = None, mark: str = "") -> Panel:
    """Make a panel of views, show it in the cell being run, and keep it up to date. A group of specs is a view.

    ``where``: where its outputs go, instead. ``mark``: in the class of its element on the page.

    Raises what a view's maker raises, such as ProgramError without an output or ValueError for an unknown column.
    """
    views = views_of(specs)
    panel = None
    try:
        panel = Panel(sessions_of(specs), views, where=where, mark=mark, specs=specs)
        refresh.add(panel)
        return panel
    except:
        if panel:  # nobody else would paint it, or take it off the page
            panel._close_asked = True
            start_new_thread(undoing, (refresh.add, panel))
        raise


class Panel:
    """Sessions shown live. It ends when all of them have ended, and then stays as pictures.

    ``closed``     whether the panel has ended
    ``selection``  the range of time that was brushed on a page: from and to (pandas Timestamps, UTC), or None
    ``df``         the rows from the one to before the other, see Selection.frame
    """

    def __init__(
        self,
        sessions: Sequence[Traced],
        views: Sequence[View],
        connect: Connect | None = None,
        where: Notebook | None = None,
        mark: str = "",
        specs: Sequence[Sequence[ViewSpec]] = (),
    ) -> None:
        """``specs``: what the views are of; by default these sessions' rows."""
        self._sessions = list(sessions)
        self._selection = Selection(specs or [[ViewSpec(session, "rates") for session in sessions]])
        self._stop_asked = self._close_asked = self._discarded = self._paused = False
        self._closed = Flag()
        self._stills_asked: SimpleQueue[SimpleQueue[list[Bundle]]] = SimpleQueue()
        self._made = time.monotonic()
        self._pages = Pages()
        self._beside_cells: bool | None = None  # whether pages are heard while a cell runs; not known at first
        self._in_cell = False
        self._snapshots = [session.snapshot() for session in self._sessions]
        self._numbers_due = 0.0
        self._notebook = where or notebook()
        self._widget: PanelWidget | None = None
        if self._notebook or connect:
            self._widget = PanelWidget(refresh.wake, connect or DirectComm, mark)
        self._frames = Frames(views, self._widget)
        self._twins = [Twin(view, self._widget.mark if self._widget else "") for view in views]
        self._twins_due = self._made + 2.0
        self._shown_in: int | None = None
        self._cell_id: str | None = None
        if self._notebook:
            self._show(self._notebook)

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    @property
    def selection(self) -> tuple[pd.Timestamp, pd.Timestamp] | None:
        return self._selection.range

    @property
    def df(self) -> pd.DataFrame:
        return self._selection.frame()

    @property
    def seen(self) -> bool:
        """Whether it can be seen on a page, as far as is known."""
        return self._pages.visible() or not self._pages.heard_of

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
        facts = []
        for s in self._snapshots if self.closed else [session.snapshot() for session in list(self._sessions)]:
            name = printable(s.name)
            rows = f", {html.average(s)} rows/s, {html.count(s.rows, 'row')}, {s.lost:,} lost" if s.has_rows else ""
            facts.append(f"{name}: {s.state}{rows}")
        return f"<Panel {'; '.join(facts)}>"

    # --- in the notebook ---

    def _show(self, where: Notebook) -> None:
        assert self._widget
        self._shown_in, self._cell_id, self._in_cell = where.cell, where.cell_id, True
        self._first = where.display({VIEW_MIMETYPE: self._widget.view(), "text/plain": repr(self)})
        self._places: list[DisplayHandle] = [where.display(twin.placeholder()) for twin in self._twins]
        where.at_cell_start(self._cell_begins)
        where.at_cell_end(self._cell_ends)

    def _ipython_display_(self) -> None:
        """Show a cell's last expression. In the cell that made the panel it is on display already."""
        here = notebook()
        if here is None:
            print(repr(self))
        elif here.cell != self._shown_in:
            # One panel is kept up to date; another cell gets it as it is now.
            here.display({"text/html": html.card(totals(self._snapshots)), "text/plain": repr(self)})
            for bundle in self._stills():
                here.display(bundle)

    def _stills(self) -> list[Bundle]:
        """Return the views as they are now. While the panel runs, the refresh thread alone reads them."""
        answer: SimpleQueue[list[Bundle]] = SimpleQueue()
        self._stills_asked.put(answer)
        refresh.wake()
        while not self.closed:
            with suppress(Empty):
                return answer.get(timeout=0.1)
        return [twin.final() for twin in self._twins]

    def _cell_begins(self, info: Any) -> None:
        """Leave when our own cell is run again: our outputs are gone."""
        self._in_cell = True
        if self._cell_id and getattr(info, "cell_id", None) == self._cell_id:
            self._discarded = self._close_asked = True
            refresh.wake()

    def _cell_ends(self, _: object) -> None:
        """Close at a cell's end if the sessions have ended: a notebook run to its end and saved at once has the last
        pictures."""
        self._in_cell = False
        if ended(self._sessions):
            self._finish()

    def _finish(self) -> None:
        refresh.wake()
        self._closed.wait(_FINISH_TIMEOUT)

    # --- on the refresh thread ---

    def act(self) -> bool:
        heard = False
        while self._widget and not self._widget.inbox.empty():
            heard = self._hear(self._widget.inbox.get_nowait()) or heard
        while not self._stills_asked.empty():
            if not self._paused:
                self._frames.update(last=False)  # hidden or folded away it may not have read for long
            self._stills_asked.get_nowait().put([twin.final() for twin in self._twins])
        if self._stop_asked:
            self._stop_asked, heard = False, True
            for session in self._sessions:
                session.stop()
        return heard or self._close_asked

    def paint(self) -> float | None:
        if self.closed:
            return None
        if self._close_asked or ended(self._sessions):  # looked at before reading: what comes later is not missed
            self._leave()
            return None
        blind = self._in_cell and not self._beside_cells
        if not self._widget or not (self._pages.visible() or blind):
            self._renew_twins()
            return _ASLEEP
        if blind:
            return self._paint_blind()
        if self._pages.follow(self._frames.newest):
            self._send()
            self._renew_twins()
        return _ASLEEP if self._paused else refresh.PERIOD

    def fail(self, error: Exception) -> None:
        try:
            self._leave(f"{type(error).__name__}: {error}")
        except Exception:
            # Not even the notebook can be reached; there is nobody left to tell.
            self._let_go()

    def _hear(self, incoming: Incoming) -> bool:
        """Take a page's message; return whether it wants an answer at once."""
        message, self._beside_cells = incoming
        self._pages.hear(message, self._frames.newest)
        if message.ready:
            self._frames.whole_due = True
        if message.do == "stop":
            self._stop_asked = True
        elif message.do:
            self._pause(message.do == "pause")
        if message.choose is not None:
            self._frames.choose(message.choose, message.choices or {})
        if message.brush is not None:
            self._selection.brush(*message.brush)
            self._frames.show_range(self.selection)
        return message.ack is None and not message.gone

    def _pause(self, paused: bool) -> None:
        """Leave the views as they are, or go on. Recordings that are played wait meanwhile."""
        self._paused = paused
        for session in self._sessions:
            if isinstance(session, Played):
                (session.pause if paused else session.resume)()

    def _paint_blind(self) -> float:
        """Send whole frames, for pages that cannot say what they lack."""
        if self._beside_cells is None and time.monotonic() - self._made < _BLIND:
            return refresh.PERIOD  # they may yet be heard
        self._frames.whole_due = True
        self._send(wait=True)
        self._renew_twins()
        return _BLIND

    def _send(self, wait: bool = False) -> None:
        if not self._paused:
            self._frames.update(last=False)
        self._look()
        self._frames.send(self._snapshots, self._paused, wait)

    def _look(self) -> None:
        """Read the sessions' states, and once a second their numbers, which cost more and are not sent more often."""
        now = time.monotonic()
        if self._paused or now < self._numbers_due:
            pairs = zip(self._snapshots, self._sessions, strict=True)
            self._snapshots = [msgspec.structs.replace(held, state=session.state) for held, session in pairs]
        else:
            self._snapshots = [session.snapshot() for session in self._sessions]
            self._numbers_due = now + NUMBERS_EVERY

    def _renew_twins(self) -> None:
        """Renew the static twins once in a while, unless pages have gone or hidden the panel."""
        now = time.monotonic()
        if now < self._twins_due or not self._notebook or self._paused:
            return
        if self._pages.heard_of and not self._pages.visible():
            return
        first, later = _TWINS_EVERY
        self._twins_due = now + min(max(first, (now - self._made) / 4), later)
        if not self._pages.visible():
            self._frames.update(last=False)
        for twin, place in zip(self._twins, self._places, strict=True):
            if bundle := twin.renewed():
                place.replace(bundle)

    def _leave(self, error: str = "") -> None:
        """Replace the widget by pictures, and let go of everything."""
        try:
            self._frames.update(last=True)
            self._snapshots = [session.snapshot() for session in self._sessions]
            if self._notebook and not self._discarded:
                self._first.replace(self._last_words(error))
                for twin, place in zip(self._twins, self._places, strict=True):
                    place.replace(twin.final())
        finally:
            self._let_go()

    def _let_go(self) -> None:
        try:
            if self._notebook:
                self._notebook.forget(self._cell_begins, self._cell_ends)
            if self._widget:
                self._widget.close()
        finally:
            # The notebook's Out[] may hold on to us, but not through us to all rows.
            self._sessions.clear()
            self._frames.clear()
            for twin in self._twins:
                twin.let_go()
            self._closed.set()

    def _last_words(self, error: str) -> Bundle:
        """Return what stands in the widget's place in the end: the totals, unless a view has them."""
        if self._frames.counted and not error:
            return EMPTY
        page = totals(self._snapshots) + (f'<div style="color:{html.BAD}">{escape(error)}</div>' if error else "")
        return {"text/html": html.card(page), "text/plain": "\n".join(filter(None, [repr(self), printable(error)]))}


def totals(snapshots: Sequence[Snapshot]) -> str:
    """Return what sessions amounted to, as HTML. Numbers of rows are left out where no session has rows."""
    dropped = any(s.dropped for s in snapshots)
    with_rows = any(s.has_rows for s in snapshots)
    heads = ["session", "state"]
    heads += ["rows/s on average", "rows", "lost"] * with_rows + [html.what_was_dropped(snapshots)] * dropped
    rows = []
    for s in snapshots:
        row = [escape(s.name), html.badge(s.state)]
        if with_rows:
            row += [html.average(s), f"{s.rows:,}", html.lost_cell(s.lost)] if s.has_rows else ["", "", ""]
        rows.append([*row, f"{s.dropped:,}"] if dropped else row)
    return html.table(heads, rows, numbers=range(2, 6))
