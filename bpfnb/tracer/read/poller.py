"""One thread that empties every session's buffers, so that compiling a cell holds up nobody's events.

A source's ``drain`` takes a bounded step: at most what lay in its buffers when it was called, and of much of that a
part. Sources take turns, and each has a lock of its own: removing one waits for its own step, whatever the others do.
"""

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
# FILLING: the buffer was filling up, or more lay there than a step takes: call again sooner.
Drain = Callable[[], int]
Fail = Callable[[Exception], None]


class _Source:
    """What is called for some descriptors. ``lock``: held while it drains, and by whoever removes it."""

    def __init__(self, fds: Sequence[int], drain: Drain, tick: bool, fail: Fail | None) -> None:
        self.fds = fds
        self.drain = drain
        self.tick = tick
        self.fail = fail
        self.lock = threading.Lock()
        self.again = False
        self.gone = False  # removed, or it has failed


class Drainer:
    """Calls a source's ``drain`` when one of its descriptors is readable, and as its last answer asked for."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._added = os.eventfd(0)  # a thread that waits without end must hear of a source that ticks
        self._poll.register(self._added, select.EPOLLIN | select.EPOLLET)
        self._sources: list[_Source] = []
        self._by_fd: dict[int, _Source] = {}
        self._rest = 0.0
        self._lock = threading.Lock()  # of these two alone, never held while something drains
        threading.Thread(target=self._run, name="bpfnb-drainer", daemon=True).start()

    def add(self, fds: Sequence[int], drain: Drain, *, tick: bool = False, fail: Fail | None = None) -> None:
        """``tick``: the descriptors do not tell of every event, so call it 25 times a second as well.

        ``fail``: called with what ``drain`` raised, from the drainer's thread, so it must not wait. The source is not
        called again; it has to be removed all the same. Without one, a failure ends the process.
        """
        source = _Source(fds, drain, tick, fail)
        with self._lock:
            self._sources.append(source)
            for fd in fds:
                self._by_fd[fd] = source
                self._poll.register(fd, select.EPOLLIN)
        if tick:
            os.eventfd_write(self._added, 1)

    def remove(self, fds: Sequence[int], last: Callable[[], object] | None = None) -> None:
        """No drain of these descriptors runs once this returns. ``last``: one more, unless the source has failed;
        what it raises is raised here."""
        with self._lock:
            removed = list(dict.fromkeys(self._by_fd[fd] for fd in fds if fd in self._by_fd))
            for source in removed:
                self._forget(source)
        for source in removed:
            source.gone = True
            with source.lock:  # its step ends
                if last:
                    last()

    def _run(self) -> None:
        try:
            while True:
                ready = [fd for fd, _ in self._poll.poll(self._patience())]
                again, filling = self._round(ready)
                if ready or again:
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
        with self._lock:
            if any(source.again for source in self._sources):
                return 0
            return _TICK - self._rest if any(source.tick for source in self._sources) else None

    def _round(self, ready: Sequence[int]) -> tuple[bool, bool]:
        """Call what is due, each once; those that tick are cheap to call. Whether any is to be called again soon, and
        whether a buffer was filling up."""
        with self._lock:
            woken = [self._by_fd[fd] for fd in ready if fd in self._by_fd]
            asking = [source for source in self._sources if source.again or source.tick]
        answers = [self._call(source) for source in dict.fromkeys(woken + asking)]
        return any(answers), FILLING in answers

    def _call(self, source: _Source) -> int:
        """One step of a source, unless it has been removed meanwhile."""
        with source.lock:
            if source.gone:
                return 0
            try:
                answer = source.drain()
            except Exception as error:
                if not source.fail:
                    raise
                source.gone = True
                with self._lock:
                    self._forget(source)  # its descriptors, which nobody reads any more, shall not wake us
                source.fail(error)
                return 0
            source.again = bool(answer)
            return answer

    def _forget(self, source: _Source) -> None:
        if source in self._sources:
            self._sources.remove(source)
            for fd in source.fds:
                del self._by_fd[fd]
                self._poll.unregister(fd)
