"""Events as they come in Python: ``for event in session`` and ``session.stream()`` beside bcc's callback, and how soon
an event is there.

Figures: those of readers.py; of the second pair ``median`` and ``late``, seconds from the event's time to the loop's
body, the median and the 99th percentile.
"""

from __future__ import annotations

import statistics
import threading
import time
from functools import partial

import bpfnb
from benchmarks import readers
from benchmarks.common import (
    TRACEPOINT,
    Contender,
    Figures,
    Group,
    Producer,
    Row,
    Runs,
    at_least,
    comparison,
    count,
    cpu_of,
    nothing,
    quiet,
    rate,
    seconds,
)
from bpfnb.hosts import default_host

__all__ = ["STREAM"]

_RATE = 200  # events a second, to see how late each is
_OURS, _PEER = "bpfnb, for event in session", "bcc, a callback"
_FRAMES = "bpfnb, session.stream()"
_OURS_SLOWLY, _PEER_SLOWLY = f"{_OURS}, {_RATE}/s", f"{_PEER}, {_RATE}/s"


def loop(count: int, frames: bool = False) -> Figures:
    """``frames``: as DataFrames of what is new, else one by one as tuples, of which half the time makes Timestamps."""
    tracer = default_host.connect().hello().pid
    with Producer(count=count) as producer, _session(producer) as session:
        before, own_before = cpu_of(tracer), time.process_time()
        producer.go()
        made: list[tuple[int, float]] = []
        _stop_when_all_came(session, producer, count, made)
        if frames:
            delivered = sum(len(batch) for batch in session.stream())
        else:
            delivered = len([(e.ts, e.pid, e.tid, e.cpu, e.uid, e.comm) for e in session])
        cpu, own = cpu_of(tracer) - before, time.process_time() - own_before
        return readers.figures(made[0], delivered, session.lost, cpu + own, 0)


def _session(producer: Producer) -> bpfnb.Session:
    attach, flags = {f"tracepoint:{TRACEPOINT}": "produce"}, readers.flags_for(producer)
    return bpfnb.trace(readers.perf_cell(), attach=attach, cflags=flags, max_cost=1)


def _stop_when_all_came(session: bpfnb.Session, producer: Producer, count: int, made: list[tuple[int, float]]) -> None:
    """In a thread. ``made`` gets what the producer says."""

    def stop() -> None:
        made.append(producer.wait())
        quiet(lambda: session.outputs["events"].rows + session.lost, count)
        session.stop()

    threading.Thread(target=stop, daemon=True).start()


def how_late(count: int) -> Figures:
    with Producer(count=count, rate=_RATE) as producer, _session(producer) as session:
        producer.go()
        _stop_when_all_came(session, producer, count, [])
        return _late([time.monotonic_ns() - event.ts for event in session])


def how_late_bcc(count: int) -> Figures:
    late: list[int] = []
    with (
        Producer(count=count, rate=_RATE) as producer,
        readers.plain_bcc(readers.perf_cell(), readers.flags_for(producer)) as b,
    ):
        events = b["events"]
        events.open_perf_buffer(lambda _, data, size: late.append(time.monotonic_ns() - events.event(data).ts))
        b.attach_tracepoint(tp=TRACEPOINT, fn_name="produce")
        producer.go()
        while not producer.done():
            b.perf_buffer_poll(100)
        b.perf_buffer_poll(100)
    return _late(late)


def _late(nanoseconds: list[int]) -> Figures:
    return {"median": statistics.median(nanoseconds) / 1e9, "late": statistics.quantiles(nanoseconds, n=100)[98] / 1e9}


def _contenders(quick: bool) -> dict[str, Contender]:
    events, slowly = {"count": 1_000_000 if quick else 3_000_000}, {"count": _RATE * (3 if quick else 10)}
    return {
        _OURS: Contender(loop, events, warm=True),
        _FRAMES: Contender(loop, {"frames": True, **events}, warm=True),
        _PEER: Contender(readers.bcc, {"cell": readers.perf_cell(), "pages": 64, **events}, warm=True),
        _OURS_SLOWLY: Contender(how_late, slowly),
        _PEER_SLOWLY: Contender(how_late_bcc, slowly),
    }


def _rows(runs: Runs) -> list[Row]:
    row, frames = (partial(comparison, runs, ours=ours, peer=_PEER) for ours in (_OURS, _FRAMES))
    slow = partial(comparison, runs, ours=_OURS_SLOWLY, peer=_PEER_SLOWLY, show=seconds)
    return [
        row("events one by one: delivered", "delivered", count),
        row("events one by one: lost, worst run", "lost", count, worst=True, wanted=nothing()),
        row("events one by one: per CPU second, of all processes", "per_reader_cpu", rate),
        row("events one by one: producer", "rate", rate),
        frames(
            "DataFrames of what is new: per CPU second, of all processes", "per_reader_cpu", rate, wanted=at_least(10)
        ),
        slow("an event in the loop, median", "median"),
        slow("an event in the loop, 99th percentile", "late"),
    ]


STREAM = Group("events as they come in Python: for event in session, session.stream()", _contenders, _rows)
