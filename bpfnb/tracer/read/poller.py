"""The thread that drains every session's buffers.

It is a thread of its own so that compiling a cell delays no session's events. Each source's ``drain`` takes a bounded
step: at most what its buffers held when it was called, and only a part of a large amount. Sources take turns. Each has
a lock of its own, so that removing a source waits only for that source's step.
"""

from __future__ import annotations

import os
import select
import threading
import time
import traceback
from collections.abc import Callable, Sequence

__all__ = ["HIGH_WATER", "HIGH_WATER_PART", "Drain", "Poller"]

# Rest between two rounds. Under load each drain then finds many events, and an event is still seen within a few
# hundredths of a second. The rest starts short after a quiet period, which a burst may end. It halves while a buffer is
# past its high-water mark and grows otherwise.
_MIN_REST, _MAX_REST = 0.0005, 0.02  # seconds
_REST_GROWTH = 1.25
_POLL_INTERVAL = 0.04  # seconds

HIGH_WATER = 2
HIGH_WATER_PART = 4  # the high-water mark is this part of a buffer: a fourth

# What a drain returns. 0 or False: everything was read. 1 or True: events are held back, call again soon. HIGH_WATER:
# the buffer was past its high-water mark, or held more than one step takes; call again sooner.
Drain = Callable[[], int]
Fail = Callable[[Exception], None]


class _Source:
    """Descriptors and the function that drains them. ``lock`` is held during a drain, and by whoever removes it."""

    def __init__(self, fds: Sequence[int], drain: Drain, needs_polling: bool, fail: Fail | None) -> None:
        self.fds = fds
        self.drain = drain
        self.needs_polling = needs_polling
        self.fail = fail
        self.lock = threading.Lock()
        self.again = False
        self.gone = False  # removed or failed


class Poller:
    """Calls a source's ``drain`` when one of its descriptors is readable, and again as its last result asks for."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._added = os.eventfd(0)  # wakes the thread, which may wait forever, when a source needs polling
        self._poll.register(self._added, select.EPOLLIN | select.EPOLLET)
        self._sources: list[_Source] = []
        self._by_fd: dict[int, _Source] = {}
        self._rest = 0.0
        self._lock = threading.Lock()  # guards these two; never held during a drain
        threading.Thread(target=self._run, name="bpfnb-poller", daemon=True).start()

    def add(self, fds: Sequence[int], drain: Drain, *, needs_polling: bool = False, fail: Fail | None = None) -> None:
        """Add a source.

        ``needs_polling``: the descriptors are not readable for every event, so call ``drain`` 25 times a second too.
        ``fail``: called with the exception that ``drain`` raised, in the poller's thread, so it must not block. The
        source is not drained again, but must still be removed. Without ``fail``, an exception ends the process.
        """
        source = _Source(fds, drain, needs_polling, fail)
        with self._lock:
            self._sources.append(source)
            for fd in fds:
                self._by_fd[fd] = source
                self._poll.register(fd, select.EPOLLIN)
        if needs_polling:
            os.eventfd_write(self._added, 1)

    def remove(self, fds: Sequence[int], last: Callable[[], object] | None = None) -> None:
        """Remove the source of these descriptors. No drain of it runs once this returns.

        ``last`` is called once more, unless the source has failed. Its exceptions are raised here.
        """
        with self._lock:
            removed = list(dict.fromkeys(self._by_fd[fd] for fd in fds if fd in self._by_fd))
            for source in removed:
                self._forget(source)
        for source in removed:
            source.gone = True
            with source.lock:  # wait for its step to end
                if last:
                    last()

    def _run(self) -> None:
        try:
            while True:
                ready = [fd for fd, _ in self._poll.poll(self._timeout())]
                again, high_water = self._round(ready)
                if ready or again:
                    self._rest = self._rest / 2 if high_water else self._rest * _REST_GROWTH
                    self._rest = min(max(self._rest, _MIN_REST), _MAX_REST)
                    time.sleep(self._rest)
                else:
                    self._rest = 0.0
        except BaseException:
            # Events are no longer read. End the process: the notebook reports that, with this text.
            traceback.print_exc()
            os._exit(70)

    def _timeout(self) -> float | None:
        with self._lock:
            if any(source.again for source in self._sources):
                return 0
            return _POLL_INTERVAL - self._rest if any(source.needs_polling for source in self._sources) else None

    def _round(self, ready: Sequence[int]) -> tuple[bool, bool]:
        """Drain each due source once. Those that need polling are always due: their drain is cheap.

        Return whether any is to be called again soon, and whether any was past its high-water mark.
        """
        with self._lock:
            woken = [self._by_fd[fd] for fd in ready if fd in self._by_fd]
            due = [source for source in self._sources if source.again or source.needs_polling]
        results = [self._call(source) for source in dict.fromkeys(woken + due)]
        return any(results), HIGH_WATER in results

    def _call(self, source: _Source) -> int:
        """Drain a source one step, unless it has been removed meanwhile."""
        with source.lock:
            if source.gone:
                return 0
            try:
                result = source.drain()
            except Exception as error:
                if not source.fail:
                    raise
                source.gone = True
                with self._lock:
                    self._forget(source)  # nobody reads its descriptors now, so they must not wake us
                source.fail(error)
                return 0
            source.again = bool(result)
            return result

    def _forget(self, source: _Source) -> None:
        if source in self._sources:
            self._sources.remove(source)
            for fd in source.fds:
                del self._by_fd[fd]
                self._poll.unregister(fd)
