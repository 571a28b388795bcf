"""When an event happened, in which order, on which CPU, and how long it was: from the cell to the DataFrame."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest
from portable import portable

import bpfnb
from bpfnb.session import Session

OUTPUTS = {
    "perf": ("BPF_PERF_OUTPUT(events);", "events.perf_submit(ctx, &e, sizeof(e));"),
    "ringbuf": ("BPF_RINGBUF_OUTPUT(events, 8);", "events.ringbuf_output(&e, sizeof(e), 0);"),
    "reserve": (
        "BPF_RINGBUF_OUTPUT(events, 8);",
        "struct ev *room = events.ringbuf_reserve(sizeof(*room));"
        "if (!room) return 0; *room = e; events.ringbuf_submit(room, 0);",
    ),
}
CLOCKS = {"perf": "submitted", "ringbuf": "stamp", "reserve": "stamp"}
OURS = "if (bpf_get_current_pid_tgid() >> 32 != PID) return 0;"


def trace(source: str, **options: Any) -> Session:
    """A session of what this process's getppid does."""
    flags = [f"-DPID={os.getpid()}"]
    return bpfnb.trace(source, name="times", attach={"syscall:getppid": "f"}, cflags=flags, **options)


def cell(kind: str, struct: str, body: str) -> str:
    output, submit = OUTPUTS[kind]
    head = f"struct ev {{ {struct} }}; {output}"
    return f"{head} int f(void *ctx) {{ {OURS} struct ev e = {{}}; {body} {submit} return 0; }}"


@contextmanager
def on_cpus(count: int) -> Iterator[list[int]]:
    """Calls of getppid by a thread on each of two CPUs at once; how many by each in the end."""
    made: list[int] = []

    def call(cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})
        for _ in range(count):
            os.getppid()
        made.append(count)

    threads = [threading.Thread(target=call, args=(cpu,)) for cpu in sorted(os.sched_getaffinity(0))[:2]]
    for thread in threads:
        thread.start()
    yield made
    for thread in threads:
        thread.join()


def wait_for(session: Session, rows: int) -> None:
    """Until so many events were read; nothing is lost then where others keep the machine busy."""
    until = time.monotonic() + 20
    while session.outputs["events"].rows < rows and time.monotonic() < until:
        time.sleep(0.01)


# --- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.portable
@pytest.mark.parametrize("kind", OUTPUTS)
def test_every_member_keeps_its_value_and_time_is_when_it_happened(kind: str) -> None:
    """GIVEN members that look like times and are none, in a cell that reads the clock."""
    struct = "u64 ts; u64 time; u64 time_ns; u64 timestamp; u64 mono_ns;"
    body = "e.ts = bpf_ktime_get_ns() / 1000; e.time = 12345; e.time_ns = 1; e.timestamp = 2; e.mono_ns = 3;"
    edges = []
    with trace(cell(kind, struct, body)) as session:
        for _ in range(3):
            before = pd.Timestamp.now("UTC")
            os.getppid()
            edges.append((before, pd.Timestamp.now("UTC")))
            time.sleep(0.02)
    df = session.df
    assert list(df.columns) == ["time", "ts", "time_", "time_ns", "timestamp", "mono_ns"]
    assert df.drop(columns=["time", "ts"]).to_dict("records") == [
        {"time_": 12345, "time_ns": 1, "timestamp": 2, "mono_ns": 3}
    ] * len(edges)
    slack = pd.Timedelta("2us")  # the two clocks are measured against each other between two looks
    for when, (before, after) in zip(df.time, edges, strict=True):
        assert before - slack <= when <= after + slack
    assert session.outputs["events"].clock == CLOCKS[kind]


@pytest.mark.parametrize("divisor", [1_000, 1_000_000, 1_000_000_000])
def test_latencies_do_not_depend_on_the_unit_of_a_member(divisor: int) -> None:
    with trace(cell("ringbuf", "u64 ts; u32 tid;", f"e.ts = bpf_ktime_get_ns() / {divisor}; e.tid = 1;")) as session:
        first = time.monotonic_ns()
        os.getppid()
        begun = time.monotonic_ns()
        time.sleep(0.05)
        slept = time.monotonic_ns() - begun
        os.getppid()
        most = time.monotonic_ns() - first
    (latency,) = session.df.bpf.between().latency
    assert slept <= latency.value <= most
    rates = session.rate("10ms")["rate"]
    assert abs(len(rates) - latency.value / 10_000_000) <= 2
    assert rates.sum() == 200


def test_one_instant_is_one_time_in_every_output_of_every_session() -> None:
    """The clock is read before and after every line and event: what is added to it lies in all these intervals."""
    source = """
    struct clocks { u64 a, b, c, d; };
    BPF_RINGBUF_OUTPUT(ring, 8);
    BPF_PERF_OUTPUT(perf);
    BPF_PERF_OUTPUT(clocks);
    int f(void *ctx) {
        if (bpf_get_current_pid_tgid() >> 32 != PID) return 0;
        struct clocks e = {};
        u32 n = 1;
        e.a = bpf_ktime_get_ns();
        ring.ringbuf_output(&n, sizeof(n), 0);
        e.b = bpf_ktime_get_ns();
        perf.perf_submit(ctx, &n, sizeof(n));
        e.c = bpf_ktime_get_ns();
        bpf_trace_printk("x\\n");
        e.d = bpf_ktime_get_ns();
        clocks.perf_submit(ctx, &e, sizeof(e));
        return 0;
    }
    """
    least, most = [], []
    for _ in range(2):
        with trace(source) as session:
            for _ in range(300):
                os.getppid()
        clocks = session.outputs["clocks"].df
        for name, before, after in (("ring", "a", "b"), ("perf", "b", "c"), ("printk", "c", "d")):
            times = session.outputs[name].df.time.astype("int64")
            least.append(int((times - clocks[after].astype("int64")).max()))
            most.append(int((times - clocks[before].astype("int64")).min()))
    assert max(least) <= min(most)
    assert min(most) - max(least) < 5_000  # or this says nothing
    wall = time.time_ns() - time.monotonic_ns()
    assert abs(wall - max(least)) < 1_000_000


@pytest.mark.parametrize("kind", [portable("perf"), "ringbuf", portable("reserve")])
def test_rows_of_two_cpus_are_in_order_of_time(kind: str) -> None:
    body = "e.ts = bpf_ktime_get_ns(); e.tid = bpf_get_current_pid_tgid();"
    seen = []
    with trace(cell(kind, "u64 ts; u32 tid;", body)) as session, on_cpus(60_000) as made:
        while len(made) < 2:
            seen.append(session.df)
            time.sleep(0.02)
    df = session.df
    assert len(df) == 120_000
    assert session.lost == 0
    assert df.tid.nunique() == 2
    assert df.time.is_monotonic_increasing
    for _, rows in df.groupby("tid"):
        assert (rows.ts.astype("int64").diff().dropna() > 0).all()  # none is in another's place
    offset = df.time.astype("int64") - df.ts.astype("int64")
    assert offset.min() > 0
    for frame in seen:  # what was handed out stays the beginning of what comes
        pd.testing.assert_frame_equal(frame, df.head(len(frame)))


def test_a_stamped_event_is_there_at_once_and_the_last_drain_waits_for_none() -> None:
    with trace(cell("reserve", "u32 n;", "e.n = 1;")) as session:
        for n in range(1, 6):
            os.getppid()
            wait_for(session, n)
            assert len(session.df) == n
        os.getppid()
    assert len(session.df) == 6


@pytest.mark.parametrize("size", [1, 3, 4, 8, portable(13), 44, 200])
def test_stamps_lie_behind_events_of_any_size(size: int) -> None:
    source = f"""
    struct ev {{ char text[{size}]; }} __attribute__((packed));
    BPF_RINGBUF_OUTPUT(copied, 8);
    BPF_RINGBUF_OUTPUT(made, 8);
    BPF_ARRAY(scratch, struct ev, 1);
    int f(void *ctx) {{
        {OURS}
        int zero = 0;
        struct ev *e = scratch.lookup(&zero), *room = made.ringbuf_reserve(sizeof(*room));
        if (room) {{
            __builtin_memset(room, 'r', sizeof(*room));
            made.ringbuf_submit(room, 0);
        }}
        if (!e) return 0;
        __builtin_memset(e, 'c', sizeof(*e));
        copied.ringbuf_output(e, sizeof(*e), 0);
        return 0;
    }}
    """
    before = pd.Timestamp.now("UTC")
    with trace(source, cpu=True) as session:
        for _ in range(50):
            os.getppid()
    after = pd.Timestamp.now("UTC")
    for name, letter in (("copied", "c"), ("made", "r")):
        df = session.outputs[name].df
        assert df.text.tolist() == [letter * size] * 50
        assert df.time.between(before, after).all()
        assert df.cpu.isin(os.sched_getaffinity(0)).all()


# --- cpu -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_cpu_an_event_came_from(kind: str) -> None:
    struct, body = "u32 tid; u64 cpu;", "e.tid = bpf_get_current_pid_tgid(); e.cpu = 77;"
    home: dict[int, int] = {}

    def call(cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})
        home[threading.get_native_id()] = cpu
        for _ in range(100):
            os.getppid()

    with trace(cell(kind, struct, body), cpu=True) as session:
        for cpu in sorted(os.sched_getaffinity(0)):
            thread = threading.Thread(target=call, args=(cpu,))
            thread.start()
            thread.join()
    df = session.df
    assert list(df.columns) == ["time", "cpu_", "tid", "cpu"]
    assert df.cpu_.dtype == np.int16
    assert set(df.cpu) == {77}
    assert df.groupby("tid").cpu_.unique().map(list).to_dict() == {tid: [cpu] for tid, cpu in home.items()}
    with trace(cell(kind, "u32 tid;", "")) as session:
        os.getppid()
    assert list(session.df.columns) == ["time", "tid"]


# --- lengths ---------------------------------------------------------------------------------------------------------

SUBMITS = {
    "perf": ("BPF_PERF_OUTPUT(events);", "events.perf_submit(ctx, &e, SIZE);"),
    "ringbuf": ("BPF_RINGBUF_OUTPUT(events, 8);", "events.ringbuf_output(&e, SIZE, 0);"),
}


def short_cell(kind: str, tail: str, size: str) -> str:
    output, submit = SUBMITS[kind]
    return f"""
    struct line {{ u32 n; {tail} }};
    struct whole {{ u32 n; char text[400]; }};
    {output}
    BPF_ARRAY(count, u32, 1);
    int f(void *ctx) {{
        {OURS}
        struct whole e;
        int zero = 0;
        u32 *n = count.lookup(&zero);
        if (!n) return 0;
        e.n = *n;
        __builtin_memset(e.text, '!', sizeof(e.text));  /* what is not submitted must not be seen */
        {submit.replace("&e", "(struct line *)&e").replace("SIZE", size)}
        *n += 1;
        return 0;
    }}
    """


@pytest.mark.parametrize("tail", [portable("char text[];"), "u8 text[];"])
@pytest.mark.parametrize("kind", SUBMITS)
def test_events_end_where_they_were_submitted_to(kind: str, tail: str) -> None:
    """GIVEN a buffer that has gone round WHEN short events follow THEN no byte of the older ones is in them."""
    longs, cpus = 45_000, os.sched_getaffinity(0)  # 19 MB in a buffer of 16 MiB
    with trace(short_cell(kind, tail, f"*n < {longs} ? sizeof(e) : 4 + (*n & 31)")) as session:
        os.sched_setaffinity(0, {min(cpus)})
        for made in range(1, longs + 321):
            os.getppid()
            if made % 5000 == 0:
                wait_for(session, made)
        os.sched_setaffinity(0, cpus)
    df = session.df
    assert session.lost == 0
    assert df.n.tolist() == list(range(longs + 320))
    mark = "!" if "char" in tail else b"!"
    assert df.text.tolist() == [mark * (400 if n < longs else n & 31) for n in range(longs + 320)]


@pytest.mark.parametrize("size", [5, 9, 14])
@pytest.mark.parametrize("kind", SUBMITS)
def test_a_constant_size_is_believed(kind: str, size: int) -> None:
    with trace(short_cell(kind, "u8 text[];", str(size))) as session:
        for _ in range(1000):
            os.getppid()
    assert session.df.text.tolist() == [b"!" * (size - 4)] * 1000
    assert session.outputs["events"].clock == CLOCKS[kind]


CASTS = {
    "a struct behind void": ("u32 n = 7;", "(void *)&n", "sizeof(n)", 7),
    "an array behind char": ('char b[12] = "hello world";', "(char *)b", "sizeof(b)", "hello world"),
    "an array behind void": ('char b[12] = "hello world";', "(void *)b", "sizeof(b)", "hello world"),
    "its first byte": ('char b[12] = "hello world";', "&b[0]", "5", "hello"),
    "a part": ('char b[12] = "hello world";', "b + 6", "5", "world"),
    "u8": ("u8 b[3] = {1, 2, 3};", "(u8 *)b", "sizeof(b)", b"\1\2\3"),
    "a pointer to u8": ("u8 b[3] = {1, 2, 3}; u8 *p = b;", "p", "2", b"\1\2"),
    "a number's bytes": ("u64 n = 258;", "(void *)(u8 *)&n", "sizeof(n)", 258),
    "one byte": ("u8 n = 5;", "&n", "sizeof(n)", 5),
    "a compound literal": ("u64 n = PID;", "&(u64){ n - PID + 7 }", "sizeof(u64)", 7),
}


@pytest.mark.parametrize("case", [portable(c) if c == "an array behind char" else c for c in CASTS])
def test_what_is_handed_over_is_seen_through_casts(case: str) -> None:
    declared, given, size, value = CASTS[case]
    source = f"""
    BPF_PERF_OUTPUT(perf);
    BPF_RINGBUF_OUTPUT(ring, 8);
    int f(void *ctx) {{
        {OURS}
        {declared}
        perf.perf_submit(ctx, {given}, {size});
        ring.ringbuf_output({given}, {size}, 0);
        return 0;
    }}
    """
    with trace(source) as session:
        os.getppid()
    for name in ("perf", "ring"):
        assert session.outputs[name].df.value.tolist() == [value]


def test_events_of_two_constant_sizes_that_perf_pads_to_one_length() -> None:
    """GIVEN 13 and 16 bytes, of which perf makes 20 each THEN the longer ones keep their last bytes."""
    source = f"""
    struct line {{ u32 n; char text[12]; }};
    BPF_PERF_OUTPUT(events);
    BPF_ARRAY(count, u32, 1);
    int f(void *ctx) {{
        {OURS}
        struct line e = {{}};
        int zero = 0;
        u32 *n = count.lookup(&zero);
        if (!n) return 0;
        e.n = *n;
        __builtin_memset(e.text, '!', sizeof(e.text));
        if (*n & 1) events.perf_submit(ctx, &e, sizeof(e) - 3);
        else events.perf_submit(ctx, &e, sizeof(e));
        *n += 1;
        return 0;
    }}
    """
    with trace(source) as session:
        os.sched_setaffinity(0, {min(before := os.sched_getaffinity(0))})
        for _ in range(4):
            os.getppid()
        os.sched_setaffinity(0, before)
    assert session.df.text.tolist() == ["!" * 12, "!" * 9] * 2


@pytest.mark.parametrize("size", ["9", "sizeof(e.head) + (n & 7)"])
def test_what_is_longer_than_its_type_is_shown_as_bytes(size: str) -> None:
    source = f"""
    struct head {{ u32 n; }};
    struct whole {{ struct head head; u8 rest[5]; }};
    BPF_PERF_OUTPUT(events);
    int f(void *ctx) {{
        {OURS}
        struct whole e = {{ .head = {{ 3 }}, .rest = {{ 1, 2, 3, 4, 5 }} }};
        u32 n = bpf_get_current_pid_tgid() ? 5 : 0;
        events.perf_submit(ctx, &e.head, {size});
        return 0;
    }}
    """
    with trace(source) as session:
        os.getppid()
    assert session.df.drop(columns="time").to_dict("records") == [{"n": 3, "rest": b"\1\2\3\4\5"}]


@pytest.mark.parametrize("stamped", [True, False])
def test_what_is_reserved_beyond_the_type_is_shown_as_bytes(stamped: bool) -> None:
    """GIVEN 24 bytes reserved for a u64, in a ring with stamps and in one without THEN all 24 are there."""
    more = "" if stamped else "u32 n = who & 3; r.ringbuf_output(&who, 8 + (n & 0), 0);"  # this size is no constant
    source = f"""
    BPF_RINGBUF_OUTPUT(r, 8);
    int f(void *ctx) {{
        {OURS}
        u64 who = 9; {more}
        u64 *q = r.ringbuf_reserve(24);
        if (!q) return 0;
        q[0] = 1; q[1] = 2; q[2] = 3;
        r.ringbuf_submit(q, 0);
        return 0;
    }}
    """
    with trace(source) as session:
        os.getppid()
    output = session.outputs["r"]
    assert output.clock == ("stamp" if stamped else None)
    row = output.df.iloc[-1]
    assert (row.value, row.rest) == (1, (2).to_bytes(8, "little") + (3).to_bytes(8, "little"))


@pytest.mark.parametrize(
    ("check", "size"),
    [
        ("if (!e) return 0;", "500"),  # beyond the map's value
        ("", "sizeof(*e)"),  # NULL, where there is no such key
        ("u64 one = 1; e = (void *)&one;", "500"),  # beyond the stack
    ],
)
def test_what_the_verifier_refuses_ringbuf_output_is_refused_where_events_are_stamped(check: str, size: str) -> None:
    """Else these events would be zeros, or whatever the kernel has there."""
    source = f"""
    struct big {{ u32 n; char text[300]; }};
    BPF_RINGBUF_OUTPUT(events, 8);
    BPF_HASH(held, u32, struct big);
    int f(void *ctx) {{
        u32 key = 1;
        struct big *e = held.lookup(&key); {check}
        events.ringbuf_output(e, {size}, 0);
        return 0;
    }}
    """
    with pytest.raises(bpfnb.VerifierError) as caught:
        trace(source)
    assert caught.value.line == 8


@pytest.mark.parametrize("times", [1, 3, 12])
def test_what_stands_behind_submits_and_increments_keeps_its_line(times: int) -> None:
    """LLVM has ten bits for a column, and what is more is added to the line."""
    submits = "p.perf_submit(ctx, &e, n); count.increment(zero); r.ringbuf_output(&e, sizeof(e), 0); "
    line = f"{submits * times}u64 *v = count.lookup(&zero); *v += 1;"
    source = f"""BPF_HASH(count, int, u64);
    BPF_PERF_OUTPUT(p);
    BPF_RINGBUF_OUTPUT(r, 8);
    int f(void *ctx) {{
        u32 e = 1; int zero = 0, n = bpf_get_prandom_u32() & 3;
        {line}
        return 0;
    }}
    """
    with pytest.raises(bpfnb.VerifierError) as caught:
        trace(source)
    assert caught.value.line == 6
