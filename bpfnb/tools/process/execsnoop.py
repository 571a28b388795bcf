"""execsnoop: programs as they are started, with all their arguments.

Arguments are those that the process begins with, as /proc/PID/cmdline has them: of a script, its interpreter first.
They are read once the kernel has copied them, so they are always there. ``args`` is quoted as a shell would need it:
``shlex.split`` gives the list. What it cannot see: arguments beyond 2 MB, which end in " ..."; of an exec that failed,
arguments in memory that was never touched ("?"), and what is beyond 4 KB or 64 arguments (" ...").
"""

from __future__ import annotations

import shlex

import pandas as pd

from bpfnb.results.columns.text import text_dtype
from bpfnb.results.decode import with_decoded
from bpfnb.results.presentation import Rows
from bpfnb.tools.tool import Column, Option, Spec, Tool, clock

__all__ = ["TOOL"]

_SOURCE = r"""
#include <linux/sched.h>

struct event_t {
    char pcomm[TASK_COMM_LEN];
    u32 pid, ppid, uid;
    int ret;
    u32 size, more;  // of args: bytes that are there, and bytes or arguments that are not
    u8 args[];       // each with a NUL behind it
};
BPF_RINGBUF_OUTPUT(events, 2048);

static __always_inline void describe(struct event_t *event) {
    struct task_struct *task = (struct task_struct *)bpf_get_current_task(), *parent = 0;

    __builtin_memset(event, 0, sizeof(*event));
    bpf_get_current_comm(&event->pcomm, sizeof(event->pcomm));
    event->pid = bpf_get_current_pid_tgid() >> 32;
    event->uid = bpf_get_current_uid_gid();
    bpf_probe_read_kernel(&parent, sizeof(parent), &task->real_parent);
    bpf_probe_read_kernel(&event->ppid, sizeof(event->ppid), &parent->tgid);
}

// Room is reserved in sizes that the verifier knows: the smallest that is enough.
#define SMALL 256
#define MEDIUM 4096
#define LARGE 65536
#define HUGE 2097152

RAW_TRACEPOINT_PROBE(sched_process_exec) {
    struct task_struct *task = (struct task_struct *)ctx->args[0];
    u64 start = task->mm->arg_start, size = task->mm->arg_end - start;
    struct event_t *event;

    if (!bpfnb_selected())
        return 0;
    if (size < SMALL) {
        event = events.ringbuf_reserve(sizeof(struct event_t) + SMALL);
        if (!event)
            return 0;
        describe(event);
        event->size = size;
        bpf_probe_read_user(event->args, size & (SMALL - 1), (void *)start);
        events.ringbuf_submit(event, 0);
    } else if (size < MEDIUM) {
        event = events.ringbuf_reserve(sizeof(struct event_t) + MEDIUM);
        if (!event)
            return 0;
        describe(event);
        event->size = size;
        bpf_probe_read_user(event->args, size & (MEDIUM - 1), (void *)start);
        events.ringbuf_submit(event, 0);
    } else if (size < LARGE) {
        event = events.ringbuf_reserve(sizeof(struct event_t) + LARGE);
        if (!event)
            return 0;
        describe(event);
        event->size = size;
        bpf_probe_read_user(event->args, size & (LARGE - 1), (void *)start);
        events.ringbuf_submit(event, 0);
    } else {
        event = events.ringbuf_reserve(sizeof(struct event_t) + HUGE);
        if (!event)
            return 0;
        describe(event);
        event->more = size < HUGE ? 0 : size - (HUGE - 1);
        event->size = size < HUGE ? size : HUGE - 1;
        bpf_probe_read_user(event->args, event->size & (HUGE - 1), (void *)start);
        events.ringbuf_submit(event, 0);
    }
    return 0;
}
"""

_FAILURES = r"""
#define WORDS 64  // at most, of MEDIUM bytes at most

BPF_TABLE("lru_hash", u32, u64, calls, 10240);  // thread -> argv

static __always_inline int enter(u64 argv) {
    u32 tid = bpf_get_current_pid_tgid();

    calls.update(&tid, &argv);
    return 0;
}

static __always_inline int leave(int ret) {
    u32 tid = bpf_get_current_pid_tgid();
    u64 *argv = calls.lookup(&tid), at, word = 0;
    struct event_t *event;

    if (!argv || ret >= 0 || !bpfnb_selected())
        return 0;
    at = *argv;
    event = events.ringbuf_reserve(sizeof(struct event_t) + 2 * MEDIUM);
    if (!event)
        return 0;
    describe(event);
    event->ret = ret;
    for (int i = 0; i < WORDS; i++) {
        u32 offset = *(volatile u32 *)&event->size;  // of memory the verifier tracks no values: one state a turn
        word = 0;
        bpf_probe_read_user(&word, sizeof(word), (void *)(at + i * sizeof(word)));
        if (!word || offset >= MEDIUM)
            break;
        asm volatile("" : "+r"(offset));  // the compiler knows the limit by now, the verifier does not
        u8 *place = event->args + (offset & (MEDIUM - 1));
        int size = bpf_probe_read_user_str(place, MEDIUM, (void *)word);
        if (size < 0) {  // not in memory
            place[0] = '?';
            place[1] = 0;
            size = 2;
        }
        if (size == 0)  // older kernels count no NUL where there is nothing else
            size = 1;
        event->size = offset + size;
    }
    event->more = word != 0;
    events.ringbuf_submit(event, 0);
    return 0;
}

TRACEPOINT_PROBE(syscalls, sys_enter_execve) { return enter((u64)args->argv); }
TRACEPOINT_PROBE(syscalls, sys_enter_execveat) { return enter((u64)args->argv); }
TRACEPOINT_PROBE(syscalls, sys_exit_execve) { return leave(args->ret); }
TRACEPOINT_PROBE(syscalls, sys_exit_execveat) { return leave(args->ret); }
"""


def _build(fails: bool) -> Spec:
    return Spec(_SOURCE + _FAILURES if fails else _SOURCE, Rows(_convert))


def _convert(events: pd.DataFrame) -> pd.DataFrame:
    rows = zip(events["args"].tolist(), events["size"].tolist(), events["more"].tolist(), strict=True)
    args = pd.Series([_quoted(data[:size], more) for data, size, more in rows], events.index, text_dtype())
    return with_decoded(events.assign(args=args), {"ret": "errno"})


def _quoted(data: bytes, more: int) -> str:
    words = data.removesuffix(b"\0").split(b"\0") if data else []
    return shlex.join(word.decode(errors="backslashreplace") for word in words) + (" ..." if more else "")


TOOL = Tool(
    "execsnoop",
    "process",
    __doc__,
    columns=[
        Column("time", "TIME", "when it was started", show=clock),
        Column("pcomm", "PCOMM", "the process's name, of a failed exec that of the caller", width=16),
        Column("pid", "PID", "the process"),
        Column("ppid", "PPID", "its parent"),
        Column("uid", "UID", "its user"),
        Column("ret", "RET", "0, or the error number, negative", width=3),
        Column("ret_errno", "", "the error's name"),
        Column("args", "ARGS", "its arguments, quoted"),
    ],
    build=_build,
    options=[Option("fails", False, "also what could not be started", short="x")],
)
