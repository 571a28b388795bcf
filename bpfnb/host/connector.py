"""The tracer of a host: started when somebody needs it, and again once it has died."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable

from bpfnb.errors import BpfnbError
from bpfnb.host.tracer import Tracer
from bpfnb.interrupts import forget_after_fork, new_lock, uninterrupted

__all__ = ["Connector", "Launch", "at_end"]

Launch = Callable[[], Tracer]


class Connector:
    """Holds at most one living tracer. Its methods may be called from any thread.

    ``launch`` starts a tracer and does not wait for it, or raises what keeps it from starting. The process's exit ends
    the tracer; a forked child has none.
    """

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._lock = new_lock()
        self._tracer: Tracer | None = None
        forget_after_fork(self)

    @uninterrupted
    def connect(self) -> Tracer:
        """Return the tracer, once it is up; started when there is none. Raises what keeps it from starting."""
        with self._lock:
            if self._tracer is None or self._tracer.died:
                self._start()
            tracer = self._tracer
        assert tracer
        tracer.hello()
        return tracer

    @property
    def current(self) -> Tracer | None:
        """Return the tracer as it is, without starting one: it may have died."""
        return self._tracer

    @uninterrupted
    def start(self) -> None:
        """Start the tracer without waiting for it; errors are left to the first one who needs it."""
        with self._lock:
            if self._tracer is None:
                try:
                    self._start()
                except BpfnbError:
                    return  # connect() raises it again, to a caller who needs the tracer

    @uninterrupted
    def close(self) -> None:
        """End the tracer; another is started when needed."""
        with self._lock:
            tracer, self._tracer = self._tracer, None
            if self in _open:
                _open.remove(self)
        if tracer:
            tracer.close()

    def forget(self) -> None:
        """Forget the tracer, in a forked child: it is the parent's."""
        tracer, self._tracer = self._tracer, None
        if self in _open:
            _open.remove(self)
        if tracer:
            tracer.forget()

    def _start(self) -> None:
        self._tracer = self._launch()
        if self not in _open:
            _open.append(self)


_open: list[Connector] = []  # those with a tracer; the exit of this process closes them
_waits: list[weakref.WeakMethod[Callable[[], object]]] = []


def at_end(wait: Callable[[], object]) -> None:
    """Have a method called at this process's exit, behind the tracers' end, if its object is still there."""
    _waits[:] = [known for known in _waits if known()]
    _waits.append(weakref.WeakMethod(wait))


@atexit.register
def _close_all() -> None:
    for connector in list(_open):
        connector.close()
    for wait in _waits:
        if method := wait():
            method()
