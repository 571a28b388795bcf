"""Questions to the tracer that a Tab may wait for: not for long, and not twice."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Hashable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from bpfnb.errors import BpfnbError, SetupError
from bpfnb.host.tracer import Tracer
from bpfnb.hosts import default_host, hosts
from bpfnb.interrupts import new_lock

__all__ = ["Asker", "asker"]

Answer = TypeVar("Answer")

_PATIENCE = 0.9  # seconds that a Tab waits for the kernel's names, all its questions together
_FRESH = 60.0  # seconds: modules come and go
_MAX_ANSWERS = 256
_MAX_WAITING = 4  # questions that the tracer has not answered yet
_HOST = re.compile(r"\s--host[ =]([^\s\"']+)")


class Asker:
    """Asks the tracer on threads of its own, and keeps the answers. An answer that comes too late is there the next
    time. ``connect``: returns the tracer, or raises why there is none."""

    def __init__(self, connect: Callable[[], Tracer], patience: float = _PATIENCE, fresh: float = _FRESH) -> None:
        self._connect, self._patience, self._fresh = connect, patience, fresh
        self._lock = new_lock()
        self._answers: dict[Hashable, tuple[float, Any]] = {}
        self._waiting: dict[Hashable, list[SimpleQueue[Any]]] = {}  # by question: who waits for its answer
        self._host = ""

    @property
    def waiting(self) -> int:
        """How many questions the tracer has not answered yet."""
        return len(self._waiting)

    def deadline(self) -> float:
        """Return until when what begins now may wait."""
        return time.monotonic() + self._patience

    def turn_to(self, words: str) -> None:
        """Ask the host that a line's --host names from now on; one that is not connected has no answers."""
        found = _HOST.search(words)
        self._host = found[1] if found else ""

    def ask(self, key: Hashable, question: Callable[[Tracer], Answer], until: float) -> Answer | None:
        """Return the answer to a question; None where the tracer has none, or none in time. ``key``: names it."""
        key = self._host, key
        answered: SimpleQueue[Answer | None] = SimpleQueue()
        with self._lock:
            when, kept = self._answers.get(key, (0.0, None))
            if when and time.monotonic() - when < self._fresh:
                return kept  # type: ignore[no-any-return]
            asked = key in self._waiting
            if not asked and len(self._waiting) >= _MAX_WAITING:
                return kept  # type: ignore[no-any-return]
            self._waiting.setdefault(key, []).append(answered)
        if not asked and not self._start(key, question):
            return kept  # type: ignore[no-any-return]
        try:
            return answered.get(timeout=max(until - time.monotonic(), 0.001))
        except Empty:
            return kept  # type: ignore[no-any-return]

    def forget(self) -> None:
        """Forget the answers: another tracer may give others."""
        with self._lock:
            self._answers.clear()

    def _start(self, key: Hashable, question: Callable[[Tracer], Any]) -> bool:
        try:
            # Not start_new_thread: connecting may start other threads, and what does that has to be one of Python's.
            connect = partial(_connected, self._host) if self._host else self._connect
            arguments = key, question, connect
            threading.Thread(target=self._find, args=arguments, name="bpfnb-asking", daemon=True).start()
            return True
        except RuntimeError:  # no thread to be had
            with self._lock:
                self._waiting.pop(key, None)
            return False

    def _find(self, key: Hashable, question: Callable[[Tracer], Any], connect: Callable[[], Tracer]) -> None:
        answer = None
        try:
            answer = question(connect())
        except BpfnbError:
            pass  # no tracer, or no such name: a Tab is no place for an error
        finally:
            with self._lock:
                waiting = self._waiting.pop(key, [])
                self._answers.pop(key, None)
                self._answers[key] = time.monotonic(), answer
                while len(self._answers) > _MAX_ANSWERS:
                    del self._answers[next(iter(self._answers))]
            for answered in waiting:
                answered.put(answer)


def _connected(name: str) -> Tracer:
    for host in hosts():
        if host.name == name and (tracer := host.tracer()):
            return tracer
    raise SetupError(f"{name} is not connected")


asker = Asker(lambda: default_host.connect())
