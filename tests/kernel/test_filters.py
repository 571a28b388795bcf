"""Filters: only the wanted processes are seen, all of what they do is, and everybody else is left alone.

What is right comes from workers that make as many calls of getpgid as they are told, which nothing else here makes.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import processes
import pytest
from portable import portable
from waiting import until

import bpfnb
from bpfnb import Session

COUNT = r"""
BPF_HASH(calls, u32, u64);
int hit(void *ctx) { u32 pid = bpf_get_current_pid_tgid() >> 32; calls.increment(pid); return 0; }
"""
GETPGID = {"syscall:getpgid": "hit"}

WORKER = r"""
import ctypes, os, sys, threading

def calls(count):
    for _ in range(count):
        os.getpgid(0)

def child(what):
    if not os.fork():
        what()
        os._exit(0)

def held():
    os.read(read, 1)
    calls(7)
    child(lambda: calls(5))
    os.wait()

read, write = os.pipe()
for line in sys.stdin:
    what, number = line.split()
    number = int(number)
    if what == "calls":
        calls(number)
    elif what == "threads":
        threads = [threading.Thread(target=calls, args=(number,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    elif what == "hold":
        for _ in range(number):
            child(held)
    elif what == "release":
        os.write(write, b"x" * number)
        for _ in range(number):
            os.wait()
    elif what == "fork":
        for _ in range(number):
            child(lambda: calls(3))
        for _ in range(number):
            os.wait()
    elif what == "setuid":
        os.setuid(number)
    elif what == "rename":
        ctypes.CDLL(None).prctl(15, b"bpfnb-worker-%d" % number, 0, 0, 0)
    print("done", flush=True)
"""


class Worker:
    """A process that does what it is told."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([sys.executable, "-S", "-c", WORKER], stdin=pipe, stdout=pipe, text=True)
        self.pid = self._process.pid

    def do(self, what: str, number: int = 0) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{what} {number}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def end(self) -> None:
        with self._process:
            assert self._process.stdin
            self._process.stdin.close()


@contextmanager
def worker() -> Iterator[Worker]:
    made = Worker()
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def wanted() -> Iterator[Worker]:
    with worker() as made:
        yield made


@pytest.fixture
def other() -> Iterator[Worker]:
    with worker() as made:
        yield made


def counts(session: Session, name: str = "calls") -> dict[int, int]:
    """By process; of a stopped session."""
    return {int(key): int(value) for key, value in session.maps[name].items()}


@pytest.mark.portable
def test_a_process_with_its_threads(wanted: Worker, other: Worker) -> None:
    for one, beside in ((wanted, other), (other, wanted)):  # the second time, what was compiled is used again
        with bpfnb.trace(COUNT, attach=GETPGID, pid=one.pid, name="by_pid") as session:
            one.do("calls", 10)
            beside.do("calls", 20)
            one.do("threads", 30)
            one.do("fork", 2)
        assert counts(session) == {one.pid: 100}
    assert f"only pid {other.pid}" in repr(session)


@pytest.mark.portable
def test_a_process_and_all_that_it_starts(wanted: Worker, other: Worker) -> None:
    wanted.do("hold", 20)  # children that there are already; each has one more later
    other.do("hold", 3)
    with bpfnb.trace(COUNT, attach=GETPGID, follow=wanted.pid) as session:
        wanted.do("fork", 50)
        other.do("fork", 9)
        wanted.do("release", 20)
        other.do("release", 3)
        wanted.do("threads", 4)
    found = counts(session)
    assert sorted(found.values()) == [3] * 50 + [5] * 20 + [7] * 20 + [12]
    assert found[wanted.pid] == 12
    assert not [w for w in session.warnings if "followed" in w.message]


def test_what_there_is_no_room_for_is_counted_and_said(wanted: Worker) -> None:
    wanted.do("hold", 2)
    with bpfnb.trace(COUNT, attach=GETPGID, follow=wanted.pid, cflags=["-DBPFNB_MAX_FOLLOWED=3"]) as session:
        wanted.do("fork", 1)
        wanted.do("release", 2)
    (note,) = [w.message for w in session.warnings if "followed" in w.message]
    lost = int(note.split()[0])
    found = counts(session)
    assert lost == 3 - len([n for n in found.values() if n in (3, 5)])
    assert lost >= 1
    wanted.do("hold", 2)
    with pytest.raises(bpfnb.ProgramError, match="there is room to follow 2 processes") as caught:
        bpfnb.trace(COUNT, attach=GETPGID, follow=wanted.pid, cflags=["-DBPFNB_MAX_FOLLOWED=2"])
    assert caught.value.hint == "write -D BPFNB_MAX_FOLLOWED=8"
    wanted.do("release", 2)


def test_who_has_ended_takes_no_room(wanted: Worker) -> None:
    with bpfnb.trace(COUNT, attach=GETPGID, follow=wanted.pid, cflags=["-DBPFNB_MAX_FOLLOWED=15"]) as session:
        for _ in range(4):
            wanted.do("fork", 10)
            time.sleep(0.3)  # the kernel forgets a process an RCU grace period after it has been waited for
    assert sorted(counts(session).values()) == [3] * 40
    assert not [w.message for w in session.warnings if "followed" in w.message]


@pytest.mark.parametrize("option", ["pid", "follow"])
def test_who_gets_a_number_again_is_somebody_else(option: str) -> None:
    first = Worker()
    with bpfnb.trace(COUNT, attach=GETPGID, **{option: first.pid}) as session:  # type: ignore[arg-type]
        first.do("calls", 5)
        first.end()
        time.sleep(0.3)  # as above: before, a process that gets the number is taken for the first
        for _ in range(100):
            with worker() as second:  # the machine has other processes, which may be quicker
                reused = second.pid == first.pid
                second.do("calls", 11)
            if reused:
                break
            with suppress(OSError):
                Path("/proc/sys/kernel/ns_last_pid").write_text(str(first.pid - 1))
        else:
            pytest.skip("this kernel gives no number again when it is asked to")
    assert counts(session) == {first.pid: 5}


def test_names_of_threads(wanted: Worker, other: Worker) -> None:
    wanted.do("rename", 1)
    other.do("rename", 22)
    for comm, named in (
        ("bpfnb-worker-1", {wanted.pid: 5}),
        ("bpfnb-worker-22", {other.pid: 7}),
        ("bpfnb-work*", {wanted.pid: 5, other.pid: 7}),
        ("bpfnb-worker-", {}),
        ("bpfnb-worker-3*", {}),
    ):
        with bpfnb.trace(COUNT, attach=GETPGID, comm=comm, name="by_comm") as session:
            wanted.do("calls", 5)
            other.do("calls", 7)
        assert counts(session) == named, comm


def test_users(wanted: Worker, other: Worker) -> None:
    wanted.do("setuid", 65534)
    for uid in (65534, "65534", "nobody"):
        with bpfnb.trace(COUNT, attach=GETPGID, uid=uid, name="by_uid") as session:
            wanted.do("calls", 5)
            other.do("calls", 7)
        assert counts(session) == {wanted.pid: 5}


@pytest.fixture
def cgroup() -> Iterator[Path]:
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    roots = [Path(line[1]) for line in lines if line[2] == "cgroup2"]
    if not roots or not os.access(roots[0], os.W_OK):
        pytest.skip("no cgroups (v2) are mounted here")
    made = roots[0] / f"bpfnb-test-{os.getpid()}"
    (made / "below").mkdir(parents=True)
    try:
        yield made
    finally:
        until(lambda: not any((f / "cgroup.procs").read_text() for f in (made, made / "below")))
        (made / "below").rmdir()
        made.rmdir()


SWITCHES = r"""
BPF_HASH(calls, u32, u64);
BPF_HASH(switches, u32, u64);
int hit(void *ctx) { if (!bpfnb_selected()) return 0;
    u32 pid = bpf_get_current_pid_tgid() >> 32; calls.increment(pid); return 0; }
RAW_TRACEPOINT_PROBE(sched_switch) {
    struct task_struct *next = (void *)ctx->args[2];
    u32 pid = 0;
    if (!bpfnb_selected_task(next)) return 0;
    bpf_probe_read_kernel(&pid, sizeof(pid), &next->tgid);
    switches.increment(pid);
    return 0;
}
"""


def test_cgroups_and_those_below(cgroup: Path) -> None:
    with worker() as wanted, worker() as other:
        (cgroup / "below/cgroup.procs").write_text(str(wanted.pid))
        for path in (str(cgroup), cgroup / "below", cgroup.name, f"/{cgroup.name}/below"):
            with bpfnb.trace(SWITCHES, attach=GETPGID, cgroup=path, name="by_cgroup") as session:
                wanted.do("calls", 5)
                other.do("calls", 7)
            assert counts(session) == {wanted.pid: 5}, path
            assert list(counts(session, "switches")) == [wanted.pid], path
        (cgroup / "cgroup.procs").write_text(str(wanted.pid))
        with bpfnb.trace(COUNT, attach=GETPGID, cgroup=cgroup / "below") as session:
            wanted.do("calls", 5)
        assert counts(session) == {}


@pytest.mark.parametrize("option", ["pid", "follow", "comm", "uid", "none"])
def test_a_program_about_another_task_tests_that(option: str, wanted: Worker, other: Worker) -> None:
    wanted.do("rename", 1)
    wanted.do("setuid", 65534)
    values = {"pid": wanted.pid, "follow": wanted.pid, "comm": "bpfnb-worker-1", "uid": 65534}
    options = {name: value for name, value in values.items() if name == option}
    with bpfnb.trace(SWITCHES, attach=GETPGID, **options) as session:  # type: ignore[arg-type]
        wanted.do("calls", 5)
        other.do("calls", 7)
    everybody = {wanted.pid: 5, other.pid: 7} if option == "none" else {wanted.pid: 5}
    assert counts(session) == everybody
    switched = counts(session, "switches")
    assert (set(switched) == {wanted.pid}) == (option != "none")
    assert wanted.pid in switched


def test_all_filters_must_hold(wanted: Worker, other: Worker) -> None:
    wanted.do("rename", 1)
    other.do("rename", 1)
    both = {"comm": "bpfnb-worker-1", "uid": os.getuid()}
    with (
        bpfnb.trace(COUNT, attach=GETPGID, pid=wanted.pid, **both, name="one") as session,  # type: ignore[arg-type]
        bpfnb.trace(COUNT, attach=GETPGID, follow=wanted.pid, comm="other", name="none") as nobody,
    ):
        wanted.do("calls", 5)
        other.do("calls", 7)
    assert counts(session) == {wanted.pid: 5}
    assert counts(nobody) == {}


# --- kinds of probe -----------------------------------------------------------------------------------------------

SPIN = "import os\nwhile True: os.getpgid(0)"
KINDS = [
    "tracepoint:syscalls:sys_enter_getpgid",
    "rawtracepoint:sys_enter",
    "uprobe:c:getpgid",
    "uretprobe:c:getpgid",
    "profile:999",
    "software:context-switches:1",
    portable("kprobe:vfs_read"),
    portable("fentry:vfs_read"),
]


@pytest.mark.parametrize("option", ["pid", "follow"])
@pytest.mark.parametrize("probe", KINDS)
def test_every_kind_of_probe(probe: str, option: str) -> None:
    spin = SPIN if "vfs" not in probe else "import os\nfile = open('/dev/zero', 'rb', 0)\nwhile True: file.read(1)"
    running = [subprocess.Popen([sys.executable, "-S", "-c", spin]) for _ in range(2)]
    try:
        with bpfnb.trace(COUNT, attach={probe: "hit"}, **{option: running[0].pid}) as session:  # type: ignore[arg-type]
            until(lambda: dict(session.maps["calls"].items()), 20)
        assert set(counts(session)) == {running[0].pid}
    except bpfnb.AttachError as error:
        pytest.skip(str(error))
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_a_uprobe_puts_no_trap_into_another_process(wanted: Worker, other: Worker) -> None:
    at = ctypes.cast(ctypes.CDLL("libc.so.6").getpgid, ctypes.c_void_p).value or 0
    start, _, offset, path = next(span for span in executable(os.getpid()) if span[0] <= at < span[1])

    def first_byte(pid: int) -> bytes:
        """Of getpgid, in a process that has the same library."""
        base = next(begin for begin, _, found, name in executable(pid) if (found, name) == (offset, path))
        with Path(f"/proc/{pid}/mem").open("rb") as memory:
            memory.seek(base + at - start)
            return memory.read(1)

    for worker in (wanted, other):  # until it has loaded the library
        until(lambda pid=worker.pid: path in {name for *_, name in executable(pid)})
    before = first_byte(wanted.pid)
    assert before != b"\xcc"
    with bpfnb.trace(COUNT, attach={"uprobe:c:getpgid": "hit"}, pid=wanted.pid) as session:
        assert first_byte(wanted.pid) == b"\xcc"
        assert first_byte(other.pid) == before
        assert first_byte(os.getpid()) == before
        wanted.do("calls", 5)
        wanted.do("threads", 4)
        wanted.do("fork", 2)
        other.do("calls", 7)
    assert counts(session) == {wanted.pid: 17}


def executable(pid: int) -> list[tuple[int, int, int, str]]:
    """The files whose code a process has in its memory: begin, end, offset in the file, path."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, flags, offset, _, _, *path = line.split(maxsplit=5)
        if "x" in flags and path:
            begin, end = (int(part, 16) for part in span.split("-"))
            found.append((begin, end, int(offset, 16), path[0]))
    return found


# --- what cannot be -----------------------------------------------------------------------------------------------


def gone() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def test_who_is_not_there(wanted: Worker) -> None:
    nobody = gone()
    thread = next(tid for tid in processes.threads(tracer(), "comm") if tid != tracer())
    for options, message in (
        ({"pid": nobody}, f"pid={nobody}: there is no such process"),
        ({"follow": nobody}, f"follow={nobody}: there is no such process"),
        ({"pid": thread}, rf"pid={thread} is a thread \(.*\), not a process"),
        ({"cgroup": "/no/such/cgroup"}, "there is no cgroup '/no/such/cgroup'"),
        ({"cgroup": "../../etc"}, "there is no cgroup"),
        ({"uid": "nobodyy"}, "there is no user 'nobodyy'"),
    ):
        with pytest.raises((bpfnb.ProgramError, bpfnb.UnsupportedError)) as caught:
            bpfnb.trace(COUNT, attach=GETPGID, **options)  # type: ignore[arg-type]
        if "cgroups (v2)" not in str(caught.value):
            assert caught.match(message)
    assert bpfnb.sessions() == {}


def tracer() -> int:
    return bpfnb.hosts.default_host.connect().hello().pid


def test_an_error_is_at_the_cells_own_line_and_column(wanted: Worker) -> None:
    source = COUNT.replace("u32 pid =", "u32 pid = nonsense +")
    places = []
    for options in ({}, {"pid": wanted.pid}):
        with pytest.raises(bpfnb.CompileError, match="nonsense") as caught:
            bpfnb.trace(source, attach=GETPGID, **options)  # type: ignore[arg-type]
        places.append((caught.value.line, caught.value.column))
    assert places[0] == places[1] == (3, source.splitlines()[2].index("nonsense") + 1)
