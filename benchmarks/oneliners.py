"""What a one-liner costs, beside the same of bpftrace and bcc's funccount and argdist.

hot        the producer calls getppid as fast as it can, without a probe and then under each tool in turn: nanoseconds
           of the producer's processor time that each adds to a call, medians of the rounds. The counts are checked.
attached   from the question to the probe in place: bpfnb in a new process and where a tracer is warm, bpftrace until
           the command that it starts runs (``-c date``), funccount until it says that it traces.

funccount has one counter for all processes, and argdist counts by pid, not by comm: each is beside the same of bpfnb.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

import bpfnb
from benchmarks.common import (
    CPUS,
    HERE,
    PRODUCER,
    Contender,
    Figures,
    Group,
    Producer,
    Row,
    Runs,
    at_most,
    comparison,
    count,
    cpu_of,
    missing,
    nothing,
    seconds,
)
from benchmarks.counting import nanoseconds

__all__ = ["ATTACHED", "ONELINERS"]

_OURS = "bpfnb"
_ENTRY, _EXIT = "syscalls:sys_enter_getppid", "syscalls:sys_exit_getppid"
_BPFTRACE = f"tracepoint:{_ENTRY} {{ @[comm] = count(); }}"

Through = Callable[[str], "Iterator[Callable[[], int]]"]


# --- the tools: each yields what says, once the producer is done, how many of its calls were counted ------------------


@contextmanager
def _nothing(comm: str) -> Iterator[Callable[[], int]]:
    yield lambda: -1


@contextmanager
def _count(probe: str, by: str | None, comm: str) -> Iterator[Callable[[], int]]:
    """By comm the producer's; else the greatest number, which is the producer's as well, or everybody's."""
    with bpfnb.count(probe, by=by) as session:
        yield lambda: int(session.df["count"][session.df["comm"] == comm if by == "comm" else slice(None)].max())


@contextmanager
def _hist(probe: str, value: str, comm: str) -> Iterator[Callable[[], int]]:
    """The producer's parent is this process, whose number is what the calls return."""
    with bpfnb.hist(probe, value) as session:
        yield lambda: int(session.df.query(f"low <= {os.getpid()} <= high")["count"].sum())


@contextmanager
def _bpftrace(program: str, comm: str) -> Iterator[Callable[[], int]]:
    if not shutil.which("bpftrace"):
        raise RuntimeError(missing("bpftrace"))
    with _running(["bpftrace", "-f", "json", "-e", program], "attached_probes") as (process, written):
        time.sleep(0.5)  # it has said so somewhat before it attaches

        def counted() -> int:
            _interrupt(process)
            for line in filter(None, map(str.strip, written)):
                message = json.loads(line)
                if message["type"] in ("map", "hist"):
                    found = message["data"]["@"]
                    if isinstance(found, dict):
                        return int(found[comm] if comm in found else max(found.values()))
                    return sum(b["count"] for b in found if b.get("min", 0) <= os.getpid() <= b.get("max", 0))
            return 0

        yield counted


@contextmanager
def _funccount(probe: str, comm: str) -> Iterator[Callable[[], int]]:
    """Everybody's calls."""
    with _running(_bcc_tool("funccount", probe), "Tracing") as (process, written):

        def counted() -> int:
            _interrupt(process)
            return max(map(int, re.findall(r"\s(\d+)$", written.read(), re.MULTILINE)), default=0)

        yield counted


@contextmanager
def _argdist(arguments: Sequence[str], comm: str) -> Iterator[Callable[[], int]]:
    """What it counts is shown once a second, here the sum since its beginning, and that it has begun."""
    with _running(_bcc_tool("argdist", "-c", "-i", "1", *arguments), r"^\[\d") as (_, written):

        def counted() -> int:
            time.sleep(2.2)
            last = written.read().rpartition("\n[")[2]
            by_key = re.findall(r"^\s*(\d+)\s+\$PID = \d+", last, re.MULTILINE)
            buckets = re.findall(r"^\s*(\d+) -> (\d+)\s*: (\d+)", last, re.MULTILINE)
            ours = [int(n) for low, high, n in buckets if int(low) <= os.getpid() <= int(high)]
            return max(map(int, by_key), default=0) if by_key else sum(ours)

        yield counted


def _bcc_tool(name: str, *arguments: str) -> list[str]:
    """bcc's tool on the headers that bpfnb compiles against: this machine need not have the kernel's own."""
    script = shutil.which(f"{name}-bpfcc") or shutil.which(name) or f"/usr/share/bcc/tools/{name}"
    if not Path(script).exists():
        raise RuntimeError(f"{name} is not installed (Debian's package is bpfcc-tools)")
    run = (
        "import runpy, sys; from bpfnb.tracer.compile.engine import Engine; "
        "sys.modules.setdefault('bcc', Engine().bcc); sys.argv[:] = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return [sys.executable, "-W", "ignore", "-u", "-c", run, script, *arguments]


@contextmanager
def _running(command: list[str], says: str, poll: float = 0.05) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """A tool that has said what it says when it begins."""
    with tempfile.TemporaryFile("w+") as written, tempfile.TemporaryFile("w+", errors="replace") as complaints:
        reader = Path(f"/proc/self/fd/{written.fileno()}").open()  # noqa: SIM115
        process = subprocess.Popen(command, stdout=written, stderr=complaints, text=True, cwd=HERE.parent)
        try:
            end = time.monotonic() + 30
            said = ""
            while not re.search(says, said, re.MULTILINE):
                said += reader.read()
                if process.poll() is not None or time.monotonic() > end:
                    complaints.seek(0)
                    last = complaints.read().strip().splitlines()[-1:] or ["it did not start"]
                    raise RuntimeError(f"{command[0]}: {last[0]}")
                time.sleep(poll)
            yield process, reader
        finally:
            process.kill()
            process.wait()
            reader.close()


def _interrupt(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    process.wait(30)


# --- a hot probe ----------------------------------------------------------------------------------------------------

_COUNT, _BY_PID, _BY_COMM, _BY_SYSCALL, _RETURNED, _RETVAL, _LIBRARY, _LIBRARY_COUNT = (
    "count of a tracepoint",
    'count(by="pid")',
    'count(by="comm")',
    'count(by="comm") of syscall:getppid',
    "hist of a tracepoint's ret",
    "hist of syscall:getppid's retval",
    'count(by="comm") of a uprobe',
    "count of a uprobe",
)
_LIBRARY_CALLS = 20  # a call of a uprobe takes so many times as long


def _tools() -> dict[str, dict[str, Callable[[str], object]]]:
    """Of each question, the tools that answer it."""
    entry, library = f"tracepoint:{_ENTRY}", "uprobe:libc:syscall"
    returned = {
        "bpftrace": partial(_bpftrace, f"tracepoint:{_EXIT} {{ @ = hist(args->ret); }}"),
        "argdist": partial(_argdist, ["-H", f"t:{_EXIT}():s64:args->ret"]),
    }
    return {
        _COUNT: {_OURS: partial(_count, entry, None), "funccount": partial(_funccount, f"t:{_ENTRY}")},
        _BY_PID: {
            _OURS: partial(_count, entry, "pid"),
            "bpftrace": partial(_bpftrace, f"{entry} {{ @[pid] = count(); }}"),
            "argdist": partial(_argdist, ["-C", f"t:{_ENTRY}():u32:$PID"]),
        },
        _BY_COMM: {_OURS: partial(_count, entry, "comm"), "bpftrace": partial(_bpftrace, _BPFTRACE)},
        _BY_SYSCALL: {_OURS: partial(_count, "syscall:getppid", "comm"), "bpftrace": partial(_bpftrace, _BPFTRACE)},
        _RETURNED: {_OURS: partial(_hist, f"tracepoint:{_EXIT}", "ret"), **returned},
        _RETVAL: {_OURS: partial(_hist, "syscall:getppid", "retval"), **returned},
        _LIBRARY: {
            _OURS: partial(_count, "uprobe:c:syscall", "comm"),
            "bpftrace": partial(_bpftrace, f"{library} {{ @[comm] = count(); }}"),
        },
        _LIBRARY_COUNT: {
            _OURS: partial(_count, "uprobe:c:syscall", None),
            "funccount": partial(_funccount, "c:syscall"),
        },
    }


def hot(rounds: int, calls: int) -> Figures:
    """``QUESTION: TOOL``: nanoseconds added to a call; with ``: missed`` behind, calls made and not counted; ``more``:
    counted that were not made, of the tools that tell processes apart."""
    added: dict[str, list[float]] = {}
    wrong: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bpfnb-bench-") as folder:
        comm = f"hot{os.getpid()}"
        program = shutil.copy(os.environ[PRODUCER], Path(folder) / comm)  # so that no other producer is counted
        os.environ[PRODUCER] = str(program)
        for at in range(rounds):
            for question, tools in _tools().items():
                made = calls // (_LIBRARY_CALLS if question in (_LIBRARY, _LIBRARY_COUNT) else 1)
                without, _ = _a_call(_nothing, comm, made)
                order = list(tools.items())
                for tool, through in order[:: 1 - 2 * (at % 2)]:
                    key = f"{question}: {tool}"
                    took, counted = _a_call(through, comm, made)
                    added.setdefault(key, []).append(took - without)
                    wrong[f"{key}: missed"] = max(wrong.get(f"{key}: missed", 0), made - counted)
                    wrong[f"{key}: more"] = max(wrong.get(f"{key}: more", 0), counted - made)
    return {key: statistics.median(values) for key, values in added.items()} | wrong


def _a_call(through: Callable[[str], object], comm: str, calls: int) -> tuple[float, int]:
    """Nanoseconds of the producer's processor time a call, and how many calls the tool counted."""
    with through(comm) as counted, Producer(count=calls) as producer:  # type: ignore[attr-defined]
        before = cpu_of(producer.pid)
        made, _ = producer.run()
        took = cpu_of(producer.pid) - before
        assert made == calls
        return took / made * 1e9, counted()


def _hot_contenders(quick: bool) -> dict[str, Contender]:
    return {_OURS: Contender(hot, {"rounds": 3 if quick else 5, "calls": 2_000_000})}


def _hot_rows(runs: Runs) -> list[Row]:
    rows = []
    tools = _tools()
    for question in tools:
        row = partial(comparison, runs, ours=_OURS, peer=_OURS)
        for peer in list(tools[question])[1:]:
            what, key, peer_key = f"{question}: added to a call", f"{question}: {_OURS}", f"{question}: {peer}"
            rows.append(row(what, key, nanoseconds, peer_key=peer_key, label=peer, wanted=at_most(1.05)))
        missed = f"{question}: {_OURS}: missed"
        rows.append(comparison(runs, "... calls not counted", missed, count, ours=_OURS, worst=True, wanted=nothing()))
    return rows


ONELINERS = Group("a hot probe under one-liners, beside bpftrace, funccount and argdist", _hot_contenders, _hot_rows)


# --- from the question to the probe in place ------------------------------------------------------------------------

_FRESH = """\
import time
began = time.monotonic()
import bpfnb
imported = time.monotonic()
session = bpfnb.count("tracepoint:syscalls:sys_enter_getppid", by="comm")
print(imported - began, time.monotonic() - imported, time.monotonic(), flush=True)
session.stop()
"""
_NEW, _FIRST, _ANOTHER, _AGAIN = "new", "first", "another", "again"


def bpfnb_attached() -> Figures:
    """new: from the start of a process; first: of that, the question; another, again: questions in a process that has
    asked one before, one it has not asked yet and the same one."""
    os.sched_setaffinity(0, CPUS)  # nothing is produced: all may be used
    began = time.monotonic()
    run = subprocess.run([sys.executable, "-c", _FRESH], cwd=HERE.parent, check=True, capture_output=True, text=True)
    imported, first, attached = map(float, run.stdout.split())
    bpfnb.count("tracepoint:syscalls:sys_enter_getsid", by="comm").stop()
    took = []
    for _ in range(2):
        asked = time.monotonic()
        session = bpfnb.count(f"tracepoint:{_ENTRY}", by="comm", where=f"pid != {os.getpid()}")
        took.append(time.monotonic() - asked)
        session.stop()
    return {_NEW: attached - began, "import": imported, _FIRST: first, _ANOTHER: took[0], _AGAIN: took[1]}


def bpftrace_attached() -> Figures:
    """Until the command that it starts when it has attached runs: date(1), which says when that is."""
    if not shutil.which("bpftrace"):
        raise RuntimeError(missing("bpftrace"))
    os.sched_setaffinity(0, CPUS)
    began = time.time()
    command = ["bpftrace", "-c", "/bin/date +at=%s.%N", "-e", _BPFTRACE]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    found = re.search(r"^at=([\d.]+)$", run.stdout, re.MULTILINE)
    if not found:
        raise RuntimeError(f"bpftrace: {run.stdout.strip()[-200:]}")
    return {_NEW: float(found[1]) - began}


def funccount_attached() -> Figures:
    os.sched_setaffinity(0, CPUS)
    began = time.monotonic()
    command = _bcc_tool("funccount", "-d", "1", f"t:{_ENTRY}")
    with _running(command, "Tracing", poll=0.005) as (_, _written):
        return {_NEW: time.monotonic() - began}


def _attached_contenders(quick: bool) -> dict[str, Contender]:
    return {
        _OURS: Contender(bpfnb_attached),
        "bpftrace": Contender(bpftrace_attached),
        "funccount": Contender(funccount_attached),
    }


def _attached_rows(runs: Runs) -> list[Row]:
    row = partial(comparison, runs, show=seconds, ours=_OURS, peer_key=_NEW, wanted=at_most(1))
    rows = []
    for peer in ("bpftrace", "funccount"):
        rows += [
            row("attached: another question", _ANOTHER, peer=peer),
            row("... the same question again", _AGAIN, peer=peer),
            row("... the first of a process, with the tracer's start", _FIRST, peer=peer),
            row("... from the start of a process, with the import", _NEW, peer=peer),
        ]
    return rows


ATTACHED = Group("from a one-liner to the probe in place, beside bpftrace", _attached_contenders, _attached_rows)
