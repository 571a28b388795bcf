"""How long a cell takes from asked for to attached, beside plain BPF(text) and attach_tracepoint in one process.

first       in a new process: bpfnb starts its tracer, bcc is imported
another     a cell this process has not run yet
unchanged   the same cell again, in place of the running one
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import bpfnb
from benchmarks import readers
from benchmarks.common import TRACEPOINT, Contender, Figures, Group, Row, Runs, at_most, comparison, seconds, under

__all__ = ["LATENCY"]

_TIMES = 5
_PEER = "BPF(text) and attach"


def _cell(number: int) -> str:
    """Cells that differ from each other."""
    return readers.ring_cell(64).replace("PRODUCER", str(number))


def _timed(act: Callable[[int], object], number: int) -> float:
    began = time.monotonic()
    act(number)
    return time.monotonic() - began


def through_bpfnb() -> Figures:
    def ask(number: int) -> None:
        bpfnb.trace(_cell(number), attach={f"tracepoint:{TRACEPOINT}": "produce"})

    first = _timed(ask, 1)
    another = []
    for number in range(2, 2 + _TIMES):
        bpfnb.stop_all()
        another.append(_timed(ask, number))
    unchanged = [_timed(ask, 1 + _TIMES) for _ in range(_TIMES)]
    bpfnb.stop_all()
    return {"first": first, "another": statistics.median(another), "unchanged": statistics.median(unchanged)}


def through_bcc() -> Figures:
    began = time.monotonic()
    from bpfnb.tracer.compile.engine import Engine

    plain = Engine().bcc.BPF

    def ask(number: int) -> None:
        b = plain(text=_cell(number))
        b.attach_tracepoint(tp=TRACEPOINT, fn_name="produce")
        running.append(b)

    running: list[object] = []
    ask(1)
    first = time.monotonic() - began
    another = [_timed(ask, number) for number in range(2, 2 + _TIMES)]
    unchanged = [_timed(ask, 1 + _TIMES) for _ in range(_TIMES)]
    return {"first": first, "another": statistics.median(another), "unchanged": statistics.median(unchanged)}


def _contenders(quick: bool) -> dict[str, Contender]:
    return {"bpfnb": Contender(through_bpfnb), _PEER: Contender(through_bcc)}


def _rows(runs: Runs) -> list[Row]:
    row = partial(comparison, runs, show=seconds, ours="bpfnb", peer=_PEER)
    return [
        row("to attached: the first cell of a process", "first", wanted=under(1, "1 s")),
        row("to attached: another cell", "another", wanted=at_most(1.5)),
        row("to attached: the same cell again, unchanged", "unchanged", wanted=at_most(1)),
    ]


LATENCY = Group("from asked for to attached", _contenders, _rows)
