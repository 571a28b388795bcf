"""What it costs to compile against headers made from BTF, beside the kernel's real headers.

The programs of all bpfcc-tools and three of the tutorial's, as bpfnb rewrites them, are compiled for a kernel of
Debian's: against its headers packages and against the tree that bpfnb makes of its BTF, in turn, every time in a
process forked from one that has LLVM warm and has seen that tree alone. What is measured is the making of bcc's module.
Nothing is loaded: the types are not those of the kernel that runs. A program that bpfnb compiles again with more types
costs what both take.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, NoReturn

from benchmarks.compatibility.__main__ import ROOT, STORE, prepare, real_headers
from benchmarks.compatibility.measure import _Bench, _parse, _processes
from benchmarks.compatibility.record import Recorder, Recording
from benchmarks.compatibility.tools import runs
from bpfnb.errors import BpfnbError
from bpfnb.language.scan import scan
from bpfnb.tracer.compile import compiler, headers
from bpfnb.tracer.compile.engine import Engine
from bpfnb.tracer.compile.jobs import CELL_FD, CELL_PATH
from bpfnb.tracer.compile.rewrite import rewrite
from bpfnb.tracer.kernel.btf import KERNEL_BTF
from bpfnb.tracer.link import syscall, usdt

WANTED = 1.3  # times what real headers cost, at most

_TUTORIAL = {
    "tutorial: kprobe__sys_clone": Recording(
        r'int kprobe__sys_clone(void *ctx) { bpf_trace_printk("Hello, World!\n"); return 0; }'
    ),
    "tutorial: kprobe__sys_sync": Recording(
        r'int kprobe__sys_sync(void *ctx) { bpf_trace_printk("sys_sync() called\n"); return 0; }'
    ),
    "tutorial: hello": Recording(
        r'int hello(void *ctx) { bpf_trace_printk("my bcc program\n"); return 0; }',
        probes=(("syscall:clone", "hello"),),
    ),
}


class Job(NamedTuple):
    """A program as the compiler gets it. ``cell``: as it was written."""

    text: str
    cell: str
    cflags: tuple[str, ...]


class Cost(NamedTuple):
    """Seconds of the processor and of the clock."""

    cpu: float
    wall: float


class Tried(NamedTuple):
    """A program's medians. ``again``: bpfnb compiles it a second time, with more types."""

    name: str
    made: Cost
    real: Cost
    again: bool

    def ratio(self, of: str = "cpu") -> float:
        made, real = getattr(self.made, of), getattr(self.real, of)
        return float(made / real)

    def __str__(self) -> str:
        return (
            f"{self.ratio():5.2f}   {self.made.cpu:.3f} / {self.real.cpu:.3f} s{'  twice' if self.again else '':7}"
            f"   by the clock {self.made.wall:.3f} / {self.real.wall:.3f} s   {self.name}"
        )


class NotCompiled(Exception):
    """What the compiler said."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.headers", description=__doc__)
    parser.add_argument("--kernel", choices=("6.1", "6.12"), default="6.1", help="whose headers (6.1)")
    parser.add_argument("--runs", type=int, default=2, metavar="N", help="compilations of a program against a tree (2)")
    parser.add_argument("--only", metavar="TOOL", action="append", default=[], help="this tool; again for more")
    arguments = parser.parse_args()
    if os.geteuid():
        parser.error("bcc needs root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was started ends with us
    try:
        measure(arguments.kernel, max(1, arguments.runs), set(arguments.only))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def measure(kernel: str, times: int, only: set[str]) -> None:
    release, btf, real = prepared(kernel)
    made = headers.generate(btf, caches=[STORE / "trees"], release=release)
    sbin, standins = prepare()
    engine = Engine()
    tried = []
    with ExitStack() as stack:
        names = stack.enter_context(_processes({path.name: path for path in standins.iterdir()}))
        jobs, failures = programs(engine, sbin, names, only)
        ours, theirs = (stack.enter_context(Warm(engine, source)) for source in (made, real))
        print(f"{len(jobs)} programs: ratio, seconds of processor time, BTF / real headers of {release}", flush=True)
        for number, (name, job) in enumerate(jobs.items(), 1):
            try:
                result = compare(name, job, ours, theirs, times)
            except NotCompiled as error:
                failures[name] = f"{error}"
                print(f"{number:3}     -   {error}   {name}", flush=True)
            else:
                tried.append(result)
                print(f"{number:3} {result}", flush=True)
    report(tried, failures)


def prepared(kernel: str) -> tuple[str, Path, Path]:
    """A kernel's release, its BTF, and its real headers in one tree: fetched when missing."""
    release = (ROOT / ".vm" / kernel / "release").read_text().strip()
    btf, real = STORE / f"btf-{release}", STORE / f"merged-{release}"
    STORE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STORE) as temporary:
        new = Path(temporary)
        if not btf.exists():
            command = [str(ROOT / "scripts/vm"), "run", kernel, "--", "cat", str(KERNEL_BTF)]
            with (new / "btf").open("wb") as file:
                subprocess.run(command, check=True, stdout=file)
            (new / "btf").rename(btf)
        if not real.exists():
            subprocess.run(["tar", "-C", new, "-xf", real_headers(kernel)], check=True)
            built = new / "usr/src" / f"linux-headers-{release}"
            common = built.with_name(f"linux-headers-{release.removesuffix('-amd64')}-common")
            subprocess.run(["cp", "-a", f"{built}/.", common], check=True)
            common.rename(real)
    return release, btf, real


# --- the programs -------------------------------------------------------------------------------------------------


def programs(
    engine: Engine, sbin: Path, names: dict[str, str], only: set[str]
) -> tuple[dict[str, Job], dict[str, str]]:
    """Each program once, under the name of the first run of a tool that asks for it; and why a run has none.

    ``names``: see Recorder.record.
    """
    print("recording what the tools have bcc compile, half a minute for all", flush=True)
    bench = _Bench(engine, headers_there=False)
    recorder = Recorder(engine.bcc, fentry=bench.fentry())
    bench.close()
    recordings = {} if only else dict(_TUTORIAL)
    wanted = [run for run in runs(sbin) if not only or run.tool in only]
    recordings |= {run.name: recorder.record(run, names) for run in wanted}
    found: dict[Job, str] = {}
    failures = {}
    for name, recording in recordings.items():
        try:
            if recording.text:
                found.setdefault(_job(recording), name)
            else:
                failures[name] = f"no program: {recording.said}"
        except BpfnbError as error:
            failures[name] = f"{error}"
    return {name: job for job, name in found.items()}, failures


def _job(recording: Recording) -> Job:
    program, _ = _parse(recording)
    tag = "measured" if program.prints else ""
    readers = usdt.readers(scan(program.source, program.cflags), usdt.find_all(program))
    source = rewrite(program, tag=tag, syscall_mode=syscall.mode(), path=CELL_PATH, readers=readers)
    return Job(source.text, program.source, (*compiler.WARNINGS, *program.cflags))


# --- compiling ----------------------------------------------------------------------------------------------------


class Warm:
    """A process with LLVM warm that forks another for each job."""

    def __init__(self, engine: Engine, source: Path) -> None:
        self.source = source
        self._connection, theirs = Pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _serve(engine, headers.Tree(str(source)), theirs)
        theirs.close()

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()  # it ends when it has done what it is at
        os.waitpid(self._pid, 0)

    def compile(self, job: Job) -> tuple[Cost, str]:
        """What it took; and where it failed, what was said, else ""."""
        self._connection.send(job)
        answer: tuple[Cost, str] = self._connection.recv()
        return answer


def compare(name: str, job: Job, ours: Warm, theirs: Warm, times: int) -> Tried:
    """NotCompiled unless it compiles against both."""
    made, real, again = [], [], False
    for _ in range(times):
        cost, again = _as_bpfnb_does(job, ours)
        made.append(cost)
        cost, said = theirs.compile(job)
        if said:
            raise NotCompiled(f"real headers: {_error(said)}")
        real.append(cost)
    return Tried(name, _median(made), _median(real), again)


def _as_bpfnb_does(job: Job, tree: Warm) -> tuple[Cost, bool]:
    """As Compiler._compile_with_types, and whether it took two compilations."""
    first, said = tree.compile(job)
    if not said:
        return first, False
    if headers.lacks_a_type(said, tree.source):
        second, said = tree.compile(job._replace(cflags=(*job.cflags, *headers.EVERYTHING)))
        if not said:
            return Cost(first.cpu + second.cpu, first.wall + second.wall), True
    raise NotCompiled(f"headers from BTF: {_error(said)}")


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(statistics.median(c.cpu for c in costs), statistics.median(c.wall for c in costs))


def _error(said: str) -> str:
    found = re.search(r"error: .*", said)
    return found[0] if found else (said.strip().splitlines() or ["no message"])[-1]


def _serve(engine: Engine, tree: headers.Tree, connection: Connection) -> NoReturn:
    """Compile for as long as there is somebody to ask for it."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        kept = connection.fileno()
        os.closerange(3, kept)
        os.closerange(kept + 1, 1 << 16)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)  # warnings about the headers themselves
        engine.compile("int warm(void *ctx) { return 0; }", tree=tree)
        while True:
            connection.send(_timed(engine, tree, connection.recv()))
    finally:
        os._exit(0)


def _timed(engine: Engine, tree: headers.Tree, job: Job) -> tuple[Cost, str]:
    log = os.memfd_create("log")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _compile(engine, tree, job, log, writer)
    _, status, usage = os.wait4(child, 0)
    ended = time.monotonic()
    os.close(writer)
    with os.fdopen(log, "rb") as file, os.fdopen(reader, "rb") as pipe:
        file.seek(0)
        said = file.read().decode(errors="replace")
        cpu, began = map(float, pipe.read().split() or (0, ended))
    failed = os.waitstatus_to_exitcode(status)
    return Cost(usage.ru_utime + usage.ru_stime - cpu, ended - began), said or f"ended with {failed}" if failed else ""


def _compile(engine: Engine, tree: headers.Tree, job: Job, log: int, writer: int) -> NoReturn:
    """One job, in a process of its own, which tells what it had used when it began in earnest."""
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        cell = os.memfd_create("cell")
        os.write(cell, job.cell.encode())
        os.dup2(cell, CELL_FD)
        os.write(writer, f"{time.process_time()} {time.monotonic()}".encode())
        engine.compile(job.text, job.cflags, tree)
        os._exit(0)
    except BaseException as error:
        ctypes.CDLL(None).fflush(None)  # bcc writes some of its complaints through C's buffered stdout
        os.write(2, f"{error}".encode())
        os._exit(1)


# --- the result ---------------------------------------------------------------------------------------------------


def report(tried: Sequence[Tried], failures: dict[str, str]) -> None:
    if failures:
        print(f"\nleft out, {len(failures)}:")
        print("\n".join(f"  {name}: {why}" for name, why in failures.items()))
    if not tried:
        return
    twice = [t for t in tried if t.again]
    print(f"\n{len(tried)} programs, {len(twice)} of them compiled twice: {', '.join(t.name for t in twice) or '-'}")
    print("nothing was loaded: the types are those of another kernel than this one")
    for of, what in (("cpu", "processor time"), ("wall", "by the clock")):
        made, real = sum(getattr(t.made, of) for t in tried), sum(getattr(t.real, of) for t in tried)
        ratios = sorted(t.ratio(of) for t in tried)
        above = sum(ratio > WANTED for ratio in ratios)
        print(
            f"{what}: all of them {made:.2f} s from BTF, {real:.2f} s with real headers: {made / real:.2f}; "
            f"ratio of the median program {statistics.median(ratios):.2f}, "
            f"90th percentile {ratios[min(len(ratios) - 1, len(ratios) * 9 // 10)]:.2f}; "
            f"above {WANTED}: {above} ({100 * above / len(tried):.1f} %)"
        )
    print("\nthe ten with the greatest ratio:")
    print("\n".join(f"{t}" for t in sorted(tried, key=Tried.ratio, reverse=True)[:10]))


if __name__ == "__main__":
    sys.exit(main())
