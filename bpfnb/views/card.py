"""A session's card: HTML in its cell, kept up to date until the session has ended, with buttons to stop it and to open
its live panel.

    main thread       shows the card
    any thread        a page's messages wait in the widget's inbox
    refresh thread    replaces the card, at most once a second and only by something else, and once more when the
                      session ends; makes the buttons, does what they ask for

The card takes three outputs of its cell: the card itself, the widget of its buttons (or of the panel), and the panel's
static twins; the last two are empty in the end. So the notebook's file has plain HTML and text as they were last. A
card that a killed kernel leaves says "running" with the time at which that was so, and is not green: it is by a rule
of its own, where its widget is on the page and connected.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

from msgspec.structs import replace

from bpfnb.errors import printable
from bpfnb.interrupts import Flag, forget_after_fork, new_lock, uninterrupted
from bpfnb.results.snapshot import SessionState, Snapshot
from bpfnb.views import html, progress, refresh
from bpfnb.views.live import open_below
from bpfnb.views.notebook import EMPTY, Bundle, DisplayHandle, Notebook, notebook

if TYPE_CHECKING:
    from bpfnb.views.buttons import Buttons
    from bpfnb.views.live.panel import Panel

__all__ = ["Card", "Carded", "Cards", "Pace", "leave", "show"]

_EVERY = 1.0  # seconds between two updates of a card
_BUTTONS_AFTER = 0.2  # seconds: a session that a cell starts and stops at once needs none
_MAX_COUNTING_EVERY = 30.0  # seconds between two counts of entries that do not change
_COUNTING_SHARE = 0.01  # of the time is spent on counting them
_ENDED = ("stopped", "failed")


class Carded(Protocol):
    """What a card shows: a session."""

    name: str

    def snapshot(self, count: bool = False) -> Snapshot: ...

    def stop(self) -> None: ...

    @property
    def state(self) -> SessionState: ...

    @property
    def detaching(self) -> bool: ...

    @property
    def unfinished(self) -> bool: ...


def show(session: Carded, seconds: float | None = None, *, result: bool = False, live: bool = False) -> bool:
    """Show a session's card in the cell being run, and keep it up to date; False where there is no notebook.

    ``seconds``: how long the session is to run. ``result``: the session is the cell's result as well, which IPython
    shows: then not again. ``live``: with its live panel open. Raises what ``Session.live`` raises.
    """
    where = notebook()
    if where is None:
        return False
    if _cards.is_shown(session, where.cell):
        return True
    snapshot = session.snapshot()
    told = _cards.told_elsewhere(snapshot)
    if _is_over(session) and not live:
        text = html.session_text(snapshot, told=told)
        where.display({"text/html": html.session_card(snapshot, told=told), "text/plain": text})
        return True
    card = Card(session, where, seconds, told)
    _cards.add(card)  # first: Ctrl-C must not leave one on the page that nobody updates
    card.display(live)
    if result:
        _cards.expect(session, where.cell)
    return True


class Card:
    """A running session in a cell's output."""

    def __init__(self, session: Carded, where: Notebook, seconds: float | None, told: set[str]) -> None:
        self._session: Carded | None = session
        self._where = where
        self._cell, self._cell_id = where.cell, where.cell_id
        self._seconds = seconds
        self._told = told
        self._mark = uuid4().hex[:12]
        self._card: DisplayHandle | None = None
        self._slots: list[DisplayHandle] = []
        self._shown: Snapshot | None = None
        self._buttons: Buttons | None = None
        self._panel: Panel | None = None
        self._in_cell = True
        self._discarded = False
        self._closed = Flag()
        self._pace = Pace()
        self._begun = time.monotonic()
        self._due = self._begun + _EVERY

    def display(self, live: bool = False) -> None:
        """Show it in the cell being run; ``live``: with its panel."""
        self._where.at_cell_start(self._cell_begins)
        self._where.at_cell_end(self._cell_ends)
        if session := self._session:
            snapshot = session.snapshot()
            self._shown = self._facts(snapshot)
            place = progress.place_in(self._where)
            if place:
                place.replace(self._bundle(snapshot))
            card = place or self._where.display(self._bundle(snapshot))
            self._slots = [self._where.display(EMPTY) for _ in range(2)]
            try:
                if live:
                    self._open_panel(session)
            finally:
                self._card = card  # from now on it is kept up to date, without a panel as well

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def _cell_begins(self, info: object) -> None:
        """Leave when our own cell is run again: our outputs are gone."""
        self._in_cell = True
        if self._cell_id and getattr(info, "cell_id", None) == self._cell_id:
            self._discarded = True
            refresh.wake()

    def _cell_ends(self, _: object) -> None:
        """Wait for the last update, where the session has ended: a notebook run to its end and saved at once has it."""
        self._in_cell = False
        session = self._session
        if session and _is_over(session):
            refresh.wake()
            self._closed.wait(10.0)

    # --- on the refresh thread ---

    def act(self) -> bool:
        """Do what the buttons ask for; return whether the session has ended, so that the card is to be written."""
        if (session := self._session) is None:
            return True
        asked = self._buttons.asked() if self._buttons else ""
        if asked == "stop":
            session.stop()
        elif asked == "live":
            self._try_live(session)
        return self._discarded or _is_over(session)

    def paint(self) -> float | None:
        session = self._session
        if session is None or self._discarded:
            self._close()
            return None
        if _is_over(session):  # looked at before reading: what comes later is not missed
            self._finish(session.snapshot())
            return None
        if self._card and not self._buttons and not self._panel and time.monotonic() > self._begun + _BUTTONS_AFTER:
            self._show_buttons()
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + 0.9 * _EVERY  # the next whole second may come a little early
            if self._is_followed():
                self._write(self._pace.snapshot(session))
        return _next_second() if self._buttons or self._panel else _BUTTONS_AFTER

    def fail(self, error: Exception) -> None:
        self._close()

    def _is_followed(self) -> bool:
        """Return whether an update is worth it: somebody sees it, or nobody was ever there but the notebook's file."""
        if self._panel and self._panel.closed:
            self._panel = None  # it was closed, and the session goes on: the buttons come back
        if self._panel:
            return self._panel.seen
        return not self._buttons or self._buttons.follow(self._in_cell)

    def leave(self) -> None:
        """Write it for the last time as the kernel ends, and with it every session."""
        if session := self._session:
            self._write(replace(session.snapshot(), state="stopped", reason="the notebook's kernel has ended"))

    def _finish(self, snapshot: Snapshot) -> None:
        try:
            self._write(snapshot)
            if not self._panel:
                self._slots[0].replace(EMPTY)
        finally:
            self._close()

    def _show_buttons(self) -> None:
        from bpfnb.views.buttons import Buttons

        self._buttons = Buttons(refresh.wake, self._mark)
        self._slots[0].replace(self._buttons.bundle())

    def _try_live(self, session: Carded) -> None:
        """Put the panel in place of the buttons; or say in a line why there is none."""
        assert self._buttons
        try:
            self._open_panel(session)
        except Exception as error:
            self._buttons.say(0, printable(str(error)))
            return
        self._buttons.close()
        self._buttons = None

    def _open_panel(self, session: Carded) -> None:
        self._panel = open_below(session, self._where, self._cell, self._cell_id, self._slots, self._mark)

    def _write(self, snapshot: Snapshot) -> None:
        """Replace what is shown, where it differs."""
        facts = self._facts(snapshot)
        if self._card and facts != self._shown:
            self._shown = facts
            self._card.replace(self._bundle(snapshot))
            if self._buttons:
                self._buttons.updated()

    def _facts(self, snapshot: Snapshot) -> Snapshot:
        """Return what must differ for an update. Time passes and costs vary also where nothing happens."""
        timed = self._seconds is not None and snapshot.state == "running"
        return replace(snapshot, seconds=int(snapshot.seconds) if timed else 0, cost="", shares=None)

    def _bundle(self, snapshot: Snapshot) -> Bundle:
        mark = "" if snapshot.state in _ENDED else self._mark
        page = html.session_card(snapshot, mark=mark, seconds=self._seconds, told=self._told)
        return {"text/html": page, "text/plain": html.session_text(snapshot, told=self._told)}

    def _close(self) -> None:
        self._session = None  # the notebook's Out[] may hold on to us, but not through us to all rows
        self._where.forget(self._cell_begins, self._cell_ends)
        if self._buttons:
            self._buttons.close()
        _cards.remove(self)
        self._closed.set()


class Pace:
    """Takes snapshots, and counts entries of maps the more rarely the longer that takes and the less they change."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due, self._every = 0.0, _EVERY
        self._entries: object = None

    def snapshot(self, session: Carded) -> Snapshot:
        begun = self._clock()
        if begun < self._due:
            return session.snapshot()
        snapshot = session.snapshot(count=True)
        same = snapshot.entries == self._entries
        self._entries = snapshot.entries
        self._every = min(2 * self._every, _MAX_COUNTING_EVERY) if same else _EVERY
        self._due = begun + max(self._every, (self._clock() - begun) / _COUNTING_SHARE)
        return snapshot


def _is_over(session: Carded) -> bool:
    """Return whether nothing more will change. While the kernel detaches, maps may still be read, and a recording is
    finished behind its session."""
    return session.state in _ENDED and not session.detaching and not session.unfinished


def _next_second() -> float:
    """Return the seconds until all cards are looked at: together, so that many wake the thread no oftener than one."""
    return _EVERY - time.monotonic() % _EVERY


class Cards:
    """The cards that are kept up to date; for any thread."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        self._open: list[Card] = []
        self._expected: tuple[Carded, int] | None = None
        self._tellers: dict[str, str] = {}  # a remark, and the name of the session whose cards have it

    @uninterrupted
    def add(self, card: Card) -> None:
        with self._lock:
            self._open.append(card)
        refresh.add(card)

    def remove(self, card: Card) -> None:
        with self._lock:
            if card in self._open:
                self._open.remove(card)

    def expect(self, session: Carded, cell: int) -> None:
        """Show the session no more when IPython shows it as this cell's result."""
        self._expected = session, cell

    def is_shown(self, session: Carded, cell: int) -> bool:
        expected, self._expected = self._expected, None
        return expected is not None and expected[0] is session and expected[1] == cell

    @uninterrupted
    def told_elsewhere(self, snapshot: Snapshot) -> set[str]:
        """Return the probes' remarks that cards of another session have: each is made once a notebook."""
        with self._lock:
            notes = {probe.note for probe in snapshot.probes if probe.note}
            return {note for note in notes if self._tellers.setdefault(note, snapshot.name) != snapshot.name}

    def leave(self) -> None:
        for card in list(self._open):
            try:
                card.leave()
            except Exception:  # there is nobody left to tell
                return


_cards = Cards()


def leave() -> None:
    """Write the cards for the last time, as the kernel ends."""
    _cards.leave()


atexit.register(leave)
