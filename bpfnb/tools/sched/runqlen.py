"""runqlen: how many threads wait in each CPU's run queue, sampled 99 times a second.

The thread that runs is not counted, so 0 is a CPU that is idle or has just one thread to run. Threads of all cgroups
and of the fair, real-time and deadline classes are. What it cannot see: threads of sched_ext schedulers; queues between
two samples.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from bpfnb.results.maps.map import Map
from bpfnb.results.presentation import Table
from bpfnb.tools.tool import Column, Option, Spec, Tool

__all__ = ["TOOL"]

# bcc reads the queue of the running task's own cgroup: threads of other cgroups are missing there.
#
# h_nr_* count the whole hierarchy. Since v6.12 the fair class keeps threads that sleep in its queue for a while
# (delayed dequeue): h_nr_runnable is without them (Linux kernel commit 7b8a702d9438 ("sched/fair: Rename
# cfs_rq.h_nr_running into h_nr_queued") and c2a295bffeaf ("sched/fair: Add new cfs_rq.h_nr_runnable") (in v6.14)).
_SOURCE = r"""
#include <linux/sched.h>

struct key_t { u32 cpu, runqlen; };
BPF_HASH(lengths, struct key_t, u64);

int sample(void *ctx) {
    struct task_struct *task = (struct task_struct *)bpf_get_current_task();
#ifdef BPFNB_HAS_CFS_RQ_RQ
    struct rq *rq = task->se.cfs_rq->rq;
#else
    struct rq *rq = container_of(task->se.cfs_rq, struct rq, cfs);
#endif
    struct key_t key = {};

    if (!bpfnb_selected())
        return 0;
    key.cpu = bpf_get_smp_processor_id();
    if (!rq || rq->cpu != key.cpu)
        return 0;
#if defined(BPFNB_HAS_CFS_RQ_H_NR_RUNNABLE)
    key.runqlen = rq->cfs.h_nr_runnable;
#elif defined(BPFNB_HAS_CFS_RQ_H_NR_DELAYED)
    key.runqlen = rq->cfs.h_nr_running - rq->cfs.h_nr_delayed;
#else
    key.runqlen = rq->cfs.h_nr_running;
#endif
    key.runqlen += rq->rt.rt_nr_running + rq->dl.dl_nr_running;
    if (key.runqlen > 0 && task->pid != 0)
        key.runqlen--;
    lengths.increment(key);
    return 0;
}
"""


def _build(cpus: bool) -> Spec:
    by = ["cpu", "runqlen"] if cpus else ["runqlen"]
    return Spec(
        _SOURCE, Table(lambda maps: _counts(maps, by)), attach=[("profile:99", "sample")], columns=[*by, "count"]
    )


def _counts(maps: Mapping[str, Map], by: list[str]) -> pd.DataFrame:
    counts = maps["lengths"].df.groupby(by, as_index=False)[["value"]].sum()
    return counts.rename(columns={"value": "count"}).astype({"count": "int64"})


TOOL = Tool(
    "runqlen",
    "sched",
    __doc__,
    columns=[
        Column("cpu", "CPU", "the CPU (with cpus)"),
        Column("runqlen", "RUNQLEN", "how many threads waited"),
        Column("count", "COUNT", "how many samples found so many"),
    ],
    build=_build,
    options=[Option("cpus", False, "each CPU by itself", short="C")],
    view="table",
)
