"""How far clocks are apart: of hosts, the scheduler and the client.

Each asks the scheduler for its time, over the connection that it has anyway, several times. The answer of the quickest
round trip counts: the scheduler read its clock somewhere within it, so the middle is right within half of it. That is
how dask measures its workers' ``scheduler_delay``, which takes any round trip and says no error.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from distributed.protocol.pickle import dumps, loads

__all__ = ["UNKNOWN", "Offset", "measure"]

_TRIPS = 8


class Offset(NamedTuple):
    """A clock minus the scheduler's, in nanoseconds, within ``error_ns``."""

    offset_ns: int
    error_ns: int


UNKNOWN = Offset(0, 1 << 61)


async def measure(scheduler: Any, clock: Callable[[], int] = time.time_ns, trips: int = _TRIPS) -> Offset:
    """Measure a clock against the scheduler's. ``scheduler``: dask's rpc to it, a client's or a worker's."""
    best: Offset | None = None
    for _ in range(trips):
        began = clock()
        answer = await scheduler.run_function(function=dumps(time.time_ns), args=dumps(()), kwargs=dumps({}))
        ended = clock()
        if answer["status"] != "OK":  # the scheduler runs nothing (distributed.scheduler.pickle is off)
            return UNKNOWN
        result = answer["result"]
        there = int(loads(result) if isinstance(result, bytes) else result)
        found = Offset((began + ended) // 2 - there, (ended - began + 1) // 2)
        best = found if best is None or found.error_ns < best.error_ns else best
    assert best
    return best
