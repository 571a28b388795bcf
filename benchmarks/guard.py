"""What the guard costs, and how soon it ends a session that takes too much.

calls      a producer's calls a second with a program on them: beside a tracer that may not have programs timed
idle       CPU of a tracer with one session that nothing happens to
ended      from attached until a session that runs a long loop at every system call is ended, and its rows delivered
"""

from __future__ import annotations

import ctypes
import subprocess
import time
from functools import partial

import bpfnb
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
    cpu_of,
    percent,
    rate,
    seconds,
    under,
)
from bpfnb.hosts import default_host

__all__ = ["GUARD"]

_WITH, _WITHOUT = "bpfnb", "programs never timed"
_PR_CAPBSET_DROP, _SYS_ADMIN = 24, 21
_COUNT = """
BPF_ARRAY(counts, u64, 1);
int count(void *ctx) { counts.increment(0); return 0; }
"""
_LOOP = """
int spin(void *ctx) {
    u64 x = bpf_ktime_get_ns();
    for (int i = 0; i < 30000; i++) { x ^= x << 7; x ^= x >> 9; asm volatile("" : "+r"(x)); }
    return x == 1;
}
"""


def cost(timed: bool, calls: int, lasting: float) -> Figures:
    """``timed``: False for a tracer without CAP_SYS_ADMIN, which cannot have programs timed."""
    if not timed:
        ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _SYS_ADMIN, 0, 0, 0)
    tracer = default_host.connect().hello().pid
    attach = {f"tracepoint:{TRACEPOINT}": "count"}
    with bpfnb.trace(_COUNT, attach=attach, max_cost=1) as session:
        with Producer(count=calls) as producer:
            made, lasted = producer.run()
        before = cpu_of(tracer)
        time.sleep(lasting)
        idle = 100 * (cpu_of(tracer) - before) / lasting
        assert (session.cost.attrs["seconds"] > 0) == timed
    return {"calls": made / lasted, "idle": idle}


def ended() -> Figures:
    """With a process that makes system calls as fast as it can."""
    command = ["dd", "if=/dev/zero", "of=/dev/null", "bs=1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as load:
        try:
            session = bpfnb.trace(_LOOP, attach={"rawtracepoint:sys_enter": "spin"})
            began = time.monotonic()
            session.wait(60)
            took = time.monotonic() - began
        finally:
            load.kill()
            session.stop()
    return {"ended": took} if session.reason.startswith("the guard") else {}


def _contenders(quick: bool) -> dict[str, Contender]:
    arguments = {"calls": 3_000_000 if quick else 10_000_000, "lasting": 3.0 if quick else 10.0}
    return {
        _WITH: Contender(cost, {"timed": True, **arguments}),
        _WITHOUT: Contender(cost, {"timed": False, **arguments}),
        "ended": Contender(ended),
    }


def _rows(runs: Runs) -> list[Row]:
    row = partial(comparison, runs, ours=_WITH, peer=_WITHOUT)
    return [
        row("producer's calls with a program on them", "calls", show=rate, wanted=at_least(0.95)),
        row("CPU of a tracer with an idle session", "idle", show=percent),
        comparison(
            runs, "until a loop at every system call is ended", "ended", seconds, ours="ended", wanted=under(8, "8 s")
        ),
    ]


GUARD = Group("the guard: what it costs, and when it acts", _contenders, _rows)
