"""bpf_trace_printk: bpfnb beside bcc's own trace_fields, on the same program and producer.

A producer prints lines as fast as it can. Lost in silence is what neither arrived nor was counted; lines per CPU second
are delivered lines per second of the reader's processor time (bpfnb: tracer and notebook, DataFrame included).
"""

from __future__ import annotations

import os
import threading
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
    count,
    cpu_of,
    nothing,
    quiet,
    rate,
)
from benchmarks.readers import figures, flags_for, plain_bcc
from bpfnb.hosts import default_host

__all__ = ["PRINTK"]

_LINES = 300_000
_PEER = "bcc trace_fields"
_CELL = r"""
int line(void *ctx) {
    u32 pid = bpf_get_current_pid_tgid() >> 32;
    if (pid != PRODUCER && pid != READER) return 0;
    bpf_trace_printk("a line of ordinary length, number %d\n", 12345);
    return 0;
}
"""


def through_bpfnb() -> Figures:
    tracer = default_host.connect().hello().pid
    with Producer(count=_LINES) as producer:
        attach = {f"tracepoint:{TRACEPOINT}": "line"}
        with bpfnb.trace(_CELL, attach=attach, cflags=_flags(producer)) as session:
            output = session.outputs["printk"]
            before, own_before = cpu_of(tracer), time.process_time()
            made = producer.run()
            quiet(lambda: output.rows + output.lost, made[0])
            read = cpu_of(tracer) - before
            frame = output.df
            return figures(made, len(frame), output.lost, read, time.process_time() - own_before)


def through_bcc() -> Figures:
    """As bcc's documentation has people use it: a loop over trace_fields(), which waits for the next line."""
    got = 0
    with Producer(count=_LINES) as producer, plain_bcc(_CELL, _flags(producer)) as b:
        b.attach_tracepoint(tp=TRACEPOINT, fn_name="line")

        def read() -> None:
            nonlocal got
            pid = 0
            while pid != os.getpid():
                try:
                    _, pid, _, _, _, _ = b.trace_fields()
                except ValueError:
                    continue
                got += pid == producer.pid

        reader = threading.Thread(target=read)
        reader.start()
        before = time.process_time()
        made = producer.run()
        quiet(lambda: got, made[0])
        cpu = time.process_time() - before
        os.getppid()  # one more line, which ends the loop
        reader.join()
        return figures(made, got, 0, cpu, 0)


def _flags(producer: Producer) -> list[str]:
    return [*flags_for(producer), f"-DREADER={os.getpid()}"]


def _contenders(quick: bool) -> dict[str, Contender]:
    return {"bpfnb": Contender(through_bpfnb, warm=True), _PEER: Contender(through_bcc, warm=True)}


def _rows(runs: Runs) -> list[Row]:
    row = partial(comparison, runs, ours="bpfnb", peer=_PEER)
    return [
        row("printk: delivered", "delivered", count),
        row("printk: lost and said so, worst run", "lost", count, worst=True),
        row("printk: lost in silence, worst run", "unsaid", count, worst=True, wanted=nothing()),
        row("printk: lines per CPU second", "per_cpu", rate, wanted=at_least(3)),
        row("printk: the same, the first time in a process", "first_per_cpu", rate),
        row("printk: producer", "rate", rate),
    ]


PRINTK = Group("bpf_trace_printk, one producer, flat out", _contenders, _rows)
