"""State that neither Ctrl-C nor fork leaves half changed.

Python runs signal handlers on the main thread, between any two of its steps. A KeyboardInterrupt can come after a lock
was taken and before the ``try`` that would release it. threading.Event, Condition, Thread.start and
concurrent.futures.Future are written in Python: one interrupted like that blocks whoever uses it next. In Python 3.14
even ``with lock:`` can be interrupted between the lock and the body (python/cpython#148874).

So code that changes state runs on another thread, where no handler runs, and the main thread waits for it. The wait
can be interrupted anywhere, and the work goes on to its end. ``uninterrupted`` does that. ``Flag`` is an event that the
main thread may wait for. ``new_lock`` and ``new_rlock`` make locks that are free in a forked child, where the threads
that held them do not run. ``forget_after_fork`` has a forked child drop what belongs to its parent.

Where a caller is interrupted and never gets the result, a thread started in the caller's ``except:`` undoes the work:

    try:
        ... an ``uninterrupted`` function that does nothing any more once the job is abandoned ...
        return result
    except:
        job.abandoned = True
        start_new_thread(undoing, (undo, job))
        raise

That holds however often Ctrl-C is pressed: Python looks for signals after a call, not before one, so the first call of
a handler is always made; and none is looked for between the last call of the ``try`` and the return.
"""

from __future__ import annotations

import functools
import math
import os
import threading
import time
import weakref
from _thread import allocate_lock, get_ident, start_new_thread
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

__all__ = [
    "Flag",
    "Forgetful",
    "caller_left",
    "for_main_thread",
    "forget_after_fork",
    "new_lock",
    "new_rlock",
    "patience",
    "start_new_thread",
    "undoing",
    "uninterrupted",
    "wait_at_most",
]

_LOOK_EVERY = 0.1  # seconds

Params = ParamSpec("Params")
Result = TypeVar("Result")


def uninterrupted(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """Decorate a function so that it runs to its end, whatever signals come.

    Called on the main thread, the function runs on another one, which is kept for the next call. An interrupted caller
    leaves, and what the function returns or raises is dropped: it must be right to drop it. A function that has not
    begun by then never runs. One that has can ask ``caller_left`` before it changes anything, so that nothing changes
    after what the caller does next.
    """

    @functools.wraps(function)
    def call(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        if not _on_main_thread():
            return function(*args, **kwargs)
        work = _Work(functools.partial(function, *args, **kwargs))
        try:
            try:
                _hand_over(work)
            except RuntimeError:  # no thread to be had: the interpreter is ending
                work.run()
            _wait_for(work.done)
            return work.outcome()
        except:
            work.abandoned = True
            raise

    return call


def caller_left() -> bool:
    """Return whether the caller of the ``uninterrupted`` function on this thread was interrupted."""
    work = _at_work.get(get_ident())
    return work is not None and work.abandoned


def for_main_thread() -> bool:
    """Return whether this is the main thread, or runs a function that it has called and may still wait for."""
    return _on_main_thread() or get_ident() in _at_work


def undoing(function: Callable[..., object], *args: object) -> None:
    """Run a function that undoes something, as a thread's whole work: see above."""
    try:
        function(*args)
    finally:
        _forget_this_thread()


def _wait_for(lock: Any, seconds: float | None = None) -> None:
    """Acquire a lock, at most so many seconds. On the main thread it looks up ten times a second: where a library has
    signals restart calls (SA_RESTART; polars does), Ctrl-C does not end a wait for a lock."""
    if not _on_main_thread():
        lock.acquire(timeout=-1 if seconds is None else max(seconds, 0))
        return
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    while not lock.acquire(timeout=min(max(deadline - time.monotonic(), 0), _LOOK_EVERY)):
        if time.monotonic() >= deadline:
            return


def _on_main_thread() -> bool:
    return get_ident() == threading.main_thread().ident


class _Work(Generic[Result]):
    """A function that runs on another thread. ``done``: released at its end. ``abandoned``: nobody waits for it."""

    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function
        self._result: list[Result] = []
        self._error: list[BaseException] = []
        self.abandoned = False
        self.done = allocate_lock()
        self.done.acquire()

    def run(self) -> None:
        _at_work[get_ident()] = self
        try:
            if not self.abandoned:
                self._result.append(self._function())
        except BaseException as error:
            self._error.append(error)
        del self._function, _at_work[get_ident()]
        _forget_this_thread()

    def outcome(self) -> Result:
        """Return what the function returned, or raise what it raised. Valid once ``done`` is released."""
        if not self._error:
            return self._result[0]
        error = self._error[0]
        try:
            raise error
        finally:
            del error, self._error[:]  # its traceback has this frame: they would keep each other


_at_work: dict[int, _Work[Any]] = {}  # by the thread's number

# The main thread hands work over, one piece at a time; pieces that it no longer waits for may still be under way. A
# thread stays for the next piece: starting one for each would show up in every trace of clone.
_due: SimpleQueue[_Work[Any]] = SimpleQueue()
_free: list[int] = []  # the numbers of the threads that wait for work, but of one that it has been handed over to
_MAX_FREE = 1


def _hand_over(work: _Work[Any]) -> None:
    try:
        _free.pop()
        free = True
    except IndexError:
        free = False
    _due.put(work)
    if not free:
        start_new_thread(_serve, (_due,))


def _serve(due: SimpleQueue[_Work[Any]]) -> None:
    try:
        work = due.get_nowait()
    except Empty:  # one that had become free was faster
        return
    me = get_ident()
    while True:
        work.run()
        stays = len(_free) < _MAX_FREE
        if stays:
            _free.append(me)  # before the caller goes on, and calls again
        done = work.done
        del work
        done.release()
        if not stays:
            return
        work = due.get()
        with suppress(ValueError):  # it may be work that was left by a caller who was interrupted
            _free.remove(me)


def _forget_this_thread() -> None:
    """Remove this thread from threading's list. current_thread() has put it there, and before Python 3.13 nothing
    removes a thread that threading did not start."""
    thread = threading._active.get(get_ident())  # type: ignore[attr-defined]
    if isinstance(thread, threading._DummyThread):
        del threading._active[get_ident()]  # type: ignore[attr-defined]


class Flag:
    """An event like threading.Event, without ``clear``. An interrupt at any point of ``wait`` does no harm."""

    def __init__(self) -> None:
        self._set = False
        self._waiting: list[Any] = []  # a lock for each who waits, which is released to wake them

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        """Set it. Not for the main thread, where it could be interrupted: see ``uninterrupted``."""
        self._set = True
        with suppress(IndexError):
            while True:
                self._waiting.pop().release()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is set, at most so many seconds; return whether it is."""
        lock = allocate_lock()
        lock.acquire()
        self._waiting.append(lock)
        if not self._set:  # who sets it from now on sees the lock
            _wait_for(lock, seconds)
        if not self._set:
            with suppress(ValueError):  # it is being set
                self._waiting.remove(lock)
        return self._set


# --- forks --------------------------------------------------------------------------------------------------------


class Forgetful(Protocol):
    """State of this process that a forked child does not own: its threads are the parent's."""

    def forget(self) -> None:
        """Reset this state. Called in a forked child, where no other thread runs and all locks are free."""


# Not WeakSets, whose callbacks are written in Python: a KeyboardInterrupt in one of them is dropped.
_locks: list[weakref.ref[Any]] = []
_forgetful: list[weakref.ref[Forgetful]] = []
_PRUNE_EVERY = 256


def new_lock() -> threading.Lock:
    """Return a threading.Lock that is free in a forked child."""
    lock = threading.Lock()
    _note(lock, _locks)
    return lock


def new_rlock() -> threading.RLock:
    """Return a threading.RLock that is free in a forked child."""
    lock = threading.RLock()
    _note(lock, _locks)
    return lock


def forget_after_fork(state: Forgetful) -> None:
    """Have ``state.forget`` called in every forked child, for as long as the object lives."""
    _note(state, _forgetful)


def _note(thing: Any, where: list[weakref.ref[Any]]) -> None:
    where.append(weakref.ref(thing))
    if len(where) % _PRUNE_EVERY == 0:
        _prune(where)


@uninterrupted
def _prune(references: list[weakref.ref[Any]]) -> None:
    for dead in [reference for reference in list(references) if reference() is None]:
        with suppress(ValueError):  # another thread was faster
            references.remove(dead)


def _after_fork() -> None:
    """Reset everything in a forked child: the only fork handler of the notebook's side."""
    global _due
    _at_work.clear()
    _due = SimpleQueue()
    _free.clear()
    for reference in list(_locks):
        if lock := reference():
            lock._at_fork_reinit()  # as the standard library frees its own
    for state in [reference() for reference in list(_forgetful)]:
        if state is not None:
            state.forget()


if hasattr(os, "register_at_fork"):  # where there is fork
    os.register_at_fork(after_in_child=_after_fork)


_waits = threading.local()


def wait_at_most(seconds: float | None) -> None:
    """Have this thread wait at most so long for an answer that it can do without: many things wait for the thread."""
    _waits.seconds = seconds


def patience() -> float | None:
    """Return how long this thread waits for such an answer; None: until it comes."""
    seconds: float | None = getattr(_waits, "seconds", None)
    return seconds
