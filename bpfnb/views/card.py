"""A session's card: HTML in its cell, kept up to date until the session has ended.

    main thread       shows the card
    refresh thread    replaces it, at most once a second and only by something else; once more when the session ends

The notebook's file has plain HTML and text, as they were last. A card that the kernel's end leaves says "running" with
the time at which that was so, and is not green: only the widget with its buttons, while it is connected, makes it so.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol
from uuid import uuid4

from msgspec.structs import replace

from bpfnb.interrupts import Flag, forget_after_fork, new_lock, uninterrupted
from bpfnb.results.snapshot import Snapshot
from bpfnb.views import html, progress, refresh
from bpfnb.views.notebook import Bundle, DisplayHandle, Notebook, notebook

__all__ = ["Card", "Carded", "Cards", "Pace", "leave", "show"]

_EVERY = 1.0  # seconds between two updates of a card
_MAX_COUNTING_EVERY = 30.0  # seconds between two counts of entries that do not change
_COUNTING_SHARE = 0.01  # of the time is spent on counting them
_ENDED = ("stopped", "failed")


class Carded(Protocol):
    """What a card shows: a session."""

    name: str

    def snapshot(self, count: bool = False) -> Snapshot: ...

    @property
    def detaching(self) -> bool: ...


def show(session: Carded, seconds: float | None = None, *, result: bool = False) -> bool:
    """Show a session's card in the cell being run, and keep it up to date; False where there is no notebook.

    ``seconds``: how long the session is to run. ``result``: the session is the cell's result as well, which IPython
    shows: then not again.
    """
    where = notebook()
    if where is None:
        return False
    if _cards.is_shown(session, where.cell):
        return True
    snapshot = session.snapshot()
    told = _cards.told_elsewhere(snapshot)
    if _is_over(session, snapshot):
        text = html.session_text(snapshot, told=told)
        where.display({"text/html": html.session_card(snapshot, told=told), "text/plain": text})
        return True
    card = Card(session, where, seconds, told)
    _cards.add(card)  # first: Ctrl-C must not leave one on the page that nobody updates
    card.display()
    if result:
        _cards.expect(session, where.cell)
    return True


class Card:
    """A running session in a cell's output."""

    def __init__(self, session: Carded, where: Notebook, seconds: float | None, told: set[str]) -> None:
        self._session: Carded | None = session
        self._where = where
        self._seconds = seconds
        self._told = told
        self._mark = uuid4().hex[:12]
        self._handle: DisplayHandle | None = None
        self._shown: Snapshot | None = None
        self._closed = Flag()
        self._due = time.monotonic() + _EVERY
        self._pace = Pace()

    def display(self) -> None:
        """Show it in the cell being run."""
        self._where.at_cell_end(self.settle)
        if session := self._session:
            self._shown = self._facts(snapshot := session.snapshot())
            handle = progress.place_in(self._where)
            if handle:
                handle.replace(self._bundle(snapshot))
            self._handle = handle or self._where.display(self._bundle(snapshot))

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def settle(self, _: object = None) -> None:
        """Wait at a cell's end for the last update, where the session has ended: a notebook run to its end and saved at
        once has it."""
        session = self._session
        if session and _is_over(session, session.snapshot()):
            refresh.wake()
            self._closed.wait(10.0)

    # --- on the refresh thread ---

    def act(self) -> bool:
        """Update it once more where the session has ended."""
        if (session := self._session) is None:
            return False
        snapshot = session.snapshot()
        if _is_over(session, snapshot):
            try:
                self._write(snapshot)
            finally:
                self._close()
        return self._session is None

    def paint(self) -> float | None:
        session = self._session
        if session is None:
            return None
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _EVERY
            self._write(self._pace.snapshot(session))
        return min(_EVERY, max(self._due - time.monotonic(), 0.01))

    def fail(self, error: Exception) -> None:
        self._close()

    def leave(self) -> None:
        """Write it for the last time as the kernel ends, and with it every session."""
        if session := self._session:
            self._write(replace(session.snapshot(), state="stopped", reason="the notebook's kernel has ended"))
            self._close()

    def _write(self, snapshot: Snapshot) -> None:
        """Replace what is shown, where it differs."""
        facts = self._facts(snapshot)
        if self._handle and facts != self._shown:
            self._shown = facts
            self._handle.replace(self._bundle(snapshot))

    def _facts(self, snapshot: Snapshot) -> Snapshot:
        """Return what must differ for an update. Time passes and costs vary also where nothing happens."""
        timed = self._seconds is not None and snapshot.state == "running"
        return replace(snapshot, seconds=int(snapshot.seconds) if timed else 0, cost="", shares=None)

    def _bundle(self, snapshot: Snapshot) -> Bundle:
        page = html.session_card(snapshot, mark=self._mark, seconds=self._seconds, told=self._told)
        return {"text/html": page, "text/plain": html.session_text(snapshot, told=self._told)}

    def _close(self) -> None:
        self._session = None  # the notebook's Out[] may hold on to us, but not through us to all rows
        with suppress(ValueError):  # it was not even shown
            self._where.forget(self.settle)
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


def _is_over(session: Carded, snapshot: Snapshot) -> bool:
    """Return whether nothing more will change. While the kernel detaches, maps may still be read."""
    return snapshot.state in _ENDED and not session.detaching


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
