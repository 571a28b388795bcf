"""statsnoop: files that are asked for by their names, with their whole paths.

The system calls stat, lstat, newfstatat, statx and statfs. A relative path is completed by the directory that it is
relative to. What it cannot see: fstat and fstatfs of an open file, and requests in other ways (io_uring, 32-bit
programs).
"""

from __future__ import annotations

from collections.abc import Set

import pandas as pd

from bpfnb.results.decode import values, with_decoded
from bpfnb.results.presentation import Rows
from bpfnb.tools.file._paths import READ_PATH, paths
from bpfnb.tools.tool import Column, Option, Spec, Tool, clock

__all__ = ["TOOL"]

_SOURCE = (
    READ_PATH
    + r"""
struct event_t {
    char comm[TASK_COMM_LEN];
    u32 pid, number;
    int ret;
    u32 size;
    u8 text[];
};
struct buffer_t {
    struct event_t event;
    u8 text[ROOM];
};
struct call_t {
    const char *name;
    int dfd;
    u32 flags;
};
BPF_PERF_OUTPUT(events);
BPF_TABLE("lru_hash", u32, struct call_t, calls, 10240);  // by thread
BPF_PERCPU_ARRAY(buffers, struct buffer_t, 1);

static __always_inline int enter(int dfd, const char *name, u32 flags) {
    u32 tid = bpf_get_current_pid_tgid();
    struct call_t call = {.name = name, .dfd = dfd, .flags = flags};

    if (bpfnb_selected())
        calls.update(&tid, &call);
    return 0;
}

static __always_inline int leave(void *ctx, u32 number, int ret) {
    u32 tid = bpf_get_current_pid_tgid(), zero = 0;
    struct call_t *call = calls.lookup(&tid);
    struct buffer_t *buffer = buffers.lookup(&zero);
    struct event_t *event;

    if (!call || !buffer)
        return 0;
    if (!FAILED || ret < 0) {
        event = &buffer->event;
        event->pid = bpf_get_current_pid_tgid() >> 32;
        bpf_get_current_comm(&event->comm, sizeof(event->comm));
        event->number = number;
        event->ret = ret;
        read_path(&event->size, event->text, call->dfd, call->name, call->flags);
        u64 size = sizeof(*event) + event->size;
        asm volatile("" : "+r"(size));  // the verifier is to see that what is compared is what is used
        if (size < sizeof(*buffer))
            events.perf_submit(ctx, event, size);
    }
    calls.delete(&tid);
    return 0;
}
"""
)

# A system call, its arguments, and how the tracepoint names them. Newer architectures lack the first two.
_CALLS = {
    "newstat": "AT_FDCWD, args->filename, 0",
    "newlstat": "AT_FDCWD, args->filename, 0",
    "newfstatat": "args->dfd, args->filename, args->flag",
    "statx": "args->dfd, args->filename, args->flags",
    "statfs": "AT_FDCWD, args->pathname, 0",
}
_HOOKS = {f"tracepoint:syscalls:sys_enter_{call}": call for call in _CALLS}
_PROBES = """
TRACEPOINT_PROBE(syscalls, sys_enter_{call}) {{ return enter({arguments}); }}
TRACEPOINT_PROBE(syscalls, sys_exit_{call}) {{ return leave(args, args->__syscall_nr, args->ret); }}
"""


def _build(failed: bool, has: Set[str]) -> Spec:
    calls = [call for hook, call in _HOOKS.items() if hook in has]
    probes = "".join(_PROBES.format(call=call, arguments=_CALLS[call]) for call in calls)
    return Spec(_SOURCE + probes, Rows(_convert), cflags=[f"-DFAILED={int(failed)}"])


def _convert(events: pd.DataFrame) -> pd.DataFrame:
    ret = events["ret"]
    called = values(events["number"], "syscall")
    rows = events.assign(fd=ret.clip(lower=-1), err=(-ret).clip(lower=0), syscall=called, path=paths(events))
    return with_decoded(rows, {"err": "error"})


TOOL = Tool(
    "statsnoop",
    "file",
    __doc__,
    columns=[
        Column("time", "TIME", "when the call returned", show=clock),
        Column("pid", "PID", "the process"),
        Column("comm", "COMM", "the thread's name", width=16),
        Column("fd", "FD", "what the call returned: 0, or -1", width=4),
        Column("err", "ERR", "0, or the error number", width=4),
        Column("err_error", "", "the error's name"),
        Column("syscall", "SYSCALL", "the system call", width=10),
        Column("path", "PATH", "the path, complete"),
    ],
    build=_build,
    options=[Option("failed", False, "only what failed", short="x")],
    hooks=list(_HOOKS),
)
