"""A recording that is made up: 20 seconds of rows, maps over time, stacks with names."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from bpfnb.language.program import parse
from bpfnb.protocol.messages import MapInfo, ProbeInfo
from bpfnb.protocol.schema import Number, Schema, Text
from bpfnb.recordings.format import VERSION, Manifest, OutputInfo
from bpfnb.recordings.writer import Writer
from bpfnb.results.presentation import Shown
from bpfnb.results.table import Table

__all__ = ["ROWS", "manifest_of", "rows", "write"]

EPOCH = 1_700_000_000_000_000_000
BEGAN = 50_000_000_000  # CLOCK_MONOTONIC: 50 s
SECONDS = 20
ROWS = 1000  # evenly: 50 a second
CELL = """
struct event_t { u64 ts; u64 size; u32 pid; char comm[4]; };
BPF_PERF_OUTPUT(events);
BPF_HASH(counts, u32, u64);
BPF_HISTOGRAM(sizes);
BPF_HASH(by_stack, struct by_t, u64);
BPF_STACK_TRACE(stacks, 64);
int f(void *ctx) {
    struct event_t e = {};
    events.perf_submit(ctx, &e, sizeof(e));
    sizes.increment(bpf_log2l(1));
    return 0;
}
"""
SCHEMA = Schema(
    (Number("ts", 0, "<u8"), Number("size", 8, "<u8"), Number("pid", 16, "<u4"), Text("comm", 20, 4)), 24, "ts"
)
DTYPE = np.dtype([("ts", "<u8"), ("size", "<u8"), ("pid", "<u4"), ("comm", "S4")])
KEY, VALUE = Schema((Number("key", 0, "<u4"),), 4), Schema((Number("value", 0, "<u8"),), 8)
COUNTS = MapInfo("counts", "BPF_HASH", "hash", KEY, VALUE, 4, 8, 8, 1, 64, line=3)
SIZES = msgspec.structs.replace(COUNTS, name="sizes", macro="BPF_HISTOGRAM")
BY = Schema((Number("tgid", 0, "<u4"), Number("stack_id", 4, "<i4")), 8)
BY_STACK = msgspec.structs.replace(COUNTS, name="by_stack", key=BY, key_size=8)
FRAME = Schema((Number("address", 0, "<u8"),), 8)
STACKS = MapInfo("stacks", "BPF_STACK_TRACE", "stack_trace", KEY, FRAME, 4, 32, 32, 1, 64)
MAPS = (COUNTS, SIZES, BY_STACK, STACKS)


def events() -> np.ndarray:
    rows = np.zeros(ROWS, DTYPE)
    rows["ts"] = BEGAN + (np.arange(ROWS) * SECONDS * 10**9) // ROWS
    rows["size"] = 1 << (np.arange(ROWS) % 5)
    rows["pid"], rows["comm"] = np.arange(ROWS) % 3, [b"ab"[n % 2 : n % 2 + 1] for n in range(ROWS)]
    return rows


def entries(keys: list[int], values: list[int], key: str = "<u4") -> tuple[int, bytes]:
    """Entries as MapRead lays them out."""
    data = np.array(keys, key).tobytes()
    return len(keys), data + bytes(-len(data) % 8) + np.array(values, "<u8").tobytes()


def rows() -> Table:
    table = Table(SCHEMA, EPOCH)
    table.append(events().view(np.uint8).reshape(ROWS, DTYPE.itemsize), np.empty(0, np.uint8), 0)
    return table


def manifest_of(shown: Shown = Shown(), machine: str = "x86_64") -> Manifest:  # noqa: B008
    """What a recording says as it begins."""
    return Manifest(
        version=VERSION,
        bpfnb="0",
        bcc="0",
        kernel="6.18",
        machine=machine,
        host="there",
        boot="",
        name="played",
        program=parse(CELL, {"syscall:clone": "f"}),
        began_ns=EPOCH + BEGAN,
        epoch_ns=EPOCH,
        outputs=(OutputInfo("events", "perf", SCHEMA, EPOCH),),
        maps=MAPS,
        shown=shown,
    )


def write(path: Path, shown: Shown = Shown()) -> None:  # noqa: B008
    """Write it. At second n a map has counted 10 * n and n, another 5 * n, and stacks n; 7 events were lost."""
    begun = manifest_of(shown)
    writer = Writer(path, begun)
    for second in range(SECONDS + 1):
        at = EPOCH + BEGAN + second * 10**9
        writer.snapshot(0, at, *entries([1, 2], [10 * second, second]), lost=second // 10)
        writer.snapshot(1, at, *entries([3], [5 * second]))
        writer.snapshot(2, at, *entries([7 << 32 | 42], [second], "<u8"))
        writer.snapshot(3, at, 1, np.array([7], "<u4").tobytes() + bytes(4) + np.array([9, 8, 0, 0], "<u8").tobytes())
    writer.symbols(42, [9, 7], ["inner", "outer"], ["", ""])  # callers are looked up where they call
    writer.rows(0, rows().frame(), whole=True)
    writer.close(
        msgspec.structs.replace(
            begun,
            outputs=(msgspec.structs.replace(begun.outputs[0], rows=ROWS, written=ROWS, lost=7),),
            probes=(ProbeInfo("syscall:clone", "tracepoint:syscalls:sys_enter_clone", "tracepoint", "", "f"),),
            state="stopped",
            reason="stopped",
            ended_ns=EPOCH + BEGAN + SECONDS * 10**9,
            counters={"counts": {7: 2}},
        )
    )
