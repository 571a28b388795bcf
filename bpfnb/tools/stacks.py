"""Stacks that are kept whole: C that does so, and their names.

bpf_get_stackid() keeps one stack a slot of its map, and of two that meet there one has none. Here each has an entry of
its own, under a hash of 64 bits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from bpfnb.results import stacks
from bpfnb.results.columns.text import text_dtype
from bpfnb.results.maps.map import Map
from bpfnb.tools.tool import Option

__all__ = ["STACKS", "STACKS_BY_THREAD", "STORAGE", "TIMES", "flags_of", "folded", "named", "time_flags"]

_NONE = -14  # EFAULT: as bpf_get_stackid() says it
_GONE = -1
# The innermost frames: of the tracepoint that the stack was taken in, and of the program.
_TRACING = re.compile(r"(;(__traceiter_|__bpf_trace_|bpf_trace_run|bpf_prog_)[^;]*_\[k\])+$")

STORAGE = Option("stack_storage_size", 16_384, "how many different stacks are kept; 1 KB each")
TIMES = (
    Option("min_us", 1, "only times of at least so many microseconds", short="m"),
    Option("max_us", None, "only times of at most so many microseconds", short="M", type=int),
)

# stack_of(ctx, flags): the number of the stack here; 0 where there is none. For programs that nothing interrupts which
# does the same on this CPU.
STACKS = r"""
#define STACK_FRAMES 127
struct stack_t { u64 ip[STACK_FRAMES]; };
BPF_HASH(stacks, u64, struct stack_t, STACKS_KEPT);  // allocated at once: there is no time for it in the scheduler
BPF_PERCPU_ARRAY(stack_room, struct stack_t, 1);

static inline struct stack_t *stack_room_here(void) {
    int zero = 0;
    return stack_room.lookup(&zero);
}

static inline u64 stack_of(void *ctx, u64 flags) {
    struct stack_t *room = stack_room_here();
    if (!room)
        return 0;
    long size = bpf_get_stack(ctx, room->ip, sizeof(room->ip), flags);  // zeros behind it
    if (size <= 0)
        return 0;
    u64 id = size;
    for (int i = 0; i < STACK_FRAMES; i++) {
        if (!room->ip[i])
            break;
        id = (id ^ room->ip[i]) * 0x9e3779b97f4a7c15ULL;
        id ^= id >> 32;
    }
    if (!stacks.lookup(&id))
        stacks.update(&id, room);
    return id;
}
"""

# The same for programs that another thread's may interrupt on this CPU, as those of uprobes.
_OF_THREAD = r"""
BPF_TABLE("lru_hash", u32, struct stack_t, stack_room, 4096);
BPF_ARRAY(no_stack, struct stack_t, 1);

static inline struct stack_t *stack_room_here(void) {
    u32 tid = bpf_get_current_pid_tgid();
    int zero = 0;
    struct stack_t *none, *room = stack_room.lookup(&tid);
    if (room)
        return room;
    none = no_stack.lookup(&zero);
    if (none)
        stack_room.update(&tid, none);
    return stack_room.lookup(&tid);
}

static"""
STACKS_BY_THREAD = re.sub(r"BPF_PERCPU_ARRAY\(stack_room.*?\n}\n\nstatic", lambda _: _OF_THREAD, STACKS, flags=re.S)


def flags_of(stack_storage_size: int) -> list[str]:
    """Return the macros that ``STORAGE`` sets."""
    return [f"-DSTACKS_KEPT={max(stack_storage_size, 1)}"]


def time_flags(min_us: int, max_us: int | None) -> list[str]:
    """Return the macros that ``TIMES`` set, in nanoseconds."""
    most = 1 << 63 if max_us is None else max(max_us, 0) * 1000
    return [f"-DMIN_NS={max(min_us, 0)}000ULL", f"-DMAX_NS={most}ULL"]


def folded(counts: pd.DataFrame, kept: Map, sides: Sequence[str], weight: str, by: Sequence[str]) -> pd.DataFrame:
    """Return stacks with names, a row for each and each of ``by``: these columns, ``stack``, ``count``, the greatest
    first.

    ``sides``: the columns with the kernel's and with the process's stack of "pid", in this order; ``weight``: what is
    added up.
    """
    rows = counts.assign(stack=named(counts, kept, sides, "pid")).rename(columns={weight: "count"})
    sums = rows.groupby([*by, "stack"], as_index=False, observed=True)[["count"]].sum().astype({"count": "int64"})
    return sums.sort_values("count", ascending=False, kind="stable", ignore_index=True)


def named(counts: pd.DataFrame, kept: Map, sides: Sequence[str], owner: str) -> pd.Series[str]:
    """Return each row's stack with names. ``sides``: as above; ``owner``: the column with the process."""
    entries = kept.df
    numbers = {number: i for i, number in enumerate(entries["key"].tolist())}
    ids = {side: [numbers.get(n, _NONE if n == 0 else _GONE) for n in counts[side].tolist()] for side in sides}
    rows = pd.DataFrame({side: np.array(values, np.int32) for side, values in ids.items()})
    rows = rows.assign(row=np.arange(len(rows)), owner=counts[owner].to_numpy(), count=1)
    addresses = entries.filter(like="ip[").to_numpy(np.uint64)
    stack, depth = np.nonzero(addresses)
    frames = pd.DataFrame(
        {"stack": stack.astype(np.int32), "depth": depth.astype(np.int16), "address": addresses[stack, depth]}
    )
    kernel, user = sides
    table = stacks.folded(rows, frames, kept.resolve, kernel=kernel, user=user, owner="owner", by=["row"])
    texts = [_TRACING.sub("", text) for text in table.sort_values("row")["stack"]]
    return pd.Series(pd.array(texts, dtype=text_dtype()), index=counts.index)
