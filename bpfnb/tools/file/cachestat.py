"""cachestat: how often reads of files find what they want in the page cache, and how many pages become dirty.

Hits and misses are pages of regular files. A miss is a page that was brought into the cache to be read, read ahead
included; a hit is a page that a read found there, having been read before. So hits never are negative, and a file that
is read twice has each of its pages once as a miss and once as a hit. Pages that a write brings in are no misses. What
it cannot see: hits through mmap; file systems that read past the page cache's own functions (tmpfs, O_DIRECT, DAX).
Repeated reads of one place through io_uring may be counted once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from bpfnb.errors import UnsupportedError
from bpfnb.results.maps.map import Map
from bpfnb.results.presentation import Table
from bpfnb.tools.tool import Column, Spec, Tool

__all__ = ["TOOL"]

_TRACEPOINT = "tracepoint:filemap:mm_filemap_get_pages"  # since v6.9
_FUNCTION = "fexit:filemap_get_pages"

# A read asks for a range of pages at first, and again, from where it has got to, for the rest: with the same last page
# and, as the task counts its reads, in the same read. The whole range is counted as hits at first, then corrected:
# pages that are *fresh*, brought in and not read before, and pages that the same read brings in later, are no hits.
_SOURCE = r"""
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched.h>

struct counts_t { s64 hits, misses, dirties; };
BPF_PERCPU_ARRAY(counts, struct counts_t, 1);

struct page_t { struct address_space *mapping; u64 index; };
struct call_t { u64 reads, writes; u32 tid; u32 pad; };  // tells a task's system calls apart
BPF_TABLE("lru_hash", struct page_t, struct call_t, fresh, 262144);

struct range_t { struct address_space *mapping; u64 first, last; struct call_t call; };
BPF_HASH(ranges, u32, struct range_t);  // each thread's last read

static inline void this_call(struct call_t *call) {
    struct task_struct *task = (struct task_struct *)bpf_get_current_task();
    call->tid = bpf_get_current_pid_tgid();
    bpf_probe_read_kernel(&call->reads, sizeof(call->reads), &task->ioac.syscr);
    bpf_probe_read_kernel(&call->writes, sizeof(call->writes), &task->ioac.syscw);
}

static inline bool same_call(struct call_t *a, struct call_t *b) {
    return a->tid == b->tid && a->reads == b->reads && a->writes == b->writes;
}

static inline struct inode *regular(struct address_space *mapping) {
    struct inode *inode = NULL;
    umode_t mode = 0;
    bpf_probe_read_kernel(&inode, sizeof(inode), &mapping->host);
    if (!inode)
        return NULL;
    bpf_probe_read_kernel(&mode, sizeof(mode), &inode->i_mode);
    return (mode & S_IFMT) == S_IFREG ? inode : NULL;
}

static inline u32 pages_of(struct folio *folio) {
    u64 flags = 0;
    u8 order = 0;
    bpf_probe_read_kernel(&flags, sizeof(flags), folio);
    if (!(flags >> PG_head & 1))
        return 1;
#ifdef BPFNB_HAS_FOLIO__FOLIO_ORDER
    bpf_probe_read_kernel(&order, sizeof(order), &folio->_folio_order);
#else
    bpf_probe_read_kernel(&order, sizeof(order), &folio->_flags_1);
#endif
    return 1 << (order & 15);
}

static inline int gets(struct address_space *mapping, u64 first, u64 last) {
    int zero = 0;
    u32 tid = bpf_get_current_pid_tgid();
    struct counts_t *count = counts.lookup(&zero);
    struct range_t range = {}, *before = ranges.lookup(&tid);
    struct inode *inode = regular(mapping);
    s64 size = 0;

    if (!count || !inode)
        return 0;
    this_call(&range.call);
    bpf_probe_read_kernel(&size, sizeof(size), &inode->i_size);
    u64 pages = (size + PAGE_SIZE - 1) >> PAGE_SHIFT;
    if (pages <= first)
        return 0;
    if (last >= pages)
        last = pages - 1;
    if (before && before->mapping == mapping && before->last == last && same_call(&before->call, &range.call))
        return 0;
    range.mapping = mapping;
    range.first = first;
    range.last = last;
    ranges.update(&tid, &range);
    count->hits += last - first + 1;
    for (u64 i = 0; i < 2048; i++) {  // farther, none is read ahead yet
        struct page_t page = {.mapping = mapping, .index = first + i};
        if (page.index > last)
            break;
        if (fresh.lookup(&page)) {
            fresh.delete(&page);
            count->hits -= 1;
        }
    }
    return 0;
}

RAW_TRACEPOINT_PROBE(mm_filemap_add_to_page_cache) {
    struct folio *folio = (struct folio *)ctx->args[0];
    struct address_space *mapping = folio->mapping;
    u64 first = folio->index;
    u32 pages = pages_of(folio), tid = bpf_get_current_pid_tgid();
    int zero = 0;
    struct call_t call = {};
    struct counts_t *count = counts.lookup(&zero);
    struct range_t *range = ranges.lookup(&tid);

    if (!count || !bpfnb_selected() || !regular(mapping))
        return 0;
    this_call(&call);
    bool reading = range && range->mapping == mapping && same_call(&range->call, &call);
    count->misses += pages;
    for (u32 i = 0; i < 512 && i < pages; i++) {
        struct page_t page = {.mapping = mapping, .index = first + i};
        if (reading && page.index >= range->first && page.index <= range->last)
            count->hits -= 1;
        else
            fresh.update(&page, &call);
    }
    return 0;
}

RAW_TRACEPOINT_PROBE(writeback_dirty_folio) {
    struct folio *folio = (struct folio *)ctx->args[0];
    struct address_space *mapping = (struct address_space *)ctx->args[1];
    u64 first = folio->index;
    u32 pages = pages_of(folio);
    int zero = 0;
    struct call_t call = {};
    struct counts_t *count = counts.lookup(&zero);

    if (!count || !bpfnb_selected() || !regular(mapping))
        return 0;
    this_call(&call);
    count->dirties += pages;
    for (u32 i = 0; i < 512 && i < pages; i++) {
        struct page_t page = {.mapping = mapping, .index = first + i};
        struct call_t *added = fresh.lookup(&page);
        if (!added)
            continue;
        if (same_call(added, &call))
            count->misses -= 1;  // the write brought it in
        fresh.delete(&page);
    }
    return 0;
}
"""
_BY_TRACEPOINT = r"""
RAW_TRACEPOINT_PROBE(mm_filemap_get_pages) {
    if (bpfnb_selected())
        gets((struct address_space *)ctx->args[0], ctx->args[1], ctx->args[2]);
    return 0;
}
"""
_BY_FUNCTION = r"""
struct folio_batch;
KRETFUNC_PROBE(filemap_get_pages, struct kiocb *iocb, struct iov_iter *iter, struct folio_batch *batch, int ret) {
    s64 position = iocb->ki_pos, size = iter->count;
    if (ret == 0 && size > 0 && bpfnb_selected())
        gets(iocb->ki_filp->f_mapping, position >> PAGE_SHIFT, (position + size - 1) >> PAGE_SHIFT);
    return 0;
}
"""


def _build(has: frozenset[str]) -> Spec:
    if _TRACEPOINT in has:
        return Spec(_SOURCE + _BY_TRACEPOINT, Table(_counts))
    if _FUNCTION in has:
        return Spec(_SOURCE + _BY_FUNCTION, Table(_counts))
    raise UnsupportedError(
        "cachestat: this kernel has neither mm_filemap_get_pages (Linux 6.9) nor fentry on its functions"
    )


def _counts(maps: Mapping[str, Map]) -> pd.DataFrame:
    frame = maps["counts"].reduced("sum")[["hits", "misses", "dirties"]].astype("int64")
    frame["hits"] = frame["hits"].clip(lower=0)  # a read that is under way
    return frame.assign(hitratio=frame["hits"] / (frame["hits"] + frame["misses"]))


def _percent(share: Any) -> str:
    return "-" if pd.isna(share) else f"{share:.2%}"


TOOL = Tool(
    "cachestat",
    "file",
    __doc__,
    columns=[
        Column("hits", "HITS", "pages that were read and had been in the cache"),
        Column("misses", "MISSES", "pages brought into the cache to be read"),
        Column("dirties", "DIRTIES", "pages that became dirty"),
        Column("hitratio", "HITRATIO", "hits of hits and misses; NaN where there were none", "share", show=_percent),
    ],
    build=_build,
    view="table",
    hooks=(_TRACEPOINT, _FUNCTION),
    interval=1,
)
