"""A session with very many probes ends at once; what the kernel is slow to let go of goes on behind."""

from __future__ import annotations

import ctypes
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from leaks import bpf_ids
from processes import descriptors
from waiting import until

import bpfnb
from bpfnb.hosts import default_host
from bpfnb.session import Session

_libc = ctypes.CDLL(None, use_errno=True)
_SYS_BPF = {"x86_64": 321, "aarch64": 280}.get(os.uname().machine, 0)
_GET_FD_BY_ID, _ENABLE_STATS = 13, 32  # include/uapi/linux/bpf.h, enum bpf_cmd
MANY = 120
SOURCE = """
BPF_ARRAY(calls, u64, 1);
int f(void *ctx) {
    u64 *count = calls.lookup(&(int){0});
    if (count) __sync_fetch_and_add(count, 1);
    return 0;
}
"""
HIT = 'int hit(void *ctx) { bpf_trace_printk("hit\\n"); return 0; }'


def syscalls(count: int) -> list[str]:
    """Tracepoints of system calls, getpgid's first."""
    events = sorted(path.name for path in Path("/sys/kernel/tracing/events/syscalls").glob("sys_enter_*"))
    return ["sys_enter_getpgid", *(event for event in events if event != "sys_enter_getpgid")][:count]


def bpf(command: int, *numbers: int) -> int:
    attr = ctypes.create_string_buffer(struct.pack(f"{len(numbers)}I", *numbers), 64)
    fd: int = _libc.syscall(_SYS_BPF, command, attr, 64)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return fd


@pytest.fixture
def stats() -> Iterator[None]:
    """The kernel counts the runs of programs."""
    fd = bpf(_ENABLE_STATS, 0)
    yield
    os.close(fd)


@contextmanager
def runs_of(program: int) -> Iterator[Path]:
    """The kernel's own count of a program's runs, as a file to read; the program is held on to meanwhile."""
    fd = bpf(_GET_FD_BY_ID, program)
    try:
        yield Path(f"/proc/self/fdinfo/{fd}")
    finally:
        os.close(fd)


def count(fdinfo: Path) -> int:
    found = re.search(r"^run_cnt:\s+(\d+)$", fdinfo.read_text(), re.M)
    assert found
    return int(found[1])


def open_events() -> int:
    targets = descriptors(default_host.connect().hello().pid).values()
    return sum("perf_event" in target for target in targets)


def wait_for(session: Session) -> None:
    deadline = time.monotonic() + 100
    while session.detaching and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not session.detaching


@pytest.mark.portable
def test_many_probes_stop_before_the_kernel_lets_go_of_them(stats: None) -> None:
    before, known = open_events(), bpf_ids("program")
    session = bpfnb.trace(SOURCE, name="many", attach={f"tracepoint:syscalls:{name}": "f" for name in syscalls(MANY)})
    (program,) = bpf_ids("program") - known
    with runs_of(program) as fdinfo:
        os.getpgid(0)
        assert count(fdinfo) > 0
        session._stop(0)  # on some machines the kernel is done in the time that stop() waits
        assert session.state == "stopped"
        assert session.detaching  # the kernel is at it
        assert session in default_host.detaching()
        ended_with = count(fdinfo)
        for _ in range(100):
            os.getpgid(0)
        assert count(fdinfo) == ended_with  # and yet nothing runs
        assert session.maps["calls"][0] == ended_with  # all there was is delivered
    wait_for(session)
    assert session not in default_host.detaching()
    assert open_events() == before


def test_another_cell_does_not_wait_for_the_kernel() -> None:
    """Here it takes some 40 ms a tracepoint, one after the other."""
    before = open_events()
    session = bpfnb.trace(SOURCE, name="many", attach={f"tracepoint:syscalls:{name}": "f" for name in syscalls(MANY)})
    session.stop()
    assert session.detaching
    with bpfnb.trace(HIT, name="other", attach={"tracepoint:syscalls:sys_enter_getpgid": "hit"}) as other:
        os.getpgid(0)
    assert (other.df.pid == os.getpid()).sum() == 1
    assert session.detaching
    assert open_events() > before
    wait_for(session)


@pytest.mark.portable
def test_a_stopped_session_of_any_kind_of_probe_runs_no_more(stats: None) -> None:
    """Entry and return of a system call (kprobes, where there are any), raw tracepoint, uprobe, clock."""
    known = bpf_ids("program")
    probes = ["syscall:getpgid", "sysret:getpgid", "rawtracepoint:sys_enter", "uprobe:c:getpgid", "profile:999"]
    source = "".join(f"int f{n}(void *ctx) {{ return 0; }}\n" for n in range(len(probes)))
    session = bpfnb.trace(source, attach={probe: f"f{n}" for n, probe in enumerate(probes)})
    until(lambda: len(bpf_ids("program") - known) == len(probes))  # the guard's own, to time a trap, is soon gone
    programs = bpf_ids("program") - known
    with ExitStack() as stack:
        files = [stack.enter_context(runs_of(program)) for program in programs]
        deadline = time.monotonic() + 10
        while not all(map(count, files)) and time.monotonic() < deadline:
            _libc.getpgid(0)
        assert all(map(count, files))
        session.stop()
        ended_with = [count(file) for file in files]
        for _ in range(1000):
            _libc.getpgid(0)
        time.sleep(0.05)
        assert [count(file) for file in files] == ended_with


def test_the_end_of_a_notebook_waits_until_all_is_let_go_of() -> None:
    code = f"""
import bpfnb
from bpfnb.hosts import default_host
source = "int f(void *ctx) {{ return 0; }}"
session = bpfnb.trace(source, attach={{f"tracepoint:syscalls:{{name}}": "f" for name in {syscalls(60)!r}}})
session.stop()
print(default_host.connect().hello().pid, session.detaching)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    tracer, was_detaching = done.stdout.split()
    assert was_detaching == "True"
    assert not Path(f"/proc/{tracer}").exists()


def test_a_cell_that_cannot_be_attached_whole_leaves_nothing() -> None:
    before = open_events()
    probes = {f"tracepoint:syscalls:{name}": "f" for name in syscalls(30)}
    with pytest.raises(bpfnb.AttachError, match="no raw tracepoint"):
        bpfnb.trace(SOURCE + "int g(void *ctx) { return 0; }", attach={**probes, "rawtracepoint:nothing_like_it": "g"})
    deadline = time.monotonic() + 100
    while open_events() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert open_events() == before
