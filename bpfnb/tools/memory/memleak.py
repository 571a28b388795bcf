"""memleak: memory that was allocated and not freed, by the stack that allocated it.

Shown are the C library's malloc, calloc, realloc, posix_memalign, aligned_alloc, memalign, valloc and pvalloc, and
with mmap=True its mmap, which malloc calls for its own memory too; with kernel=True instead what the kernel allocates
with kmalloc and from its caches. Give a pid or a command: each call of each process that is traced takes some
microseconds. What it cannot see: what was allocated before it was attached; another allocator than path's; the parts
of a mapping that mremap moves, or munmap takes out of its middle. What a process held when it ended, or executed
another program, stays shown. In the kernel, what is freed many at once (kfree_bulk) stays shown, and what an
interrupt frees while this tool's own program runs (cost.missed counts it). Frames of programs without frame pointers
are missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd

from bpfnb.results.maps.map import Map
from bpfnb.results.presentation import Table
from bpfnb.tools.stacks import STACKS, STACKS_BY_THREAD, STORAGE, flags_of, named
from bpfnb.tools.tool import Column, Option, Spec, Tool

__all__ = ["TOOL"]

_HELD = r"""
struct block_t { u64 address, pid; };
struct held_t { u64 size, since, stack; };
HELD

static inline int hold(void *ctx, u64 pid, u64 address, u64 size, u64 flags) {
    struct block_t block = {.address = address, .pid = pid};
    struct held_t one = {.size = size};

    if (!address || size < MIN_SIZE || size > MAX_SIZE)
        return 0;
    one.stack = stack_of(ctx, flags);
    one.since = bpf_ktime_get_ns();
    held.update(&block, &one);
    return 0;
}
"""

_USER = (
    STACKS_BY_THREAD
    + _HELD.replace("HELD", "BPF_HASH(held, struct block_t, struct held_t);")
    + r"""
/* Calls that have not returned, by their place on the stack: one may make another. ``before``: the block that realloc()
 * was given. It is taken out at once, since its address may be another thread's before realloc() returns. */
struct place_t { u64 sp, tid; };
struct call_t { u64 size, at; struct held_t before; };
BPF_TABLE("lru_hash", struct place_t, struct call_t, calls, 10240);  // of threads that were killed amid one
#if defined(bpf_target_x86)
#define RETURN_ADDRESS 8  // off the stack when the function returns
#else
#define RETURN_ADDRESS 0
#endif

static inline struct place_t place_at(u64 sp) {
    struct place_t place = {.sp = sp, .tid = (u32)bpf_get_current_pid_tgid()};
    return place;
}

static inline struct block_t block_at(u64 address) {
    struct block_t block = {.address = address, .pid = bpf_get_current_pid_tgid() >> 32};
    return block;
}

static inline int enters(struct pt_regs *ctx, u64 size, u64 at) {
    struct place_t place = place_at(PT_REGS_SP(ctx) + RETURN_ADDRESS);
    struct call_t call = {.size = size, .at = at};

    if (bpfnb_selected())
        calls.update(&place, &call);
    return 0;
}

static inline int returned(struct pt_regs *ctx, u64 address) {
    struct place_t place = place_at(PT_REGS_SP(ctx));
    struct call_t *call = calls.lookup(&place);

    if (!call)
        return 0;
    hold(ctx, bpf_get_current_pid_tgid() >> 32, address, call->size, BPF_F_USER_STACK);
    calls.delete(&place);
    return 0;
}

int takes_size(struct pt_regs *ctx) { return enters(ctx, PT_REGS_PARM1(ctx), 0); }
int takes_size_second(struct pt_regs *ctx) { return enters(ctx, PT_REGS_PARM2(ctx), 0); }
int takes_product(struct pt_regs *ctx) { return enters(ctx, PT_REGS_PARM1(ctx) * PT_REGS_PARM2(ctx), 0); }
int takes_pointer(struct pt_regs *ctx) { return enters(ctx, PT_REGS_PARM3(ctx), PT_REGS_PARM1(ctx)); }
int returns_block(struct pt_regs *ctx) { return returned(ctx, PT_REGS_RC(ctx)); }

int returns_status(struct pt_regs *ctx) {
    struct place_t place = place_at(PT_REGS_SP(ctx));
    struct call_t *call = calls.lookup(&place);
    u64 address = 0;

    if (call && !(int)PT_REGS_RC(ctx))
        bpf_probe_read_user(&address, sizeof(address), (void *)call->at);
    return returned(ctx, address);
}

int takes_block(struct pt_regs *ctx) {
    struct block_t block = block_at(PT_REGS_PARM1(ctx));
    struct place_t place = place_at(PT_REGS_SP(ctx) + RETURN_ADDRESS);
    struct held_t *before = held.lookup(&block);
    struct call_t call = {.size = PT_REGS_PARM2(ctx), .at = block.address};

    if (before)
        call.before = *before;
    if (before || bpfnb_selected())
        calls.update(&place, &call);
    if (before)
        held.delete(&block);
    return 0;
}

int returns_another(struct pt_regs *ctx) {
    struct place_t place = place_at(PT_REGS_SP(ctx));
    struct call_t *call = calls.lookup(&place);

    if (call && !PT_REGS_RC(ctx) && call->size && call->before.since) {  // it failed: the block is as it was
        struct block_t block = block_at(call->at);
        struct held_t before = call->before;
        held.update(&block, &before);
    }
    return returned(ctx, PT_REGS_RC(ctx));
}

int frees(struct pt_regs *ctx) {
    struct block_t block = block_at(PT_REGS_PARM1(ctx));
    held.delete(&block);
    return 0;
}

#if MMAP
int returns_mapping(struct pt_regs *ctx) {
    u64 address = PT_REGS_RC(ctx);
    return returned(ctx, address == (u64)-1 ? 0 : address);
}

int unmaps(struct pt_regs *ctx) {
    struct block_t block = block_at(PT_REGS_PARM1(ctx));
    u64 size = (PT_REGS_PARM2(ctx) + 4095) & ~4095ULL;
    struct held_t *before = held.lookup(&block);

    if (!before)
        return 0;
    struct held_t rest = *before;
    held.delete(&block);
    if (size < rest.size) {
        rest.size -= size;
        block.address += size;
        held.update(&block, &rest);
    }
    return 0;
}
#endif
"""
)

# Preallocated: the kernel would allocate for each entry, and have that traced as well.
_KERNEL = (
    STACKS
    + _HELD.replace("HELD", "BPF_HASH(held, struct block_t, struct held_t, 262144);")
    + r"""
TRACEPOINT_PROBE(kmem, kmalloc) {
    return bpfnb_selected() ? hold(args, 0, (u64)args->ptr, args->bytes_alloc, 0) : 0;
}
TRACEPOINT_PROBE(kmem, kmem_cache_alloc) {
    return bpfnb_selected() ? hold(args, 0, (u64)args->ptr, args->bytes_alloc, 0) : 0;
}
#if NODES
TRACEPOINT_PROBE(kmem, kmalloc_node) {
    return bpfnb_selected() ? hold(args, 0, (u64)args->ptr, args->bytes_alloc, 0) : 0;
}
TRACEPOINT_PROBE(kmem, kmem_cache_alloc_node) {
    return bpfnb_selected() ? hold(args, 0, (u64)args->ptr, args->bytes_alloc, 0) : 0;
}
#endif
TRACEPOINT_PROBE(kmem, kfree) {
    struct block_t block = {.address = (u64)args->ptr};
    held.delete(&block);
    return 0;
}
TRACEPOINT_PROBE(kmem, kmem_cache_free) {
    struct block_t block = {.address = (u64)args->ptr};
    held.delete(&block);
    return 0;
}
"""
)
_NODES = "tracepoint:kmem:kmalloc_node"  # until Linux 6.1

_ALLOCATES = {
    "malloc": ("takes_size", "returns_block"),
    "valloc": ("takes_size", "returns_block"),
    "pvalloc": ("takes_size", "returns_block"),
    "calloc": ("takes_product", "returns_block"),
    "memalign": ("takes_size_second", "returns_block"),
    "aligned_alloc": ("takes_size_second", "returns_block"),
    "posix_memalign": ("takes_pointer", "returns_status"),
    "realloc": ("takes_block", "returns_another"),
}
_MAPS = {"mmap": ("takes_size_second", "returns_mapping")}


def _build(
    kernel: bool,
    mmap: bool,
    older: float,
    top: int,
    min_size: int,
    max_size: int | None,
    path: str,
    stack_storage_size: int,
    has: frozenset[str],
) -> Spec:
    flags = [
        *flags_of(stack_storage_size),
        f"-DMIN_SIZE={max(min_size, 0)}ULL",
        f"-DMAX_SIZE={2**63 if max_size is None else max(max_size, 0)}ULL",
        f"-DNODES={int(_NODES in has)}",
        f"-DMMAP={int(mmap)}",
    ]
    # What is held is no count that grows: a table at intervals has all of it.
    table = Table(partial(_table, older=older, top=top), as_is=["held", "stacks"], grows=False)
    if kernel:
        return Spec(_KERNEL, table, cflags=flags, columns=[name for name in _COLUMNS if name != "pid"])
    attach = [(f"uprobe:{path}:free", "frees")]
    for function, (enters, returns) in {**_ALLOCATES, **(_MAPS if mmap else {})}.items():
        attach += [(f"uprobe:{path}:{function}", enters), (f"uretprobe:{path}:{function}", returns)]
    if mmap:
        attach.append((f"uprobe:{path}:munmap", "unmaps"))
    return Spec(_USER, table, attach=attach, cflags=flags)


def _table(maps: Mapping[str, Map], older: float, top: int) -> pd.DataFrame:
    blocks = maps["held"].df
    age = maps["held"].moment - blocks["since"].astype(np.int64)
    blocks = blocks.assign(age=age)[age >= older * 1e6]
    groups = _added(blocks.assign(count=1, oldest=blocks["age"], newest=blocks["age"]))
    sides = ["stack", "none"] if not groups["pid"].any() else ["none", "stack"]  # the kernel's are of no process
    names = named(groups.assign(none=0), maps["stacks"], sides, "pid")
    frame = _added(groups.assign(stack=names))  # two calls of one function have the same names
    frame = frame.assign(oldest=pd.to_timedelta(frame["oldest"]), newest=pd.to_timedelta(frame["newest"]))
    frame = frame.sort_values(["size", "count"], ascending=False, kind="stable", ignore_index=True)
    frame.attrs["lost"] = sum(map_.lost for map_ in maps.values())
    return frame.head(top) if top > 0 else frame


def _added(rows: pd.DataFrame) -> pd.DataFrame:
    """Add up the rows of a process and a stack."""
    how = {"size": "sum", "count": "sum", "oldest": "max", "newest": "min"}
    return rows.groupby(["pid", "stack"], as_index=False, sort=False).agg(how)


def _seconds(age: pd.Timedelta) -> str:
    return f"{age.total_seconds():.1f}"


TOOL = Tool(
    "memleak",
    "memory",
    __doc__,
    columns=[
        Column("pid", "PID", "the process; not there with kernel=True"),
        Column("size", "BYTES", "how much is held", "bytes", width=12),
        Column("count", "ALLOCS", "in how many pieces"),
        Column("oldest", "OLDEST(s)", "how long ago the first of them was allocated", "timedelta", 9, _seconds),
        Column("newest", "NEWEST(s)", "how long ago the last of them was allocated", "timedelta", 9, _seconds),
        Column("stack", "STACK", "who allocated it, the outermost function first", width=60),
    ],
    build=_build,
    options=[
        Option("kernel", False, "what the kernel allocates, not processes"),
        Option("mmap", False, "what is mapped with mmap as well"),
        Option("older", 500.0, "only what was allocated at least so many milliseconds ago", short="o"),
        Option("top", 10, "only so many stacks, those that hold most; 0: all", short="T"),
        Option("min_size", 0, "only allocations of at least so many bytes", short="z"),
        Option("max_size", None, "only allocations of at most so many bytes", short="Z", type=int),
        Option("path", "c", "the allocator's library: a path, or its name without lib and .so", short="O"),
        STORAGE,
    ],
    view="stacks",
    hooks=[_NODES],
)
_COLUMNS = [column.name for column in TOOL.columns]
