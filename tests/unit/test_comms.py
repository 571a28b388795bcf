"""Names over time: the right one, or none; and no more of them than there is room for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np

from bpfnb.tracer.read import comms
from bpfnb.tracer.read.comms import Names


def history_of(names: dict[int, list[tuple[int, bytes]]], **limits: int) -> Names:
    """One that knows these names since these times."""
    made = Names(**limits)
    for since, pid, name in sorted((since, pid, name) for pid, known in names.items() for since, name in known):
        made.add(since, pid, name)
    return made


def told(history: Names, pid: int, *times: int) -> list[bytes]:
    return history.lookup(np.full(len(times), pid, np.int32), np.array(times)).tolist()


def test_a_name_is_that_of_the_moment() -> None:
    history = history_of({7: [(0, b"first"), (100, b"second"), (200, b"third")], 8: [(150, b"born")]})
    assert told(history, 7, 50, 99, 100, 199, 200, 5000) == [
        b"first",
        b"first",
        b"second",
        b"second",
        b"third",
        b"third",
    ]
    assert told(history, 8, 150, 151) == [b"born", b"born"]


def test_tasks_that_end_while_they_are_listed_are_left_out() -> None:
    forks = "import os\nwhile True:\n pids = [os.fork() or os._exit(0) for _ in range(20)]\n [os.wait() for _ in pids]"
    with subprocess.Popen([sys.executable, "-c", forks]) as forking:
        try:
            seen = {task for _ in range(1500) for task in comms._tasks()}
        finally:
            forking.kill()
    assert {os.getpid(), threading.get_native_id(), forking.pid} < seen


def test_before_the_first_name_that_is_remembered_there_is_none() -> None:
    assert told(history_of({8: [(150, b"later")]}), 8, 149, 151) == [b"<...>", b"later"]


def test_of_very_many_renames_the_last_are_remembered() -> None:
    now = time.monotonic_ns()
    names = {7: [(0, b"old"), *((now + n, b"name%d" % n) for n in range(100))], 8: [(0, b"other")]}
    history = history_of(names, max_renames=10)
    history.forget()
    assert len(history.names[7]) == len(history.renames) + 1 == 11
    assert told(history, 7, now + 99, now + 89, now + 88) == [b"name99", b"name89", b"<...>"]
    assert told(history, 8, now) == [b"other"]
