"""Who hears of sessions: the notebook of all of them, and of some another process too (follower.py)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from msgspec import Struct

from bpfnb.protocol.credit import Credit
from bpfnb.protocol.messages import Ended, Loaded, MapLost, MapRead, SegmentAdded
from bpfnb.protocol.schema import Schema
from bpfnb.protocol.segments import Layout, Recipient
from bpfnb.tracer.outbox import Outbox
from bpfnb.tracer.sessions.follower import Follower

__all__ = ["Audience"]


class Audience:
    """Tells the notebook, and those who follow a session, what is said of it; for any thread, and never waits."""

    def __init__(self, notebook: Outbox) -> None:
        self.notebook = notebook
        self._followers: dict[int, Follower] = {}
        self._finished: list[Follower] = []  # their session has ended, and they may still ask
        self._lock = threading.Lock()

    def add(self, session: int, follower: Follower) -> None:
        """Have somebody follow a session, from its first message on."""
        with self._lock:
            self._followers[session] = follower

    def send(self, message: Struct, fds: Sequence[int] = ()) -> None:
        """Send what is said of a session, unasked, to all who hear of it. The descriptors stay the caller's."""
        follower = self._followers.get(getattr(message, "session", 0))
        for outbox in (self.notebook, *([follower.outbox] if follower else ())):
            _send(outbox, message, fds)

    def say_loaded(self, message: Loaded) -> None:
        """Answer the notebook's Load."""
        self.notebook.send(message)
        if follower := self._followers.get(message.request):
            follower.outbox.send(message)

    def say_stopped(self, message: Ended) -> None:
        """Tell who follows a session that the notebook has stopped it: to the notebook that is answered."""
        if follower := self._followers.get(message.session):
            follower.outbox.send(message)

    def follows(self, session: int) -> bool:
        """Return whether anybody follows a session."""
        return session in self._followers

    def recipients(
        self, session: int, output: str, schema: Schema, epoch: Callable[[], int], credit: Credit
    ) -> list[Recipient]:
        """Return who gets the segments of an output. ``credit``: the notebook's."""
        every = [(self.notebook, credit)]
        if follower := self._followers.get(session):
            every.append((follower.outbox, follower.credit))
        return [_recipient(outbox, session, output, schema, epoch, its) for outbox, its in every]

    def full(self, session: int) -> bool:
        """Return whether everybody who hears of a session has so much to read that no more should be sent."""
        follower = self._followers.get(session)
        return self.notebook.full and (follower is None or follower.outbox.full)

    def wait_for_room(self, session: int, seconds: float) -> bool:
        """Wait until it is not ``full``; return whether there is room."""
        follower = self._followers.get(session)
        if follower and not follower.outbox.full:
            return True
        return self.notebook.wait_for_room(seconds)

    def release(self, session: int) -> None:
        """All is said of a session. Who follows it may still ask, for some seconds."""
        with self._lock:
            follower = self._followers.pop(session, None)
            self._finished = [other for other in self._finished if not other.gone]
            if follower:
                self._finished.append(follower)
        if follower:
            follower.finish()

    def drop(self, session: int) -> None:
        """Hang up on who was to follow a session that has not come to be."""
        with self._lock:
            follower = self._followers.pop(session, None)
        if follower:
            follower.hang_up()

    def leave(self) -> None:
        """At the tracer's end: let those who follow sessions read what was sent, and hang up."""
        with self._lock:
            left = [*self._followers.values(), *self._finished]
        threads = [threading.Thread(target=follower.leave, name="bpfnb-leaving", daemon=True) for follower in left]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _recipient(
    outbox: Outbox, session: int, output: str, schema: Schema, epoch: Callable[[], int], credit: Credit
) -> Recipient:
    """Return one recipient of an output's segments; the first of them brings the schema."""
    news: Schema | None = schema

    def publish(layout: Layout, fd: int, missed: int) -> None:
        nonlocal news
        outbox.send(SegmentAdded(session, output, news, layout, epoch(), missed), [fd])
        news = None

    return Recipient(publish, credit)


def _send(outbox: Outbox, message: Struct, fds: Sequence[int]) -> None:
    """Send a message. A map that there is no room for is said to be lost."""
    if isinstance(message, MapRead) and outbox.full:
        outbox.send(MapLost(message.session, message.map, f"the map {message.map}: what was sent before was not read"))
    else:
        outbox.send(message, fds)
