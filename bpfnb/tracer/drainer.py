"""One thread that empties every session's buffers, so that compiling a cell holds up nobody's events."""

from __future__ import annotations

import os
import select
import threading
import time
import traceback
from collections.abc import Callable, Sequence

__all__ = ["FILLING", "Drain", "Drainer"]

# After a round, rest before the next one: under load a drain then finds many events, and an event is still seen within
# a few hundredths of a second. The rest is short after a quiet spell, which a burst may end, and where a buffer fills
# up faster than that; it grows while neither is so.
_LEAST_REST, _MOST_REST = 0.0005, 0.02
_GROWTH = 1.25
_TICK = 0.04

FILLING = 2

# What a drain answers: nothing (0, False) when all was read; 1, True: something was held back, call again soon;
# FILLING: the buffer was filling up, call again sooner.
Drain = Callable[[], int]


class Drainer:
    """Calls a source's ``drain`` when one of its descriptors is readable, and as its last answer asked for."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._added = os.eventfd(0)  # a thread that waits without end must hear of a source that ticks
        self._poll.register(self._added, select.EPOLLIN | select.EPOLLET)
        self._sources: dict[int, Drain] = {}
        self._ticking: set[Drain] = set()
        self._again: set[Drain] = set()
        self._rest = 0.0
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="bpfnb-drainer", daemon=True).start()

    def add(self, fds: Sequence[int], drain: Drain, *, tick: bool = False) -> None:
        """``tick``: the descriptors do not tell of every event, so call it 25 times a second as well."""
        with self._lock:
            for fd in fds:
                self._sources[fd] = drain
                self._poll.register(fd, select.EPOLLIN)
            if tick:
                self._ticking.add(drain)
                os.eventfd_write(self._added, 1)

    def remove(self, fds: Sequence[int], last: Callable[[], object] | None = None) -> None:
        """No drain of these descriptors runs once this returns; ``last`` is one more, run alone as all are."""
        with self._lock:
            for fd in fds:
                drain = self._sources.pop(fd)
                self._again.discard(drain)
                self._ticking.discard(drain)
                self._poll.unregister(fd)
            if last:
                last()

    def _run(self) -> None:
        try:
            while True:
                ready = [fd for fd, _ in self._poll.poll(self._patience())]
                with self._lock:
                    filling = self._round(ready)
                if ready or self._again:
                    self._rest = self._rest / 2 if filling else self._rest * _GROWTH
                    self._rest = min(max(self._rest, _LEAST_REST), _MOST_REST)
                    time.sleep(self._rest)
                else:
                    self._rest = 0.0
        except BaseException:
            # Events are no longer read: better a dead tracer, which the notebook reports with this text, than silence.
            traceback.print_exc()
            os._exit(70)

    def _patience(self) -> float | None:
        if self._again:
            return 0
        return _TICK - self._rest if self._ticking else None

    def _round(self, ready: Sequence[int]) -> bool:
        """Call what is due; those that tick are cheap to call. Whether a buffer was filling up."""
        due = self._again | self._ticking | {self._sources[fd] for fd in ready if fd in self._sources}
        answers = {drain: drain() for drain in due}
        self._again = {drain for drain, answer in answers.items() if answer}
        return FILLING in answers.values()
