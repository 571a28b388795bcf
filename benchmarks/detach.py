"""How long a session with many probes takes to begin and to end, beside bcc and bpftrace.

attach      from the call until every probe is attached, with what clang takes
stop        bpfnb: until no program runs and all is delivered; bcc: until everything is detached
gone        until the kernel has let go of every tracepoint
whole       bpftrace: a process of its own that traces /bin/true, from its start to its end
"""

from __future__ import annotations

import shutil
import subprocess
import time
from functools import partial

import bpfnb
from benchmarks.common import Contender, Figures, Group, Row, Runs, comparison, missing, seconds, under
from bpfnb.tracer.kernel import tracefs

__all__ = ["DETACH", "MANY"]

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


# --- every system call ----------------------------------------------------------------------------------------------

_ENTRIES = "tracepoint:syscalls:sys_enter_*"
_ONE_BY_ONE, _BPFTRACE = "one by one", "bpftrace -c /bin/true"
_COUNT = "BPF_HASH(counts, u32, u64);\nint f(void *ctx) { counts.increment(bpfnb_probe(ctx)); return 0; }"


def attached(names: list[str]) -> Figures:
    """Attach a function to probes and detach it, in a process that has had a session before."""
    with bpfnb.trace(_COUNT, attach={"tracepoint:syscalls:sys_enter_getpgid": "f"}, name="one"):
        pass
    began = time.monotonic()
    session = bpfnb.trace(_COUNT, attach=dict.fromkeys(names, "f"), name="many")
    attached_at = time.monotonic()
    session.stop()
    while session.detaching:
        time.sleep(0.01)
    gone = time.monotonic()
    probes = len(session.probes)
    return {"attach": attached_at - began, "gone": gone - attached_at, "whole": gone - began, "probes": probes}


def through_bpftrace() -> Figures:
    if not shutil.which("bpftrace"):
        raise RuntimeError(missing("bpftrace"))
    began = time.monotonic()
    program = f"{_ENTRIES} {{ @[probe] = count(); }}"
    subprocess.run(["bpftrace", "-c", "/bin/true", "-e", program], check=True, capture_output=True)
    return {"whole": time.monotonic() - began}


def _many_contenders(quick: bool) -> dict[str, Contender]:
    every = [f"tracepoint:{name}" for name in _tracepoints(1000)]
    return {
        "bpfnb": Contender(attached, {"names": [_ENTRIES]}),
        _ONE_BY_ONE: Contender(attached, {"names": every[:_FEWER] if quick else every}),
        _BPFTRACE: Contender(through_bpftrace, {}),
    }


def _many_rows(runs: Runs) -> list[Row]:
    row = partial(comparison, runs, show=seconds, ours="bpfnb")
    return [
        row("every system call's entry: attach", "attach", peer=_ONE_BY_ONE, wanted=under(2, "2 s")),
        row("until the kernel has let go of them", "gone", peer=_ONE_BY_ONE, wanted=under(2, "2 s")),
        row("from the beginning to the end", "whole", peer=_BPFTRACE),
    ]


MANY = Group(
    f"a wildcard for every system call, beside its tracepoints one by one (when quick {_FEWER} of them), and bpftrace",
    _many_contenders,
    _many_rows,
)
