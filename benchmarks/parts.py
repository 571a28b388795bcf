"""Where the time goes between the kernel's buffer and the DataFrame: the processes sampled while they read.

A second session of ours, profile:4999, counts the kernel stacks of the tracer and of the notebook; the processor time
that the kernel's clocks say was used is given out by these counts.
"""

from __future__ import annotations

import os
import re
import time
from functools import partial

import bpfnb
from benchmarks import readers
from benchmarks.common import TRACEPOINT, Contender, Figures, Group, Producer, Row, Runs, comparison, cpu_of, quiet
from bpfnb.hosts import default_host

__all__ = ["PARTS"]

_SAMPLER = """
struct key { u32 pid; int kernel_stack; };
BPF_STACK_TRACE(stacks, 65536);
BPF_HASH(counts, struct key, u64);
int sample(struct bpf_perf_event_data *ctx) {
    struct key key = {.pid = bpf_get_current_pid_tgid() >> 32};
    if (key.pid != TRACER && key.pid != NOTEBOOK) return 0;
    key.kernel_stack = stacks.get_stackid(ctx, 0);
    counts.increment(key);
    return 0;
}
"""
# What a process does, in the table's words, and functions of the kernel that tell; the first that fits.
_NO_STACK = "in user mode"
_PARTS = {
    "tracer": {
        "rows copied into the segment": r"copy_\w*from_iter|copy_user",
        "pages made for it": r"\bshmem_",
        "finds records": _NO_STACK,
        "else": "",
    },
    "notebook": {
        "page faults": r"page_fault|mm_fault|populate",
        "gives pages back": r"unmap_|zap_|evict|munmap|madvise",
        "decodes": _NO_STACK,
        "else": "",
    },
}


def sampled(cell: str, count: int) -> Figures:
    """A session's events to the DataFrame: nanoseconds of each part, an event."""
    processes = {"tracer": default_host.connect().hello().pid, "notebook": os.getpid()}
    flags = [f"-D{name.upper()}={pid}" for name, pid in processes.items()]
    with Producer(count=count) as producer:
        ours, attach = readers.flags_for(producer), {f"tracepoint:{TRACEPOINT}": "produce"}
        with (
            bpfnb.trace(cell, name="read", attach=attach, cflags=ours, max_cost=1) as session,
            bpfnb.trace(_SAMPLER, name="sampler", attach={"profile:4999": "sample"}, cflags=flags) as sampler,
        ):
            output = session.outputs["events"]
            before, own_before = cpu_of(processes["tracer"]), time.process_time()
            made = producer.run()
            quiet(lambda: output.rows + output.lost, made[0])
            rows = len(output.df)
            used = {"tracer": cpu_of(processes["tracer"]) - before, "notebook": time.process_time() - own_before}
            counts, symbols = sampler.maps["counts"].df, sampler.maps["stacks"].symbols()
    stacks = symbols.symbol.astype(str).groupby(symbols["stack"]).agg(" ".join).to_dict()
    found = {}
    for process, pid in processes.items():
        mine = counts[counts.pid == pid]
        parts = mine.kernel_stack.map(partial(_part, process, stacks))
        shares = mine["value"].groupby(parts).sum() / mine["value"].sum()
        nanoseconds = used[process] / rows * 1e9
        found |= {f"{process}: {part}": float(shares.get(part, 0)) * nanoseconds for part in _PARTS[process]}
        found[f"{process}: all"] = nanoseconds
    return found


def _part(process: str, stacks: dict[int, str], stack: int) -> str:
    functions = stacks.get(stack, _NO_STACK)
    return next(part for part, words in _PARTS[process].items() if re.search(words, functions))


# --- the group ----------------------------------------------------------------------------------------------------

_KINDS = {"ring": readers.ring_cell(64), "perf": readers.perf_cell()}


def _contenders(quick: bool) -> dict[str, Contender]:
    count = 1_000_000 if quick else 3_000_000
    return {kind: Contender(sampled, {"cell": cell, "count": count}, warm=True) for kind, cell in _KINDS.items()}


def _rows(runs: Runs) -> list[Row]:
    return [
        comparison(
            runs,
            f"{kind}, {process}: {part}",
            f"{process}: {part}",
            lambda value: f"{value:.1f} ns",
            ours=kind,
            peer=kind,
            peer_key=f"first_{process}: {part}",
            label="the first time in a process",
        )
        for kind in _KINDS
        for process, parts in _PARTS.items()
        for part in (*parts, "all")
    ]


PARTS = Group("where bpfnb's time goes, nanoseconds an event", _contenders, _rows)
