"""Events larger than anybody expects: refused where the cell shows their size, else counted. And a source that fails
ends its own session, with its reason; the others go on."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import bpfnb
from bpfnb import Session
from bpfnb.errors import ProgramError, SetupError, UnsupportedError
from bpfnb.hosts import default_host

MIB = 1 << 20
_libc = ctypes.CDLL(None)
QUIET = r"""
int call(void *ctx) { bpf_trace_printk("still here\n"); return 0; }
"""


def go_on(others: Session) -> None:
    """Another session of the same tracer gets what it prints."""
    before = others.outputs["printk"].rows
    for _ in range(100):
        _libc.getppid()
        if others.outputs["printk"].rows > before:
            return
        others.wait(0.05)
    pytest.fail("another session gets no rows any more")


def test_a_struct_that_no_segment_holds_is_refused_at_its_line() -> None:
    tracer = default_host.connect().hello()
    text = f"""
struct big {{ u64 n; char bytes[{26 * MIB}]; }};
BPF_ARRAY(one, struct big, 1);
BPF_RINGBUF_OUTPUT(events, 16384);
int f(void *ctx) {{
    struct big *big = one.lookup(&(int){{0}});
    if (!big) return 0;
    events.ringbuf_output(big, sizeof(*big), 0);
    return 0;
}}
"""
    with (
        bpfnb.trace(QUIET, name="others", attach={"syscall:getppid": "call"}) as others,
        pytest.raises(UnsupportedError, match=r"events cannot be read: an event takes 27,262,984 bytes") as refused,
    ):
        bpfnb.trace(text, name="big", attach={"syscall:getpgid": "f"})
    assert refused.value.line == 8
    assert default_host.connect().hello() == tracer
    assert others.state == "stopped"


def test_a_text_that_no_segment_holds_is_counted() -> None:
    """GIVEN texts of 42 MiB among short ones THEN those are lost, and no other; one that fits in a segment of its own,
    but not in an ordinary one of this session, comes whole."""
    sizes = [100, 42 * MIB, 200, 30 * MIB, 300]
    text = f"""
struct record {{ u64 n; char text[]; }};
struct room {{ char bytes[{43 * MIB}]; }};
BPF_ARRAY(one, struct room, 1);
BPF_ARRAY(made, u64, 1);
BPF_RINGBUF_OUTPUT(events, 16384);
int f(struct pt_regs *ctx, int size) {{
    if ((bpf_get_current_pid_tgid() >> 32) != {os.getpid()}) return 0;
    struct record *record = (void *)one.lookup(&(int){{0}});
    if (!record) return 0;
    record->n = size;
    made.atomic_increment(0);
    u64 length = 8 + (u64)size;
    if (length > {43 * MIB}) return 0;
    __builtin_memset(record->text, 'x', 8);
    events.ringbuf_output(record, length, 0);
    return 0;
}}
"""
    with (
        bpfnb.trace(QUIET, name="others", attach={"syscall:getppid": "call"}) as others,
        bpfnb.trace(text, name="texts", attach={"syscall:getpgid": "f"}, keep=128 * MIB) as session,
    ):
        for count, size in enumerate(sizes, 1):
            _libc.getpgid(size)
            for _ in range(100):
                if session.outputs["events"].rows + session.lost == count:
                    break
                session.wait(0.05)
        go_on(others)
    assert (session.state, session.reason) == ("stopped", "stopped")
    assert session.lost == 1
    assert session.maps["made"].df["value"].sum() == len(sizes) == len(session.df) + session.lost
    assert session.df.n.tolist() == [100, 200, 30 * MIB, 300]
    assert session.df.text.str.len().tolist() == [8, 8, 8, 8]  # up to the first NUL


@contextmanager
def no_more_descriptors(pid: int) -> Iterator[None]:
    """A process can open none inside."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_a_tracer_goes_on_without_a_free_descriptor() -> None:
    """GIVEN a tracer that can open nothing for some seconds WHEN it is asked THEN it answers, and its threads go on:
    afterwards maps are read, costs measured and sessions begun as before."""
    text = "BPF_HASH(calls, u32); int f(void *ctx) { calls.increment(0); return 0; }"
    tracer = default_host.connect().hello().pid
    with bpfnb.trace(text, name="counting", attach={"syscall:getpgid": "f"}) as session:
        with no_more_descriptors(tracer):
            for _ in range(2):  # each waits for the session to end
                with pytest.raises(ProgramError, match="Too many open files"):
                    _ = session.maps["calls"].df
            for name, cell in (("ring", "BPF_RINGBUF_OUTPUT(e, 8); " + text), ("prints", QUIET)):
                with pytest.raises(SetupError, match=r"[Tt]oo many open files"):
                    bpfnb.trace(cell, name=name, attach={"syscall:getppid": cell.split("int ")[1].split("(")[0]})
            session.wait(2.5)  # the guard and the watch of CPUs look every second
        before = session.cost.attrs["seconds"]
        for _ in range(100):
            _libc.getpgid(0)
            if session.cost.attrs["seconds"] > before:
                break
            session.wait(0.05)
        assert session.cost.attrs["seconds"] > before
        with bpfnb.trace(QUIET, name="others", attach={"syscall:getppid": "call"}) as others:
            go_on(others)
        assert session.maps["calls"].df["value"].sum() >= 1
    assert (others.reason, session.reason) == ("stopped", "stopped")
    assert default_host.connect().hello().pid == tracer


def test_a_source_that_fails_ends_its_own_session() -> None:
    """GIVEN a tracer that can open no further segment THEN the session that needs one ends, keeps its rows and says
    why; another goes on; and the next ones run as if nothing had been."""
    text = r"""
struct event { u64 n; char text[200]; };
BPF_PERCPU_ARRAY(rooms, struct event, 1);
BPF_RINGBUF_OUTPUT(events, 4096);
int f(void *ctx) {
    struct event *event = rooms.lookup(&(int){0});
    if (!event) return 0;
    event->n++;
    events.ringbuf_output(event, sizeof(*event), 0);
    return 0;
}
"""
    tracer = default_host.connect().hello().pid
    with bpfnb.trace(QUIET, name="others", attach={"syscall:getppid": "call"}) as others:
        with bpfnb.trace(text, name="fails", attach={"syscall:getpgid": "f"}, keep=8 * MIB) as session:
            _libc.getpgid(0)
            with no_more_descriptors(tracer):
                for _ in range(100_000):
                    if session.state != "running":
                        break
                    for _ in range(100):
                        _libc.getpgid(0)
            assert session.wait(10)
        assert session.state == "stopped"
        assert session.reason.startswith("events could not be read any further: OSError: ")
        assert len(session.df) > 1000
        session.stop()
        go_on(others)
    assert default_host.connect().hello().pid == tracer
    with bpfnb.trace(text, name="after", attach={"syscall:getpgid": "f"}) as after:
        _libc.getpgid(0)
    assert len(after.df) >= 1
