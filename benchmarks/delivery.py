"""What arrives of 40-byte events, and at what cost: ring buffer, perf buffer, bpftrace; for long; under a held GIL."""

from __future__ import annotations

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
    nothing,
    percent,
    rate,
    seconds,
    times,
)
from benchmarks.counting import STATS, nanoseconds, run_time
from bpfnb.hosts import default_host

__all__ = ["ADDED", "BPFTRACE", "FIRST", "GIL", "PERF", "RING", "SUSTAINED"]

_PAGES = (64, 1024)  # as bcc's own tools have it, and sixteen times that
_RATE = 500_000  # events a second where the producer is throttled
_NO_PROBE = "no probe"
_LIMIT = "C that only copies"


def _events(quick: bool) -> int:
    return 1_000_000 if quick else 3_000_000


def _rows(what: str, ours: str, peer: str, faster: float, producer: float, runs: Runs) -> list[Row]:
    """``faster``: how many times the peer's events per CPU second are wanted; ``producer``: and its producer's rate."""
    free = runs.median(_NO_PROBE, "rate")
    runs.derive("slow_down", lambda run: free / run["rate"] if free else 0.0)
    row = partial(comparison, runs, ours=ours, peer=peer)
    return [
        row(f"{what}: delivered", "delivered", count),
        row(f"{what}: lost and said so, worst run", "lost", count, worst=True, wanted=nothing()),
        row(f"{what}: lost in silence, worst run", "unsaid", count, worst=True, wanted=nothing()),
        row(f"{what}: events per CPU second, read", "per_reader_cpu", rate, wanted=at_least(faster)),
        row(f"{what}: events per CPU second, to the DataFrame", "per_cpu", rate, wanted=at_least(faster)),
        row(f"{what}: the same, the first time in a process", "first_per_cpu", rate),
        row(f"{what}: producer", "rate", rate, wanted=at_least(producer)),
        row(f"{what}: producer's slow-down ({_NO_PROBE}: 1)", "slow_down", times),
    ]


def _limit_rows(what: str, ours: str, runs: Runs) -> list[Row]:
    """How near it comes to the least that has to be done, in events per CPU second."""
    row = partial(comparison, runs, show=rate, ours=ours, peer=_LIMIT, peer_key="per_reader_cpu")
    return [
        row(f"{what}, of the limit: drained", "per_reader_cpu"),
        row(f"{what}, of the limit: to the DataFrame", "per_cpu"),
    ]


# --- BPF_RINGBUF_OUTPUT -------------------------------------------------------------------------------------------


def _ring_contenders(quick: bool) -> dict[str, Contender]:
    events = {"count": _events(quick)}
    limit = {"cell": readers.ring_cell(readers.LIMIT_PAGES), **events}
    contenders = {
        _NO_PROBE: Contender(readers.no_probe, events, warm=True),
        _LIMIT: Contender(readers.limit, limit, warm=True),
    }
    for pages in _PAGES:
        cell = {"cell": readers.ring_cell(pages), **events}
        contenders[f"bpfnb ring, {pages} pages"] = Contender(readers.bpfnb_cell, cell, warm=True)
        contenders[f"bcc ring, {pages} pages"] = Contender(readers.bcc, cell, warm=True)
    return contenders


def _ring_rows(runs: Runs) -> list[Row]:
    rows = []
    for pages in _PAGES:
        what, ours, peer = f"ring, {pages} pages", f"bpfnb ring, {pages} pages", f"bcc ring, {pages} pages"
        rows += [*_rows(what, ours, peer, 20, 0.9, runs), *_limit_rows(what, ours, runs)]
    return rows


RING = Group("BPF_RINGBUF_OUTPUT, one producer, flat out", _ring_contenders, _ring_rows)


# --- BPF_PERF_OUTPUT ----------------------------------------------------------------------------------------------


def _perf_contenders(quick: bool) -> dict[str, Contender]:
    events = {"count": _events(quick)}
    cell = {"cell": readers.perf_cell(), **events}
    return {
        _NO_PROBE: Contender(readers.no_probe, events, warm=True),
        _LIMIT: Contender(readers.limit, {"perf": True, **cell}, warm=True),
        "bpfnb perf": Contender(readers.bpfnb_cell, cell, warm=True),
        **{
            f"bcc perf, page_cnt={pages}": Contender(readers.bcc, {"pages": pages, **cell}, warm=True)
            for pages in _PAGES
        },
    }


def _perf_rows(runs: Runs) -> list[Row]:
    peers = [f"bcc perf, page_cnt={pages}" for pages in _PAGES]
    rows = [row for peer in peers for row in _rows("perf", "bpfnb perf", peer, 20, 10, runs)]
    return [*rows, *_limit_rows("perf", "bpfnb perf", runs)]


PERF = Group("BPF_PERF_OUTPUT, one producer, flat out", _perf_contenders, _perf_rows)


# --- the first time in a process ----------------------------------------------------------------------------------


def _first_contenders(quick: bool) -> dict[str, Contender]:
    cell = readers.ring_cell(1024)
    return {
        f"{name}, {millions} M": Contender(reader, {"cell": cell, "count": millions * 1_000_000})
        for millions in (3, 20)
        for name, reader in (("bpfnb", readers.bpfnb_cell), ("bcc ring", readers.bcc))
    }


def _first_rows(runs: Runs) -> list[Row]:
    rows = []
    for millions in (3, 20):
        row = partial(comparison, runs, ours=f"bpfnb, {millions} M", peer=f"bcc ring, {millions} M")
        what = f"first time in a process, {millions} M events"
        rows += [
            row(f"{what}: delivered", "delivered", count),
            row(f"{what}: lost in silence, worst run", "unsaid", count, worst=True, wanted=nothing()),
            row(f"{what}: events per CPU second, read", "per_reader_cpu", rate),
            row(f"{what}: events per CPU second, to the DataFrame", "per_cpu", rate),
            row(f"{what}: processor time for the DataFrame", "frame_cpu", seconds),
        ]
    return rows


FIRST = Group("BPF_RINGBUF_OUTPUT of 1024 pages, read once in a new process", _first_contenders, _first_rows)


# --- what is added to a cell's calls -------------------------------------------------------------------------------


_ADDED = {
    "stamped": readers.ring_cell(1024),
    "not stamped": readers.ring_cell(1024, stamped=False),
    "any size": readers.perf_cell("sizeof(e) - (e.cpu & 4)"),
    "one size": readers.perf_cell(),
}


def runs_of(rounds: int, calls: int) -> Figures:
    """Of each cell the nanoseconds a run of its program takes, and the producer's calls a second meanwhile.

    Of rounds close together the best, since what disturbs only slows.
    """
    times: dict[str, float] = {}
    rates: dict[str, float] = {}
    before = STATS.read_text()
    STATS.write_text("1")
    try:
        for _ in range(rounds):
            for name, cell in _ADDED.items():
                rate_, took = _run(cell, calls)
                times[f"{name}: run"] = min(times.get(f"{name}: run", took), took)
                rates[f"{name}: calls"] = max(rates.get(f"{name}: calls", rate_), rate_)
    finally:
        STATS.write_text(before)
    return times | rates


def _run(cell: str, calls: int) -> tuple[float, float]:
    attach = {f"tracepoint:{TRACEPOINT}": "produce"}
    with Producer(count=calls) as producer, bpfnb.trace(cell, attach=attach, cflags=readers.flags_for(producer)):
        made, lasted = producer.run()
        return made / lasted, run_time(default_host.connect().hello().pid)


def _added_contenders(quick: bool) -> dict[str, Contender]:
    return {"bpfnb": Contender(runs_of, {"rounds": 5 if quick else 9, "calls": 300_000})}


def _added_rows(runs: Runs) -> list[Row]:
    rows = []
    for what, ours, theirs in (("ring", "stamped", "not stamped"), ("perf", "any size", "one size")):
        row = partial(comparison, runs, ours="bpfnb", peer="bpfnb", label=theirs)
        rows += [
            row(f"{what}, {ours}: a run", f"{ours}: run", nanoseconds, peer_key=f"{theirs}: run"),
            row(f"{what}, {ours}: producer", f"{ours}: calls", rate, peer_key=f"{theirs}: calls", wanted=at_least(0.9)),
        ]
    return rows


ADDED = Group("what stamps and exact lengths cost the producer", _added_contenders, _added_rows)


# --- bpftrace -----------------------------------------------------------------------------------------------------


def _bpftrace_contenders(quick: bool) -> dict[str, Contender]:
    events = {"count": _events(quick) // 3}  # a hundred bytes of JSON each
    return {
        _NO_PROBE: Contender(readers.no_probe, events, warm=True),
        "bpfnb perf": Contender(readers.bpfnb_cell, {"cell": readers.perf_cell(), **events}, warm=True),
        **{
            f"bpftrace, {pages} pages": Contender(readers.bpftrace, {"pages": pages, **events}, warm=True)
            for pages in _PAGES
        },
    }


def _bpftrace_rows(runs: Runs) -> list[Row]:
    return [
        row for pages in _PAGES for row in _rows("bpftrace", "bpfnb perf", f"bpftrace, {pages} pages", 20, 10, runs)
    ]


BPFTRACE = Group("bpftrace -f json, its printf of the same fields", _bpftrace_contenders, _bpftrace_rows)


# --- for long -----------------------------------------------------------------------------------------------------


def _sustained_contenders(quick: bool) -> dict[str, Contender]:
    contenders = {}
    for pace, limit in (("500 k/s", _RATE), ("flat out", 0)):
        arguments = {"cell": readers.ring_cell(1024), "rate": limit, "seconds": 5 if quick else 30}
        contenders[f"bpfnb, {pace}"] = Contender(readers.bpfnb_cell, arguments)
        contenders[f"bcc ring, only counting, {pace}"] = Contender(readers.bcc, {"keep": False, **arguments})
    return contenders


def _sustained_rows(runs: Runs) -> list[Row]:
    rows = []
    for pace in ("500 k/s", "flat out"):
        row = partial(comparison, runs, ours=f"bpfnb, {pace}", peer=f"bcc ring, only counting, {pace}")
        rows += [
            row(f"sustained, {pace}: produced", "rate", rate),
            row(f"sustained, {pace}: delivered", "delivered_rate", rate),
            row(f"sustained, {pace}: lost and said so, worst run", "lost", count, worst=True, wanted=nothing()),
            row(f"sustained, {pace}: lost in silence, worst run", "unsaid", count, worst=True, wanted=nothing()),
            row(f"sustained, {pace}: not delivered", "missing_percent", percent),
        ]
    return rows


SUSTAINED = Group("BPF_RINGBUF_OUTPUT of 1024 pages, for long", _sustained_contenders, _sustained_rows)


# --- under a held GIL ---------------------------------------------------------------------------------------------


def _gil_contenders(quick: bool) -> dict[str, Contender]:
    length = 3 if quick else 10
    arguments = {"cell": readers.ring_cell(1024), "rate": _RATE, "seconds": length, "hold": length}
    return {
        "bpfnb": Contender(readers.bpfnb_cell, arguments),
        "bcc ring, in a thread": Contender(readers.bcc, arguments),
    }


def _gil_rows(runs: Runs) -> list[Row]:
    row = partial(comparison, runs, ours="bpfnb", peer="bcc ring, in a thread")
    return [
        row("held GIL, 500 k/s: produced", "produced", count),
        row("held GIL, 500 k/s: delivered", "delivered", count),
        row("held GIL, 500 k/s: lost and said so, worst run", "lost", count, worst=True, wanted=nothing()),
        row("held GIL, 500 k/s: lost in silence, worst run", "unsaid", count, worst=True, wanted=nothing()),
    ]


GIL = Group("the notebook holds its GIL in one long call into C", _gil_contenders, _gil_rows)
