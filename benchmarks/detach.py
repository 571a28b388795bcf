"""How long a session with many probes takes to end, beside bcc's cleanup of the same.

stop        bpfnb: until no program runs and all is delivered; bcc: until everything is detached
let go      until the kernel has let go of every tracepoint
"""

from __future__ import annotations

import time
from functools import partial

import bpfnb
from benchmarks.common import Contender, Figures, Group, Row, Runs, comparison, seconds, under
from bpfnb.tracer.kernel import tracefs

__all__ = ["DETACH"]

_MANY, _FEWER = 300, 60
_PEER = "bcc, cleanup()"
_CELL = "int f(void *ctx) { return 0; }"


def _tracepoints(count: int) -> list[str]:
    events = (tracefs.root() / "events/syscalls").glob("sys_enter_*")
    return [f"syscalls:{path.name}" for path in sorted(events)[:count]]


def through_bpfnb(count: int) -> Figures:
    session = bpfnb.trace(_CELL, attach={f"tracepoint:{name}": "f" for name in _tracepoints(count)})
    began = time.monotonic()
    session.stop()
    stopped = time.monotonic() - began
    while session.detaching:
        time.sleep(0.01)
    return {"stop": stopped, "gone": time.monotonic() - began}


def through_bcc(count: int) -> Figures:
    from bpfnb.tracer.compile.engine import Engine

    b = Engine().bcc.BPF(text=_CELL)
    for name in _tracepoints(count):
        b.attach_tracepoint(tp=name, fn_name="f")
    began = time.monotonic()
    b.cleanup()
    ended = time.monotonic() - began
    return {"stop": ended, "gone": ended}


def _contenders(quick: bool) -> dict[str, Contender]:
    count = _FEWER if quick else _MANY
    return {
        "bpfnb": Contender(through_bpfnb, {"count": count}),
        _PEER: Contender(through_bcc, {"count": count}),
    }


def _rows(runs: Runs) -> list[Row]:
    row = partial(comparison, runs, show=seconds, ours="bpfnb", peer=_PEER)
    return [
        row("stop() of a session on many tracepoints", "stop", wanted=under(2, "2 s")),
        row("until the kernel has let go of them", "gone"),
    ]


DETACH = Group(f"the end of a session on {_MANY} tracepoints ({_FEWER} when quick)", _contenders, _rows)
