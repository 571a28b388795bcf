"""What is remembered of processes: within its bounds, and of the right one."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bpfnb.tracer.symbols.mappings import Mapping, Pasts, parse_mappings
from bpfnb.tracer.symbols.symbols import Symbols, started_at

SESSION = 7


def file(start: int, end: int, offset: int = 0, path: bytes = b"/f") -> Mapping:
    return Mapping(start, end, offset, 1, path)


def mappings(pasts: Pasts, pid: int) -> list[tuple[int, int, int, bytes]]:
    past = pasts.find(SESSION, pid)
    assert past
    return [(m.start, m.end, m.offset, m.path) for m in past.mappings]


def test_a_mapping_takes_the_place_of_what_was_there() -> None:
    pasts = Pasts()
    pasts.add(SESSION, 1, 0, [file(10, 20), file(20, 30, 5)])
    pasts.map(SESSION, 1, file(15, 25, path=b"/new"))
    assert mappings(pasts, 1) == [(10, 15, 0, b"/f"), (15, 25, 0, b"/new"), (25, 30, 10, b"/f")]
    pasts.map(SESSION, 1, file(17, 18, path=b""))
    assert mappings(pasts, 1)[1:3] == [(15, 17, 0, b"/new"), (18, 25, 3, b"/new")]


def test_a_child_has_its_parents_until_it_becomes_another_program() -> None:
    pasts = Pasts()
    pasts.add(SESSION, 1, 0, [file(10, 20)])
    pasts.fork(SESSION, 1, 2, 0)
    pasts.fork(SESSION, 5, 6, 0)  # of nobody's
    pasts.exec(SESSION, 1)
    assert (mappings(pasts, 1), mappings(pasts, 2)) == ([], [(10, 20, 0, b"/f")])
    assert pasts.find(SESSION, 6) is None
    assert pasts.find(SESSION + 1, 2) is None
    pasts.fork(SESSION, 5, 2, 99)  # a stranger's child gets the number
    past = pasts.find(SESSION, 2)
    assert past
    assert past.ended == 99


def test_those_that_ended_first_are_forgotten_first() -> None:
    pasts = Pasts(max_bytes=5 * 500)
    for pid in range(1, 6):
        pasts.add(SESSION, pid, 0, [])
    for pid in (4, 2):
        pasts.end(SESSION, pid, 1)
    for pid in (6, 7, 8):
        pasts.add(SESSION, pid, 0, [])
    assert [pid for pid in range(1, 9) if pasts.find(SESSION, pid)] == [3, 5, 6, 7, 8]


def test_whoever_has_the_number_now_is_not_taken_for_it() -> None:
    """A process that is alive, as another one that is remembered under its number."""
    me = os.getpid()
    here = next(parse_mappings(Path("/proc/self/maps").read_bytes().split(b"\n")))
    pasts = Pasts()
    pasts.add(SESSION, me, os.getuid(), [])
    symbols = Symbols()
    try:
        watched = symbols.find(me, [here.start], pasts.find(SESSION, me))
        pasts.leave(SESSION, started_at, time.time_ns())
        left = symbols.find(me, [here.start], pasts.find(SESSION, me))
        assert watched[1] == left[1] == (os.fsdecode(here.path),)
        pasts.leave(SESSION, lambda pid: 1, time.time_ns())
        assert symbols.find(me, [here.start], pasts.find(SESSION, me)) == (("[unknown]",), ("",))
    finally:
        symbols.close()
