"""C that several tools share: how long threads wait in a run queue."""

from __future__ import annotations

__all__ = ["WAITS"]

# The arguments of the raw tracepoint sched_switch: whether prev was preempted (then it stays in the queue, whatever its
# state), prev, next, prev's state (Linux kernel commit fa2c3254d7cf ("sched/tracing: Don't re-read p->state when
# emitting sched_switch event") (in v5.18)).
#
# Nothing guards the times of pid 0, which is a task of every CPU, so it is left out.
WAITS = r"""
#include <linux/sched.h>

BPF_HASH(ready, u32, u64);

static inline void becomes_ready(u32 tid) {
    u64 now = bpf_ktime_get_ns();
    if (tid != 0)
        ready.update(&tid, &now);
}

static inline void leaves_cpu(u32 tid, bool stays) {
    if (stays)
        becomes_ready(tid);
    else
        ready.delete(&tid);  // woken while it ran: it has not waited
}

static inline bool gets_cpu(u32 tid, u64 *waited) {
    u64 *since = ready.lookup(&tid);
    if (!since)
        return false;
    s64 passed = bpf_ktime_get_ns() - *since;
    ready.delete(&tid);
    *waited = passed;
    return passed >= 0;
}

RAW_TRACEPOINT_PROBE(sched_wakeup) {
    struct task_struct *task = (struct task_struct *)ctx->args[0];
    if (bpfnb_selected_task(task))
        becomes_ready(task->pid);
    return 0;
}

RAW_TRACEPOINT_PROBE(sched_wakeup_new) {
    struct task_struct *task = (struct task_struct *)ctx->args[0];
    if (bpfnb_selected_task(task))
        becomes_ready(task->pid);
    return 0;
}
"""
