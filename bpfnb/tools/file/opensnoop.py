"""opensnoop: files as they are opened, with their whole path, or why they could not be.

The system calls open, openat and openat2. A relative path is completed by the directory that it is relative to. What it
cannot see: files opened in other ways (io_uring, open_by_handle_at, creat, 32-bit programs), and where symbolic links
lead.
"""

from __future__ import annotations

from collections.abc import Set

import pandas as pd

from bpfnb.results.decode import with_decoded
from bpfnb.results.presentation import Rows
from bpfnb.tools.file._paths import READ_PATH, paths
from bpfnb.tools.tool import Column, Option, Spec, Tool, clock

__all__ = ["TOOL"]

_OPEN = "tracepoint:syscalls:sys_enter_open"  # x86 has it; newer architectures have openat alone

_SOURCE = (
    READ_PATH
    + r"""
struct event_t {
    char comm[TASK_COMM_LEN];
    u64 flags;
    u32 pid, mode;
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
    u64 flags;
    u32 mode;
    int dfd;
};
BPF_PERF_OUTPUT(events);
BPF_TABLE("lru_hash", u32, struct call_t, calls, 10240);  // by thread
BPF_PERCPU_ARRAY(buffers, struct buffer_t, 1);

static __always_inline int enter(int dfd, const char *name, u64 flags, u32 mode) {
    u32 tid = bpf_get_current_pid_tgid();
    struct call_t call = {.name = name, .flags = flags, .mode = mode, .dfd = dfd};

    if (bpfnb_selected())
        calls.update(&tid, &call);
    return 0;
}

static __always_inline int leave(void *ctx, int ret) {
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
        event->flags = call->flags;
        event->mode = call->flags & (O_CREAT | O_TMPFILE & ~O_DIRECTORY) ? call->mode : 0;
        event->ret = ret;
        read_path(&event->size, event->text, call->dfd, call->name, 0);
        u64 size = sizeof(*event) + event->size;
        asm volatile("" : "+r"(size));  // the verifier is to see that what is compared is what is used
        if (size < sizeof(*buffer))
            events.perf_submit(ctx, event, size);
    }
    calls.delete(&tid);
    return 0;
}

TRACEPOINT_PROBE(syscalls, sys_enter_openat) { return enter(args->dfd, args->filename, args->flags, args->mode); }
TRACEPOINT_PROBE(syscalls, sys_exit_openat) { return leave(args, args->ret); }

TRACEPOINT_PROBE(syscalls, sys_enter_openat2) {
    struct open_how how = {};

    bpf_probe_read_user(&how, sizeof(how), args->how);
    return enter(args->dfd, args->filename, how.flags, how.mode);
}
TRACEPOINT_PROBE(syscalls, sys_exit_openat2) { return leave(args, args->ret); }
"""
)

_OLD = r"""
TRACEPOINT_PROBE(syscalls, sys_enter_open) { return enter(AT_FDCWD, args->filename, args->flags, args->mode); }
TRACEPOINT_PROBE(syscalls, sys_exit_open) { return leave(args, args->ret); }
"""


def _build(failed: bool, has: Set[str]) -> Spec:
    return Spec(_SOURCE + (_OLD if _OPEN in has else ""), Rows(_convert), cflags=[f"-DFAILED={int(failed)}"])


def _convert(events: pd.DataFrame) -> pd.DataFrame:
    ret = events["ret"]
    rows = events.assign(fd=ret.clip(lower=-1), err=(-ret).clip(lower=0), path=paths(events))
    return with_decoded(rows, {"err": "error", "flags": "open", "mode": "mode"})


TOOL = Tool(
    "opensnoop",
    "file",
    __doc__,
    columns=[
        Column("time", "TIME", "when the call returned", show=clock),
        Column("pid", "PID", "the process"),
        Column("comm", "COMM", "the thread's name", width=16),
        Column("fd", "FD", "the file's descriptor, or -1", width=4),
        Column("err", "ERR", "0, or the error number", width=4),
        Column("err_error", "", "the error's name"),
        Column("flags", "FLAGS", "O_RDONLY and the like", width=10, show=lambda flags: f"{flags:o}".rjust(8, "0")),
        Column("flags_open", "", "the flags' names"),
        Column("mode", "MODE", "permissions of a file that is made; else 0", width=5, show=lambda mode: f"{mode:04o}"),
        Column("mode_mode", "", "the same as letters"),
        Column("path", "PATH", "the path, complete"),
    ],
    build=_build,
    options=[Option("failed", False, "only what could not be opened", short="x")],
    hooks=[_OPEN],
)
