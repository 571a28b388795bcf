"""BPF_PERF_OUTPUT and BPF_RINGBUF_OUTPUT, from the cell to the DataFrame."""

from __future__ import annotations

import ctypes
import os
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import bpfnb
from bpfnb.hosts import default_host
from bpfnb.session import Session

_libc = ctypes.CDLL(None)
OUTPUTS = {
    "perf": ("BPF_PERF_OUTPUT(events);", "events.perf_submit(ctx, &data, sizeof(data));"),
    "ringbuf": ("BPF_RINGBUF_OUTPUT(events, 8);", "events.ringbuf_output(&data, sizeof(data), 0);"),
}
CELL = """
enum kind { ENTRY, OTHER = 7 };
struct place { u16 x; s16 y; };
struct data_t {
    u64 ts;
    u32 pid;
    char comm[TASK_COMM_LEN];
    struct place at;
    u32 small:3;
    u32 big:29;
    enum kind kind;
    u8 raw[4];
    pid_t tgid;
    bool yes;
    __be16 port;
    u64 seq;
};
BPF_ARRAY(count, u64, 1);
%s
int f(void *ctx) {
    u64 id = bpf_get_current_pid_tgid();
    if (id >> 32 != PID) return 0;
    struct data_t data = {};
    int zero = 0;
    u64 *seq = count.lookup(&zero);
    if (!seq) return 0;
    data.seq = __sync_fetch_and_add(seq, 1);
    data.ts = bpf_ktime_get_ns();
    data.pid = id;
    data.tgid = id >> 32;
    data.at.x = 65535;
    data.at.y = -2;
    data.small = 5;
    data.big = 1 << 28;
    data.kind = OTHER;
    data.raw[1] = 0xff;
    data.yes = true;
    data.port = 0x3412;
    bpf_get_current_comm(&data.comm, sizeof(data.comm));
    %s
    return 0;
}
"""


def cell(kind: str) -> str:
    return CELL % OUTPUTS[kind]


def start(kind: str, name: str = "events") -> Session:
    flags = [f"-DPID={os.getpid()}"]
    return bpfnb.trace(cell(kind), name=name, attach={"syscall:sync": "f"}, cflags=flags)


@pytest.mark.portable
@pytest.mark.parametrize("kind", OUTPUTS)
def test_every_member_is_a_column_with_its_value(kind: str) -> None:
    before = pd.Timestamp.now("UTC")
    with start(kind) as session:
        for _ in range(3):
            _libc.sync()
    df = session.df
    comm = Path("/proc/self/comm").read_text().rstrip("\n")
    assert list(df.columns) == [
        *("time", "ts", "pid", "comm", "at.x", "at.y", "small", "big", "kind", "raw", "tgid", "yes", "port", "seq"),
    ]
    assert df.drop(columns=["time", "ts", "pid"]).to_dict("records") == [
        {
            "comm": comm,
            "at.x": 65535,
            "at.y": -2,
            "small": 5,
            "big": 1 << 28,
            "kind": "OTHER",
            "raw": b"\0\xff\0\0",
            "tgid": os.getpid(),
            "yes": True,
            "port": 0x3412,
            "seq": seq,
        }
        for seq in range(3)
    ]
    assert str(df.time.dtype) == "datetime64[ns, UTC]"
    assert df.time.is_monotonic_increasing
    assert before <= df.time.iloc[0] <= pd.Timestamp.now("UTC")
    assert df["at.y"].dtype == np.int16
    assert df.tgid.dtype == np.int32
    assert df.attrs == {"lost": 0, "dropped": 0}
    assert session.lost == 0


@pytest.mark.parametrize("flag", ["-DNOTHING", "-DRING"])
@pytest.mark.parametrize("condition", ["defined(RING)", "!defined(RING)"])
def test_an_output_may_be_what_the_preprocessor_chooses(condition: str, flag: str) -> None:
    kinds = [OUTPUTS["ringbuf"], OUTPUTS["perf"]]
    if condition.startswith("!"):
        kinds.reverse()
    (first, submit), (second, other) = kinds
    source = f"""
#if {condition}
{first}
#else
{second}
#endif
int f(void *ctx) {{
    u64 data = bpf_get_current_pid_tgid() >> 32;
    if (data != PID) return 0;
#if {condition}
    {submit}
#else
    {other}
#endif
    return 0;
}}"""
    flags = [flag, f"-DPID={os.getpid()}"]
    with bpfnb.trace(source, name="events", attach={"syscall:sync": "f"}, cflags=flags) as session:
        _libc.sync()
    output = session.outputs["events"]
    assert output.clock == ("stamp" if flag == "-DRING" else "submitted")
    assert output.df.value.tolist() == [os.getpid()]


@pytest.mark.parametrize("kind", OUTPUTS)
def test_an_event_is_in_the_dataframe_within_a_tenth_of_a_second(kind: str) -> None:
    with start(kind) as session:
        delays = []
        for n in range(1, 11):
            _libc.sync()
            begun = time.monotonic()
            while session.outputs["events"].rows < n and time.monotonic() < begun + 5:
                time.sleep(0.001)
            delays.append(time.monotonic() - begun)
            assert len(session.df) == n
        assert sorted(delays)[5] < 0.1


@pytest.mark.portable
@pytest.mark.parametrize("kind", OUTPUTS)
def test_what_a_full_buffer_refuses_is_counted(kind: str) -> None:
    """GIVEN a tracer that does not read WHEN more is submitted than fits THEN delivered and lost add up."""
    source = """
    struct big { u64 seq; char fill[392]; };
    BPF_ARRAY(count, u64, 1);
    %s
    int f(void *ctx) {
        if (bpf_get_current_pid_tgid() >> 32 != PID) return 0;
        struct big data = {};
        int zero = 0;
        u64 *seq = count.lookup(&zero);
        if (!seq) return 0;
        data.seq = __sync_fetch_and_add(seq, 1);
        %s
        return 0;
    }
    """
    produced = 120_000
    tracer = default_host.connect().hello().pid
    flags = [f"-DPID={os.getpid()}"]
    with bpfnb.trace(source % OUTPUTS[kind], name="events", attach={"syscall:getppid": "f"}, cflags=flags) as session:
        os.kill(tracer, signal.SIGSTOP)
        try:
            for _ in range(produced):
                os.getppid()
        finally:
            os.kill(tracer, signal.SIGCONT)
        read = -1
        while read < (read := session.outputs["events"].rows) or not read:  # until the buffer has been emptied
            time.sleep(0.5)
        for _ in range(100):
            os.getppid()
    with pytest.warns(RuntimeWarning, match=f"{session.lost:,} events"):
        df = session.df
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        df = session.df  # said once
    assert session.lost > 1000
    assert len(df) + session.lost == produced + 100
    assert df.seq.is_unique
    assert df.seq.is_monotonic_increasing
    assert df.seq.iloc[-1] == produced + 99
    assert df.attrs["lost"] == session.outputs["events"].lost == session.lost
    assert f"{session.lost:,} lost" in repr(session)


def test_reserve_and_submit_discard_and_a_reserve_that_fails() -> None:
    source = """
    struct data_t { u64 n; };
    BPF_RINGBUF_OUTPUT(events, 1);
    BPF_ARRAY(count, u64, 1);
    int f(void *ctx) {
        if (bpf_get_current_pid_tgid() >> 32 != PID) return 0;
        int zero = 0;
        u64 *n = count.lookup(&zero);
        if (!n) return 0;
        *n += 1;
        struct data_t *data = events.ringbuf_reserve(sizeof(*data));
        if (!data) return 0;
        data->n = *n;
        if (*n % 2) events.ringbuf_discard(data, 0); else events.ringbuf_submit(data, 0);
        void *huge = events.ringbuf_reserve(1 << 29);
        if (huge) events.ringbuf_discard(huge, 0);
        return 0;
    }
    """
    flags = [f"-DPID={os.getpid()}"]
    with bpfnb.trace(source, name="events", attach={"syscall:getppid": "f"}, cflags=flags) as session:
        for _ in range(10):
            os.getppid()
    with pytest.warns(RuntimeWarning):
        assert session.df.n.tolist() == [2, 4, 6, 8, 10]
    assert session.lost == 10
    assert session.maps["count"][0] == 10


@pytest.mark.portable
def test_two_outputs_and_printk_side_by_side() -> None:
    source = """
    BPF_PERF_OUTPUT(first);
    BPF_RINGBUF_OUTPUT(second, 8);
    int f(void *ctx) {
        if (bpf_get_current_pid_tgid() >> 32 != PID) return 0;
        u64 n = 41;
        char text[8] = "abc";
        first.perf_submit(ctx, &n, sizeof(n));
        second.ringbuf_output(text, sizeof(text), 0);
        bpf_trace_printk("hello\\n");
        return 0;
    }
    """
    flags = [f"-DPID={os.getpid()}"]
    with bpfnb.trace(source, name="three", attach={"syscall:getppid": "f"}, cflags=flags) as session:
        os.getppid()
    assert session.df.equals(session.outputs["first"].df)  # what is submitted goes before what is printed
    assert session.outputs["printk"].df.msg.tolist() == ["hello"]
    assert session.outputs["first"].df.value.tolist() == [41]
    assert session.outputs["second"].df.value.tolist() == ["abc"]
    assert set(session.outputs) == {"printk", "first", "second"}


def test_perf_events_have_a_time_of_their_own() -> None:
    source = """
    BPF_PERF_OUTPUT(events);
    int f(void *ctx) { u32 n = 1; events.perf_submit(ctx, &n, sizeof(n)); return 0; }
    """
    before = pd.Timestamp.now("UTC")
    with bpfnb.trace(source, name="events", attach={"syscall:sync": "f"}) as session:
        _libc.sync()
    assert list(session.df.columns) == ["time", "value"]
    assert before <= session.df.time.iloc[0] <= pd.Timestamp.now("UTC")


def test_ring_buffers_are_large_whatever_the_cell_says_and_a_wrong_size_is_an_error() -> None:
    source = (
        "BPF_RINGBUF_OUTPUT(events, %s);\nint f(void *ctx) { u32 n = 1; events.ringbuf_output(&n, 4, 0); return 0; }"
    )
    with bpfnb.trace(source % "8", name="events", attach={"syscall:sync": "f"}) as session:
        _libc.sync()
    assert session.df.value.tolist() == [1]
    with pytest.raises(bpfnb.ProgramError, match=r"line 1: .*events.*power of two"):
        bpfnb.trace(source % "3", name="events", attach={"syscall:sync": "f"})


def test_an_output_that_is_not_submitted_to() -> None:
    source = 'BPF_PERF_OUTPUT(events);\nint f(void *ctx) { bpf_trace_printk("x"); return 0; }'
    with bpfnb.trace(source, name="silent", attach={"syscall:sync": "f"}) as session:
        with pytest.raises(KeyError, match="declared, but nothing in this cell submits to it"):
            session.outputs["events"]
        with pytest.raises(KeyError, match="did you mean printk"):
            session.outputs["print"]


ERRORS = {
    "two structs": (
        "struct a { u32 x; }; struct b { u64 y; };\nBPF_PERF_OUTPUT(e);\nint f(void *ctx) {\n"
        "struct a a = {}; struct b b = {};\ne.perf_submit(ctx, &a, sizeof(a));\ne.perf_submit(ctx, &b, sizeof(b));\n"
        "return 0; }",
        bpfnb.ProgramError,
        6,
        "given something else here than in line 5",
    ),
    "void": (
        "BPF_PERF_OUTPUT(e);\nint f(void *ctx) { u64 x = 0; void *p = &x;\ne.perf_submit(ctx, p, 8); return 0; }",
        bpfnb.ProgramError,
        3,
        "void pointer",
    ),
    "unknown name": (
        "BPF_PERF_OUTPUT(e);\nint f(void *ctx) {\ne.perf_submit(ctx, &nothing, 8); return 0; }",
        bpfnb.CompileError,
        3,
        "use of undeclared identifier 'nothing'",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_submits_are_errors_where_they_stand(case: str) -> None:
    source, kind, line, message = ERRORS[case]
    with pytest.raises(kind, match=message) as caught:
        bpfnb.trace(source, name="bad", attach={"syscall:sync": "f"})
    assert caught.value.line == line
    assert caught.value.source == source
    if isinstance(caught.value, bpfnb.CompileError):
        assert len([d for d in caught.value.diagnostics if d.severity == "error"]) == 1


def test_a_pointer_is_its_address_and_a_flexible_array_what_follows() -> None:
    source = """
    struct data_t { void *task; char *none; };
    struct line_t { u32 n; char text[]; };
    BPF_PERF_OUTPUT(events);
    BPF_RINGBUF_OUTPUT(lines, 8);
    int f(void *ctx) {
        if (bpf_get_current_pid_tgid() >> 32 != PID) return 0;
        struct data_t data = { .task = (void *)bpf_get_current_task() };
        events.perf_submit(ctx, &data, sizeof(data));
        struct line_t *line = lines.ringbuf_reserve(sizeof(struct line_t) + 12);
        if (!line) return 0;
        line->n = 12;
        bpf_get_current_comm(line->text, 12);
        lines.ringbuf_submit(line, 0);
        return 0;
    }
    """
    flags = [f"-DPID={os.getpid()}"]
    with bpfnb.trace(source, name="odd", attach={"syscall:getppid": "f"}, cflags=flags) as session:
        os.getppid()
    row = session.outputs["events"].df.iloc[0]
    assert row.task > 1 << 63
    assert row.none == 0
    line = session.outputs["lines"].df.iloc[0]
    comm = Path("/proc/self/comm").read_text().rstrip("\n")
    assert (line.n, line.text) == (12, comm[:11])


def test_rates_and_groups_of_events() -> None:
    with start("perf") as session:
        for _ in range(5):
            _libc.sync()
    rate = session.rate("1s", by="comm")
    assert rate.to_numpy().sum() == 5
    with pytest.raises(ValueError, match="no column 'nothing'"):
        session.rate("1s", by="nothing")


def test_a_ring_that_cannot_be_stamped_has_no_time_and_says_so() -> None:
    """The length of what is copied into it changes: room for it and a stamp cannot be made in one."""
    source = """
    BPF_RINGBUF_OUTPUT(events, 8);
    int f(void *ctx) {
        u32 n = 1, size = bpf_get_prandom_u32() & 4;
        events.ringbuf_output(&n, size ? size : 4, 0);
        return 0;
    }
    """
    with bpfnb.trace(source, name="events", attach={"syscall:sync": "f"}) as session:
        _libc.sync()
    assert list(session.df.columns) == ["value"]
    assert session.outputs["events"].clock is None
    with pytest.raises(ValueError, match="time"):
        session.rate()
    with pytest.raises(bpfnb.UnsupportedError, match=r"line 2: the CPU of events's events cannot be noted"):
        bpfnb.trace(source, name="events", attach={"syscall:sync": "f"}, cpu=True)
