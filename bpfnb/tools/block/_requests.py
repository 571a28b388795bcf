"""C that the tools of block devices share: requests by their pointer, from the process that makes one to its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

__all__ = ["HOOKS", "OPERATIONS", "TRACKING", "flags", "operation_names"]

# block_io_start: in the process that makes the request (Linux kernel commit 5a80bd075f3b ("block: introduce
# block_io_start/block_io_done tracepoints") (in v6.4)). Before, block_getrq stands in: there it is the bio that is
# known, of which the request is made; a bio that is merged into another's request has none.
HOOKS = ("tracepoint:block:block_io_start",)

# A request may complete in parts, is issued again where the device was busy, and may never be inserted, issued or, when
# it is merged with another, completed. Each ends with the part that is all that is left of it.
TRACKING = r"""
#include <linux/blkdev.h>
#include <linux/blk-mq.h>

struct request_t {
    u64 made, issued, bytes, sector;
    u32 pid, tid;
    char comm[TASK_COMM_LEN];
};
BPF_HASH(requests, struct request *, struct request_t);

static inline void made_here(struct request_t *made) {
    u64 id = bpf_get_current_pid_tgid();
    made->made = bpf_ktime_get_ns();
    made->pid = id >> 32;
    made->tid = id;
    bpf_get_current_comm(&made->comm, sizeof(made->comm));
}

#if HAS_IO_START
#define claim(request)

RAW_TRACEPOINT_PROBE(block_io_start) {
    struct request *request = (struct request *)ctx->args[0];
    struct request_t made = {};
    if (!bpfnb_selected())
        return 0;
    made_here(&made);
    made.sector = request->__sector;
    requests.update(&request, &made);
    return 0;
}
#else
BPF_HASH(bios, struct bio *, struct request_t);

RAW_TRACEPOINT_PROBE(block_getrq) {
    struct bio *bio = (struct bio *)ctx->args[0];
    struct request_t made = {};
    if (!bpfnb_selected())
        return 0;
    made_here(&made);
    bios.update(&bio, &made);
    return 0;
}

// Whoever made one of a request's bios made the request. All are taken, since their pointers are used again.
static inline void claim(struct request *request) {
    struct request_t *known = requests.lookup(&request), made = {};
    struct bio *bio = NULL;
    if (known)
        return;
    bpf_probe_read_kernel(&bio, sizeof(bio), &request->bio);
    for (int i = 0; i < 64 && bio; i++) {
        struct request_t *found = bios.lookup(&bio);
        if (found) {
            made = *found;
            bios.delete(&bio);
        }
        bpf_probe_read_kernel(&bio, sizeof(bio), &bio->bi_next);
    }
    if (!made.made)
        return;
    bpf_probe_read_kernel(&made.sector, sizeof(made.sector), &request->__sector);
    requests.update(&request, &made);
}
#endif

RAW_TRACEPOINT_PROBE(block_rq_issue) {
    struct request *request = (struct request *)ctx->args[0];
    claim(request);
    struct request_t *known = requests.lookup(&request);
    if (known)
        known->issued = bpf_ktime_get_ns();
    return 0;
}

RAW_TRACEPOINT_PROBE(block_rq_merge) {
    struct request *request = (struct request *)ctx->args[0];
    requests.delete(&request);
    return 0;
}

// Whether this is the end of a request that is known; then it is in *done, and known no more.
static inline bool completes(struct request *request, u32 part, u32 left, struct request_t *done) {
    claim(request);
    struct request_t *known = requests.lookup(&request);
    if (!known)
        return false;
    __sync_fetch_and_add(&known->bytes, part);
    if (part < left)
        return false;
    *done = *known;
    requests.delete(&request);
    return true;
}

// A write of nothing has the device flushed: by a request of the queue's own, which nobody made.
static inline u32 operation(u32 flags, struct request_t *done) {
    u32 op = flags & REQ_OP_MASK;
    return op == REQ_OP_WRITE && !done->issued && !done->bytes ? REQ_OP_FLUSH : op;
}
"""

# include/linux/blk_types.h: enum req_op, the same since v4.10
OPERATIONS = {0: "R", 1: "W", 2: "F", 3: "D", 5: "D"}


def flags(has: frozenset[str]) -> Sequence[str]:
    """Return the macros for a kernel that has these of ``HOOKS``."""
    return [f"-DHAS_IO_START={int(HOOKS[0] in has)}"]


def operation_names(numbers: pd.Series[int]) -> pd.Categorical[Any]:
    """Return the letters of operations: R, W, D (discard), F (flush), N (another)."""
    return pd.Categorical([OPERATIONS.get(number, "N") for number in numbers], categories=list("RWDFN"))
