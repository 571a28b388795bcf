"""What counting costs the program that counts: bpfnb's exact increments and counted refusals beside bcc's own.

The same C runs as bpfnb compiles it and as bcc does, in turn, in rounds close together. Shown are the nanoseconds a run
of the program takes (kernel.bpf_stats_enabled; without the probe's own cost, with a few nanoseconds for reading the
clock), and the producer's calls a second meanwhile; of each the best of the rounds, since what disturbs only slows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
    Wanted,
    at_least,
    at_most,
    comparison,
    rate,
)
from bpfnb.hosts import default_host

__all__ = ["COUNTING", "STATS", "nanoseconds", "run_time"]

_ROUNDS, _CALLS = 9, 300_000
_BOTH = "bpfnb"
STATS = Path("/proc/sys/kernel/bpf_stats_enabled")

# The maps a cell has, its statements, and whether its slow-down is to be at most 1.1 x: a hash whose entries are
# allocated as they come gets another one with each update.
_CELLS = {
    "increment of a hash": ("BPF_HASH(counts, u32);", "counts.increment(pid);", True),
    "increment of a histogram": ("BPF_HISTOGRAM(sizes);", "sizes.increment(bpf_log2l(id & 4095));", True),
    "increment of a per-CPU array": ("BPF_PERCPU_ARRAY(hits, u64, 4);", "hits.increment(1);", True),
    "update of a hash of stated size": ("BPF_HASH(last, u32, u64, 10240);", "last.update(&pid, &id);", True),
    "update of a hash": ("BPF_HASH(last, u32);", "last.update(&pid, &id);", False),
    "update and delete": ("BPF_HASH(start, u32);", "start.update(&pid, &id); start.delete(&pid);", False),
}


def _cell(name: str) -> str:
    maps, statements, _ = _CELLS[name]
    return f"""
{maps}
int count(void *ctx) {{
    u64 id = bpf_get_current_pid_tgid();
    u32 pid = id >> 32;
    if (pid != PRODUCER) return 0;
    {statements}
    return 0;
}}
"""


@contextmanager
def _through_bpfnb(name: str, producer: Producer) -> Iterator[int]:
    """The cell, running; yields the process that holds its program."""
    with bpfnb.trace(_cell(name), attach={f"tracepoint:{TRACEPOINT}": "count"}, cflags=readers.flags_for(producer)):
        yield default_host.connect().hello().pid


@contextmanager
def _through_bcc(name: str, producer: Producer) -> Iterator[int]:
    with readers.plain_bcc(_cell(name), readers.flags_for(producer)) as b:
        b.attach_tracepoint(tp=TRACEPOINT, fn_name="count")
        yield os.getpid()


def run_time(process: int) -> float:
    """Nanoseconds a run, of the program that ran most often of those a process holds."""
    found = []
    for file in Path(f"/proc/{process}/fdinfo").iterdir():
        with suppress(OSError):  # the one this loop reads from
            text = file.read_text()
            runs = re.search(r"run_time_ns:\s*(\d+)\s+run_cnt:\s*(\d+)", text)
            if runs and int(runs[2]):
                found.append((int(runs[2]), int(runs[1]) / int(runs[2])))
    return max(found)[1]


def side_by_side(rounds: int, calls: int) -> Figures:
    """Of each cell, ours and ("bcc ...") bcc's: nanoseconds a run, and the producer's calls a second."""
    times: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}
    before = STATS.read_text()
    STATS.write_text("1")
    try:
        for _ in range(rounds):
            for name in _CELLS:
                for prefix, through in (("", _through_bpfnb), ("bcc ", _through_bcc)):
                    with Producer(count=calls) as producer, through(name, producer) as process:
                        made, seconds = producer.run()
                        times.setdefault(f"{prefix}{name}: run", []).append(run_time(process))
                    rates.setdefault(f"{prefix}{name}: calls", []).append(made / seconds)
    finally:
        STATS.write_text(before)
    return {key: min(values) for key, values in times.items()} | {key: max(values) for key, values in rates.items()}


def nanoseconds(value: float) -> str:
    return f"{value:.0f} ns"


def _contenders(quick: bool) -> dict[str, Contender]:
    return {_BOTH: Contender(side_by_side, {"rounds": _ROUNDS // (1 + 2 * quick), "calls": _CALLS})}


def _rows(runs: Runs) -> list[Row]:
    def row(name: str, what: str, wanted: Wanted) -> Row:
        key, show = (f"{name}: run", nanoseconds) if what == "a run" else (f"{name}: calls", rate)
        bound = wanted if _CELLS[name][2] else None
        return comparison(
            runs, f"{name}: {what}", key, show, ours=_BOTH, peer=_BOTH, peer_key=f"bcc {key}", label="bcc", wanted=bound
        )

    rows = []
    for name in _CELLS:
        rows += [row(name, "a run", at_most(1.1)), row(name, "the producer's calls", at_least(0.9))]
    return rows


COUNTING = Group("what exact counts and counted refusals cost the program", _contenders, _rows)
