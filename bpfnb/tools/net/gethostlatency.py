"""gethostlatency: calls that look up a host's name, with how long they took and whether they failed.

A row is a call of the C library's getaddrinfo, gethostbyname or gethostbyname2 that has returned; of one that another
makes, there are two. What it cannot see: programs that look names up without the C library, as Go's usually do;
another copy of the library, as in a container or a static program (path gives one); the reentrant gethostbyname_r;
calls that began before it was attached. Names of more than 255 bytes are cut.
"""

from __future__ import annotations

import pandas as pd

from bpfnb.results.columns.text import text_dtype
from bpfnb.results.presentation import Rows
from bpfnb.tools.tool import Column, Option, Spec, Tool, clock

__all__ = ["TOOL"]

_FUNCTIONS = ("getaddrinfo", "gethostbyname", "gethostbyname2")

_SOURCE = r"""
#include <linux/sched.h>

enum function { getaddrinfo, gethostbyname, gethostbyname2 };
struct call_t {
    u64 lat;  // until it returns: when it began
    u64 name;
    u32 pid, tid;
    s32 ret;
    enum function function;
    char comm[TASK_COMM_LEN];
    char host[256];
};
/* A thread may be in several calls at a time: each has its place on the stack. */
struct place_t { u64 sp; u64 tid; };
BPF_TABLE("lru_hash", struct place_t, struct call_t, calls, 4096);  // of threads that were killed amid one
BPF_RINGBUF_OUTPUT(events, 64);
#if defined(bpf_target_x86)
#define RETURN_ADDRESS 8  // off the stack when the function returns
#else
#define RETURN_ADDRESS 0
#endif

static inline int enters(struct pt_regs *ctx, enum function function) {
    struct place_t place = {.sp = PT_REGS_SP(ctx) + RETURN_ADDRESS, .tid = (u32)bpf_get_current_pid_tgid()};
    struct call_t call = {.name = PT_REGS_PARM1(ctx), .function = function};

    if (!bpfnb_selected())
        return 0;
    call.pid = bpf_get_current_pid_tgid() >> 32;
    call.tid = place.tid;
    bpf_get_current_comm(&call.comm, sizeof(call.comm));
    bpf_probe_read_user_str(&call.host, sizeof(call.host), (void *)call.name);
    call.lat = bpf_ktime_get_ns();
    calls.update(&place, &call);
    return 0;
}

int enters_getaddrinfo(struct pt_regs *ctx) { return enters(ctx, getaddrinfo); }
int enters_gethostbyname(struct pt_regs *ctx) { return enters(ctx, gethostbyname); }
int enters_gethostbyname2(struct pt_regs *ctx) { return enters(ctx, gethostbyname2); }

int returns(struct pt_regs *ctx) {
    u64 now = bpf_ktime_get_ns();
    struct place_t place = {.sp = PT_REGS_SP(ctx), .tid = (u32)bpf_get_current_pid_tgid()};
    struct call_t *call = calls.lookup(&place);

    if (!call)
        return 0;
    call->lat = now - call->lat;
    call->ret = call->function == getaddrinfo ? (s32)PT_REGS_RC(ctx) : PT_REGS_RC(ctx) ? 0 : 1;
    if (!call->host[0] && call->name)  // its page was not in memory before the function read it
        bpf_probe_read_user_str(&call->host, sizeof(call->host), (void *)call->name);
    events.ringbuf_output(call, sizeof(*call), 0);
    calls.delete(&place);
    return 0;
}
"""
_FAILED = 1  # gethostbyname has no reason
# As the C library of Linux numbers them (netdb.h), whatever system a recording is read on.
_ERRORS = {
    -1: "EAI_BADFLAGS", -2: "EAI_NONAME", -3: "EAI_AGAIN", -4: "EAI_FAIL", -5: "EAI_NODATA", -6: "EAI_FAMILY",
    -7: "EAI_SOCKTYPE", -8: "EAI_SERVICE", -9: "EAI_ADDRFAMILY", -10: "EAI_MEMORY", -11: "EAI_SYSTEM",
    -12: "EAI_OVERFLOW", _FAILED: "failed",
}  # fmt: skip


def _build(path: str) -> Spec:
    attach = []
    for function in _FUNCTIONS:
        attach += [(f"uprobe:{path}:{function}", f"enters_{function}"), (f"uretprobe:{path}:{function}", "returns")]
    return Spec(_SOURCE, Rows(_convert), attach=attach)


def _convert(events: pd.DataFrame) -> pd.DataFrame:
    named = events["host"].where(events["name"] != 0)
    errors = [None if ret == 0 else _ERRORS.get(ret, str(ret)) for ret in events["ret"].tolist()]
    return events.assign(
        lat=pd.to_timedelta(events["lat"]), host=named, error=pd.Series(errors, events.index, dtype=text_dtype())
    )


TOOL = Tool(
    "gethostlatency",
    "net",
    __doc__,
    columns=[
        Column("time", "TIME", "when it returned", show=clock),
        Column("pid", "PID", "the process"),
        Column("tid", "", "the thread"),
        Column("comm", "COMM", "its name", width=16),
        Column(
            "lat", "LATms", "how long the call took", "timedelta", width=10, show=lambda lat: f"{lat.value / 1e6:.2f}"
        ),
        Column("host", "HOST", "the name looked up; NA where there was none, as for a server's own address", width=40),
        Column("function", "", "getaddrinfo, gethostbyname or gethostbyname2"),
        Column(
            "error", "ERROR", "why it failed: EAI_NONAME and the like, of gethostbyname failed; NA where it did not",
            show=lambda error: "" if pd.isna(error) else str(error),
        ),
    ],
    build=_build,
    options=[Option("path", "c", "the C library: a path, or its name without lib and .so")],
)  # fmt: skip
