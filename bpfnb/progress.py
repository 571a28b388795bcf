"""Long steps say what they do: a line after a second, with a count where there is one, gone when the step is over.

    with step("naming stacks", total=len(processes)) as naming:
        for number, process in enumerate(processes):
            naming.tick(number)
            ...

Only what the main thread waits for says so, and one step at a time: one within another keeps the outer one's line
moving. Where a line is shown others decide (``show_on``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from bpfnb.interrupts import caller_left, for_main_thread, forget_after_fork, new_lock

__all__ = ["AFTER", "EVERY", "Line", "Step", "drop", "show_on", "step"]

AFTER = 1.0  # seconds
EVERY = 0.5  # seconds between two changes of a line


class Line(Protocol):
    """A line that can be written again and again. ``erase``: ``left`` where the main thread has gone on meanwhile, so
    that a terminal's cursor may be elsewhere."""

    def write(self, text: str) -> None: ...

    def erase(self, left: bool = False) -> None: ...


class Step:
    """Something that may take long. Calls cost next to nothing between two changes of the line.

    This one is silent: of a thread that nobody waits for.
    """

    def say(self, what: str, done: int = 0, total: int = 0) -> None:
        """Set what is being done, and how much of it has been."""

    def tick(self, done: int | None = None) -> None:
        """Set how much has been done; keep the line up to date."""


class _Shown(Step):
    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._done, self._total = 0, total
        self._begun = time.monotonic()
        self._due = self._begun + AFTER
        self._line: Line | None = None
        self.over = False
        self._lock = new_lock()

    def say(self, what: str, done: int = 0, total: int = 0) -> None:
        self._what, self._done, self._total = what, done, total
        self.tick()

    def tick(self, done: int | None = None) -> None:
        self._done = self._done if done is None else done
        now = time.monotonic()
        if now < self._due:
            return
        if caller_left():
            self.end()
            return
        with self._lock:
            if self.over:
                return
            self._due = now + EVERY
            self._line = self._line or _state.open_line()
            if self._line:
                self._line.write(self._text(int(now - self._begun)))

    def end(self) -> None:
        """Take the line away. Nothing is written afterwards."""
        with self._lock:
            self.over = True
            line, self._line = self._line, None
            if line:
                line.erase(caller_left())

    def _text(self, seconds: int) -> str:
        count = f": {self._done:,} of {self._total:,}" if self._total else ""
        return f"{self._what}{count}, {seconds} s"


class _Inner(Step):
    """A step within another: keeps the other's line moving."""

    def __init__(self, outer: _Shown) -> None:
        self._outer = outer

    def say(self, what: str, done: int = 0, total: int = 0) -> None:
        self._outer.tick()

    def tick(self, done: int | None = None) -> None:
        self._outer.tick()


class _State:
    def __init__(self) -> None:
        self.open_line: Callable[[], Line | None] = lambda: None
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        self.current: _Shown | None = None


_state = _State()


def show_on(open_line: Callable[[], Line | None]) -> None:
    """Have steps show themselves on the lines that this returns, where it returns one."""
    _state.open_line = open_line


@contextmanager
def step(what: str, total: int = 0) -> Iterator[Step]:
    """Do something that may take long, inside a ``with`` block."""
    outer = _state.current
    if not for_main_thread():
        yield Step()
    elif outer and not outer.over:
        yield _Inner(outer)
    else:
        mine = _state.current = _Shown(what, total)
        try:
            yield mine
        finally:
            _end(mine)


def drop() -> None:
    """Take the line away at once: the main thread was interrupted, and waits no longer."""
    if current := _state.current:
        _end(current)


def _end(ended: _Shown) -> None:
    if _state.current is ended:
        _state.current = None
    ended.end()
