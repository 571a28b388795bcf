"""What a DataFrame costs: the first one of N rows, the same one again, one after a few more rows, and its memory.

The events are real ones, through a ring buffer at a pace at which none is lost. The peer is what bcc's callbacks leave
behind: a list with a tuple an event, made into a DataFrame.
"""

from __future__ import annotations

import gc
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

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
    at_most,
    comparison,
    quiet,
    seconds,
    size_of,
)
from benchmarks.tables import touch

__all__ = ["FRAMES"]

_PACE = 2_000_000
_MORE = 100  # so that 1 / _MORE of the rows comes after the first DataFrame
_MOST_LISTED = 10_000_000  # tuples of 30 million events do not fit into most machines


def through_bpfnb(events: int) -> Figures:
    _frames(100_000)  # what is imported and allocated once is no cost of an event
    return _frames(events)


def _frames(events: int) -> Figures:
    few = events // _MORE
    with Producer(count=events, rate=_PACE) as producer, Producer(count=few, rate=_PACE) as again:
        cell = readers.ring_cell(1024).replace("!= PRODUCER", "!= PRODUCER && id >> 32 != AGAIN")
        flags = [*readers.flags_for(producer), f"-DAGAIN={again.pid}"]
        attach = {f"tracepoint:{TRACEPOINT}": "produce"}
        with bpfnb.trace(cell, attach=attach, cflags=flags, keep=events * 128, max_cost=1) as session:
            output = session.outputs["events"]
            before = _resident()
            producer.run()
            quiet(lambda: output.rows + output.lost, events)
            touch(events * 60)  # the host of a virtual machine takes its time to give memory, and soon takes it back
            first, frame = _timed(lambda: output.df)
            grown = _resident() - before
            raw = int(frame.memory_usage(index=False).sum())
            unchanged, _ = _timed(lambda: output.df)
            again.run()
            quiet(lambda: output.rows + output.lost, events + few)
            more, longer = _timed(lambda: output.df)
    return {
        "rows": len(frame),
        "first": first,
        "unchanged": unchanged,
        "more": more,
        "more_rows": len(longer) - len(frame),
        "bytes": grown / len(frame),
        "raw_bytes": raw / len(frame),
        "missing": events - len(frame),
    }


def through_a_list(events: int) -> Figures:
    touch(events * 300)
    before = _resident()
    now = time.monotonic_ns()
    rows = [(now + i, 4321, 4321, 1, 0, b"producer") for i in range(events)]
    first, frame = _timed(lambda: pd.DataFrame(rows, columns=readers.FIELDS))
    grown = _resident() - before
    again, _ = _timed(lambda: pd.DataFrame(rows, columns=readers.FIELDS))
    return {"rows": len(frame), "first": first, "unchanged": again, "more": again, "bytes": grown / len(frame)}


def _timed(make: Any) -> tuple[float, pd.DataFrame]:
    began = time.monotonic()
    frame = make()
    return time.monotonic() - began, frame


def _resident() -> int:
    """Bytes of this process in memory, shared ones included."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _sizes(quick: bool) -> list[int]:
    return [1_000_000, 10_000_000] if quick else [1_000_000, 10_000_000, 30_000_000]


def _contenders(quick: bool) -> dict[str, Contender]:
    contenders = {}
    for size in _sizes(quick):
        contenders[f"bpfnb, {size // 10**6} M rows"] = Contender(through_bpfnb, {"events": size})
        if size <= _MOST_LISTED:
            contenders[f"list of tuples, {size // 10**6} M rows"] = Contender(through_a_list, {"events": size})
    return contenders


def _rows(runs: Runs) -> list[Row]:
    rows = []
    for size in _sizes(quick=False):
        ours, peer = f"bpfnb, {size // 10**6} M rows", f"list of tuples, {size // 10**6} M rows"
        if ours not in runs.figures and ours not in runs.failures:
            continue
        what = f"df of {size // 10**6} M rows"
        row = partial(comparison, runs, ours=ours, peer=peer if size <= _MOST_LISTED else "")
        rows += [
            row(f"{what}: the first", "first", seconds, wanted=at_most(0.1) if size <= _MOST_LISTED else None),
            row(f"{what}: again, unchanged", "unchanged", seconds),
            row(f"{what}: after 1 % more", "more", seconds),
            comparison(
                runs,
                f"{what}: memory an event, the notebook's growth",
                "bytes",
                size_of,
                ours=ours,
                peer=ours,
                peer_key="raw_bytes",
                label="the columns' bytes",
                wanted=at_most(2),
            ),
        ]
    return rows


FRAMES = Group("the cost of a DataFrame", _contenders, _rows)
