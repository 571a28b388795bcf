"""bpfnb's tools beside bcc's and bpftrace's of the same names, watching the same workload at the same time.

    python -m benchmarks.side_by_side --kernel 6.1        # in scripts/vm, with Debian's kernel headers for bcc
    python -m benchmarks.side_by_side [TOOL ...]          # on this kernel; BCC_KERNEL_SOURCE may name headers

A workload is a process that notes what it does. What a tool shows of it is held against that: rows that are right,
rows that are missing, and rows that are wrong: with something that was not so, or of what never happened. A column that
a tool does not have is not held against it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd

import bpfnb
from benchmarks.compatibility.__main__ import ROOT, real_headers
from bpfnb.errors import BpfnbError
from bpfnb.session import Session

Row = dict[str, Any]  # by field: a text, a number, or [least, most]

_PATIENCE = 1200  # seconds, for bcc's compiler in emulation, on a busy machine
# Whatever the process opens and asks for until it is "ready" is no part of the workload.
_BEGINNING = """
import ctypes, json, os, signal, socket, sys, time
place = os.getcwd()
libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, me, rows = -100, os.getpid(), []
sys.stdout.write("ready\\n"); sys.stdout.flush(); sys.stdin.readline()
"""
_END = """
sys.stdout.write(json.dumps(rows) + "\\n"); sys.stdout.flush(); sys.stdin.readline()
"""


@dataclass(frozen=True)
class Case:
    """``work``: Python, run in a process of its own, that puts what is so into ``rows``. ``key``: the fields by which a
    tool's row is known to be about the workload. ``bpfnb`` starts the tool, ``rows`` makes rows of its df. ``bcc`` and
    ``bpftrace``: a command, and a pattern of its lines whose groups are fields. ``collect``: makes the rows of all
    lines, where a tool has sums. {pid} is the workload's."""

    name: str
    work: str
    key: Sequence[str]
    bpfnb: Callable[[int], Session]
    rows: Callable[[pd.DataFrame], list[Row]]
    bcc: tuple[str, str] | None = None
    bpftrace: tuple[str, str] | None = None
    collect: Callable[[list[Row]], list[Row]] = field(default=lambda rows: rows)
    note: str = ""  # what a reader of the table ought to know


@dataclass(frozen=True)
class Score:
    right: int
    missing: int
    wrong: int

    def __str__(self) -> str:
        return f"{self.right} / {self.missing} / {self.wrong}"


def score(truth: Sequence[Row], shown: Iterable[Row], key: Sequence[str]) -> Score:
    """Hold rows against what was so. A wrong row that stands for one that was is not missing as well."""
    left, wrong = list(truth), []
    about = {_values(row, key) for row in truth}
    for row in shown:
        if _values(row, key) in about:
            if (match := _find(left, row, [*truth[0]])) is not None:
                left.remove(match)
            else:
                wrong.append(row)
    right = len(truth) - len(left)
    for row in wrong:
        print(f"    wrong: {str(row)[:300]}", flush=True)
        if (match := _find(left, row, key)) is not None:
            left.remove(match)
    for row in left:
        print(f"    missing: {str(row)[:300]}", flush=True)
    return Score(right, len(left), len(wrong))


def _values(row: Row, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in names)


def _find(truth: Sequence[Row], shown: Row, fields: Iterable[str]) -> Row | None:
    names = [name for name in fields if name in shown]
    return next((row for row in truth if all(_fits(row[name], shown[name]) for name in names)), None)


def _fits(true: Any, shown: Any) -> bool:
    if isinstance(true, list):
        return bool(true[0] <= float(shown) <= true[1])
    return str(true) == str(shown)


# --- the tools ----------------------------------------------------------------------------------------------------


class Rival:
    """A tool of bcc's or bpftrace's, running. It is ready once it has said something and then has been idle."""

    def __init__(self, command: str, pattern: str) -> None:
        self._pattern = re.compile(pattern)
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        words = shlex.split(command)
        self._process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT, env=_environment()
        )

    def wait(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        busy, idle_since = -1.0, time.monotonic()
        while time.monotonic() < deadline and self._process.poll() is None:
            time.sleep(0.2)
            if (now := self._cpu_time()) > busy + 0.02 or not os.fstat(self._output.fileno()).st_size:
                busy, idle_since = now, time.monotonic()
            elif time.monotonic() - idle_since > 2:
                return
        if self._process.poll() is None:
            raise RuntimeError(f"not ready within {_PATIENCE} s")
        raise RuntimeError("did not run: " + (self.end().strip() or "it said nothing"))

    def end(self) -> str:
        """Interrupt it, and return what it has said."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    def rows(self) -> list[Row]:
        return [match.groupdict() for line in self.end().splitlines() if (match := self._pattern.search(line))]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._output.close()

    def _cpu_time(self) -> float:
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def run(case: Case) -> dict[str, Any]:
    """Run a case; the scores by tool: a Score, None where there is no such tool, or why it did not run."""
    results: dict[str, Any] = {"bcc": None, "bpftrace": None}
    with ExitStack() as stack:
        child = subprocess.Popen(
            [sys.executable, "-ISc", _BEGINNING + case.work + _END],
            cwd=stack.enter_context(tempfile.TemporaryDirectory(prefix="side-by-side-")),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(child.wait)
        stack.callback(child.kill)
        assert child.stdin
        assert child.stdout
        child.stdout.readline()
        rivals = {}
        for name, what in (("bcc", case.bcc), ("bpftrace", case.bpftrace)):
            if what:
                rivals[name] = Rival(what[0].format(pid=child.pid), what[1])
                stack.callback(rivals[name].close)
        for name, rival in list(rivals.items()):
            try:
                rival.wait()
            except RuntimeError as error:
                print(f"    {name}: {error}", flush=True)
                first, *rest = str(error).splitlines()
                results[name] = f"did not run: {rest[-1][:100]}" if rest else first[:100]
                del rivals[name]
        with case.bpfnb(child.pid) as session:
            print(file=child.stdin, flush=True)
            truth = json.loads(child.stdout.readline())
            time.sleep(1)
        shown = {name: case.collect(rival.rows()) for name, rival in rivals.items()}
        shown["bpfnb"] = case.rows(session.df)
    for name, rows in shown.items():
        print(f"  {case.name}, {name}: {len(truth)} true, {len(rows)} shown", flush=True)
        results[name] = score(truth, rows, case.key)
    return results


def fields(**columns: str) -> Callable[[pd.DataFrame], list[Row]]:
    """Return what makes rows of a df: each field is a column."""

    def rows(df: pd.DataFrame) -> list[Row]:
        values = zip(*(df[column] for column in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in values]

    return rows


def total(name: str) -> Callable[[list[Row]], list[Row]]:
    """Return what makes one row of many: the sum of a field."""
    return lambda rows: [{name: sum(float(row[name]) for row in rows)}]


# --- the workloads ------------------------------------------------------------------------------------------------

_EXECS = """
def start(path, *argv):
    pid = os.fork()
    if not pid:
        try: os.execv(path, argv)
        except OSError as error: os._exit(1)
    os.waitpid(pid, 0)
    rows.append({"pid": pid, "ret": 0 if os.path.exists(path) else -2, "args": " ".join(argv)})
for n in range(10): start("/bin/true", "/bin/true", str(n))
start("/bin/true", "/bin/true", *map(str, range(40)))
start("/bin/true", "/bin/true", "x" * 300)
start("/bin/true", "/bin/true", *["y" * 100] * 30)
start("/no/such/program", "/no/such/program", "argument")
pid = os.fork()
if not pid:
    argv = (ctypes.c_char_p * 3)(b"/bin/true", b"execveat", None)
    env = (ctypes.c_char_p * 1)(None)
    libc.syscall(322, AT_FDCWD, b"/bin/true", argv, env, 0)
    os._exit(1)
os.waitpid(pid, 0)
rows.append({"pid": pid, "ret": 0, "args": "/bin/true execveat"})
"""

_OPENS = """
def note(err, path): rows.append({"pid": me, "err": err, "path": path})
def opened(path, full):
    try: os.close(os.open(path, os.O_RDWR | os.O_CREAT)); note(0, full)
    except OSError as error: note(error.errno, full)
for n in range(10): opened(f"{place}/{n}", f"{place}/{n}")
for n in range(5): opened(f"{place}/none/{n}", f"{place}/none/{n}")
for n in range(5): opened(f"relative{n}", f"{place}/relative{n}")
long = f"{place}/" + "d" * 150
os.mkdir(long)
opened(long + "/" + "e" * 150, long + "/" + "e" * 150)
folder = os.open(place, os.O_RDONLY); note(0, place)
os.close(os.open("under", os.O_RDWR | os.O_CREAT, dir_fd=folder)); note(0, f"{place}/under")
how = (ctypes.c_uint64 * 3)(0, 0, 0)
os.close(libc.syscall(437, AT_FDCWD, f"{place}/1".encode(), how, 24)); note(0, f"{place}/1")
os.close(libc.syscall(2, f"{place}/2".encode(), 0)); note(0, f"{place}/2")
"""

_ENDS = """
late = "import ctypes, os, threading, time\\n" \\
    "def end():\\n time.sleep(0.2); os._exit(7)\\n" \\
    "threading.Thread(target=end).start(); ctypes.CDLL(None).pthread_exit(None)"
several = "import os, threading, time; [threading.Thread(target=time.sleep, args=[0.1]).start() for _ in range(5)]"
plans = [["/bin/true"]] * 5 + [["/bin/sh", "-c", "exit 3"]] * 5 + [["/bin/sh", "-c", "kill -9 $$"]] * 3
plans += [[sys.executable, "-ISc", several]] * 2 + [[sys.executable, "-ISc", late]] * 2
for plan in plans:
    pid = os.posix_spawn(plan[0], plan, os.environ)
    status = os.waitpid(pid, 0)[1]
    rows.append({"pid": pid, "status": str(status >> 8) if not status & 127 else "signal %d" % (status & 127)})
"""

_KILLS = """
signal.signal(signal.SIGUSR1, lambda *_: None)
calls = [("kill", 62, (me, 10)), ("kill", 62, (me, 0)), ("kill", 62, (4194303, 15))]
calls += [("tkill", 200, (me, 10)), ("tgkill", 234, (me, me, 10)), ("tgkill", 234, (me, 4194303, 10))]
for name, number, arguments in calls * 3:
    result = libc.syscall(number, *arguments)
    rows.append({"pid": me, "sig": arguments[-1], "tpid": arguments[-2],
                 "result": result if result >= 0 else -ctypes.get_errno()})
"""

_STATS = """
space = ctypes.create_string_buffer(512)
def call(number, path, *arguments, full=""):
    result = libc.syscall(number, *arguments)
    rows.append({"pid": me, "err": 0 if result >= 0 else ctypes.get_errno(), "path": full or path})
for name in ("", "/none"):
    path = place + name
    text = path.encode()
    call(4, path, text, space), call(6, path, text, space), call(137, path, text, space)
    call(262, path, AT_FDCWD, text, space, 0), call(332, path, AT_FDCWD, text, 0, 0xfff, space)
call(4, "relative", b"relative", space, full=place + "/relative")
"""

_SYSCALLS = """
for number, count, name in ((110, 3000, "getppid"), (63, 500, "uname"), (102, 200, "getuid"), (3, 70, "close")):
    for _ in range(count): libc.syscall(number, -1 if number == 3 else ctypes.create_string_buffer(512))
    rows.append({"syscall": name, "count": count})
"""

_CAPABILITIES = """
def asked(name, *call):
    libc.syscall(*call)
    rows.append({"pid": me, "name": name})
for _ in range(5):
    asked("CAP_SYS_CHROOT", 161, b"/")
    asked("CAP_SYS_BOOT", 169, 0, 0, 0, 0)  # with a wrong magic number: nothing happens
"""

_CONNECTIONS = """
ends = []
for host, family, count in (("127.0.0.1", socket.AF_INET, 10), ("::1", socket.AF_INET6, 5)):
    server = socket.create_server((host, 0), family=family)
    port = server.getsockname()[1]
    reading, writing = os.pipe()
    other = os.fork()
    if not other:
        for _ in range(count):
            connection = server.accept()[0]
            got = 0
            while got < 5000: got += len(connection.recv(65536))
            connection.sendall(bytes(9000))
            connection.recv(1)
            connection.close()
        os._exit(0)
    server.close()
    for _ in range(count):
        connection = socket.create_connection((host, port))
        own = connection.getsockname()[1]
        connection.sendall(bytes(5000))
        got = 0
        while got < 9000: got += len(connection.recv(65536))
        connection.close()
        ends.append((host, own, port, other))
    os.waitpid(other, 0)
time.sleep(0.2)
"""

_CONNECTS = (
    _CONNECTIONS
    + """
rows += [{"pid": me, "saddr": host, "lport": own, "daddr": host, "dport": port} for host, own, port, _ in ends]
closed = socket.create_server(("127.0.0.1", 0)); port = closed.getsockname()[1]; closed.close()
for _ in range(3):
    refused = socket.socket(); refused.bind(("127.0.0.1", 0)); own = refused.getsockname()[1]
    try: refused.connect(("127.0.0.1", port))
    except OSError: rows.append({"pid": me, "saddr": "127.0.0.1", "lport": own, "daddr": "127.0.0.1", "dport": port})
"""
)
_ACCEPTS = (
    _CONNECTIONS
    + """
rows += [{"pid": pid, "raddr": host, "rport": own, "laddr": host, "lport": port} for host, own, port, pid in ends]
"""
)
_LIVES = (
    _CONNECTIONS
    + """
for host, own, port, pid in ends:
    rows.append({"pid": me, "lport": own, "rport": port, "tx": [4, 5], "rx": [8, 9]})
    rows.append({"pid": pid, "lport": port, "rport": own, "tx": [8, 9], "rx": [4, 5]})
"""
)

_LOOKUPS = """
for name in ["localhost", "127.0.0.1", "no-such-name.invalid"] * 3:
    try: socket.getaddrinfo(name, 80)
    except OSError: pass
    rows.append({"pid": me, "host": name})
"""

_WAITS = """
os.sched_setaffinity(0, {0})
def times(): return int(open(f"/proc/self/task/{me}/schedstat").read().split()[2])
rival = os.fork()
if not rival:
    while os.getppid() == me: pass
    os._exit(0)
before = times()
deadline = time.monotonic() + 3
while time.monotonic() < deadline:
    sum(range(20000)); time.sleep(0.001)
count = times() - before
os.kill(rival, 9); os.waitpid(rival, 0)
rows.append({"count": [count * 0.98 - 2, count * 1.02 + 12]})
"""

_SLEEPS = """
before = time.monotonic()
for _ in range(20): time.sleep(0.05)
slept = (time.monotonic() - before) * 1e6
rows.append({"us": [1e6, slept * 1.02]})
"""

_BURNS = """
before = sum(os.times()[:2])
while sum(os.times()[:2]) - before < 4: sum(range(1000))
rows.append({"samples": [4 * 49 * 0.85, 4 * 49 * 1.15]})
"""

_READS = """
file = os.open("/dev/zero", os.O_RDONLY)
for size, count in ((100, 1000), (200, 2000)):
    for _ in range(count): os.read(file, size)
rows.append({"count": [3000, 3003]})
"""

_PORTS = r"(?P<saddr>\S+)\s+(?P<lport>\d+)\s+(?P<daddr>\S+)\s+(?P<dport>\d+)"
_ACCEPT = r"(?P<raddr>\S+)\s+(?P<rport>\d+)\s+(?P<laddr>\S+)\s+(?P<lport>\d+)"
_LIFE = r"^(?P<pid>\d+)\s+.{10}\s*\S+\s+(?P<lport>\d+)\s+\S+\s+(?P<rport>\d+)\s+(?P<tx>\d+)\s+(?P<rx>\d+)"
_SIGNAL = r"^\S+\s+(?P<pid>\d+)\s+\S+\s+(?P<sig>\d+)\s+(?P<tpid>\d+)\s+(?P<result>-?\d+)$"
_STACK = r"^        (?P<{}>\d+)$"  # what stands below a stack
_BUCKET = r"^\s*\d+ -> \d+\s+: (?P<count>\d+)"


def _arguments(df: pd.DataFrame) -> list[Row]:
    joined = df["args"].map(lambda args: " ".join(shlex.split(args)))
    return fields(pid="pid", ret="ret", args="args")(df.assign(args=joined))


def _statuses(df: pd.DataFrame) -> list[Row]:
    words = [str(code >> 8) if not code & 127 else f"signal {code & 127}" for code in df.exit_code]
    return [{"pid": pid, "status": word} for pid, word in zip(df.pid, words, strict=True)]


def _lives(df: pd.DataFrame) -> list[Row]:
    kilobytes = df.assign(tx=df.tx // 1024, rx=df.rx // 1024)
    return fields(pid="pid", lport="lport", rport="rport", tx="tx", rx="rx")(kilobytes)


def _slept(df: pd.DataFrame) -> list[Row]:
    asleep = df["total"][df["stack"].astype(str).str.contains("nanosleep")]
    return [{"us": int(asleep.astype("int64").sum()) / 1000}]


CASES = [
    Case(
        "execsnoop",
        _EXECS,
        ["pid"],
        lambda _: bpfnb.tools.execsnoop(fails=True),
        _arguments,
        (
            "execsnoop-bpfcc -x --max-args 60",
            r"^\S+\s+(?P<pid>\d+)\s+\S+\s+(?P<ret>-?\d+) (?P<args>.*)$",
        ),
        ("bpftrace -B line /usr/sbin/execsnoop.bt", r"^\d+\s+(?P<pid>\d+)\s+(?P<args>.*)$"),
        note="long and many arguments, execveat, a program that is not there",
    ),
    Case(
        "opensnoop",
        _OPENS,
        ["pid", "path"],
        lambda _: bpfnb.tools.opensnoop(),
        fields(pid="pid", err="err", path="path"),
        ("opensnoop-bpfcc -F", r"^(?P<pid>\d+)\s+\S+\s+-?\d+\s+(?P<err>\d+) (?P<path>.*)$"),
        ("bpftrace -B line /usr/sbin/opensnoop.bt", r"^(?P<pid>\d+)\s+\S+\s+-?\d+\s+(?P<err>\d+) (?P<path>.*)$"),
        note="failures, relative and long paths, open, openat and openat2",
    ),
    Case(
        "exitsnoop",
        _ENDS,
        ["pid"],
        lambda _: bpfnb.tools.exitsnoop(),
        _statuses,
        ("exitsnoop-bpfcc", r"^\S+\s+(?P<pid>\d+)\s+\d+\s+\d+\s+[\d.]+\s+(?:code )?(?P<status>\d+|signal \d+)"),
        note="exit codes, signals, processes with threads, some whose first thread ends first",
    ),
    Case(
        "killsnoop",
        _KILLS,
        ["pid"],
        lambda _: bpfnb.tools.killsnoop(),
        fields(pid="pid", sig="sig", tpid="tpid", result="result"),
        ("killsnoop-bpfcc", _SIGNAL),
        ("bpftrace -B line /usr/sbin/killsnoop.bt", _SIGNAL),
        note="kill, tkill and tgkill, also to nobody",
    ),
    Case(
        "statsnoop",
        _STATS,
        ["pid", "path"],
        lambda _: bpfnb.tools.statsnoop(),
        fields(pid="pid", err="err", path="path"),
        ("statsnoop-bpfcc", r"^(?P<pid>\d+)\s+\S+\s+-?\d+\s+(?P<err>\d+) (?P<path>.*)$"),
        ("bpftrace -B line /usr/sbin/statsnoop.bt", r"^(?P<pid>\d+)\s+\S+\s+(?P<err>\d+) (?P<path>.*)$"),
        note="stat, lstat, statfs, newfstatat, statx; failures; a relative path",
    ),
    Case(
        "syscount",
        _SYSCALLS,
        ["syscall"],
        lambda pid: bpfnb.tools.syscount(pid=pid),
        fields(syscall="syscall", count="count"),
        ("syscount-bpfcc -p {pid} -T 100", r"^(?P<syscall>\w+)\s+(?P<count>\d+)$"),
        note="four calls, of known numbers",
    ),
    Case(
        "capable",
        _CAPABILITIES,
        ["pid", "name"],
        lambda _: bpfnb.tools.capable(),
        fields(pid="pid", name="name"),
        ("capable-bpfcc", r"^\S+\s+\d+\s+(?P<pid>\d+)\s+\S+\s+\d+\s+(?P<name>CAP_\w+)"),
        ("bpftrace -B line /usr/sbin/capable.bt", r"^\S+\s+\d+\s+(?P<pid>\d+)\s+\S+\s+\d+\s+(?P<name>CAP_\w+)"),
        note="chroot and reboot (that does nothing)",
    ),
    Case(
        "tcpconnect",
        _CONNECTS,
        ["lport", "dport"],
        lambda _: bpfnb.tools.tcpconnect(),
        fields(pid="pid", saddr="saddr", lport="lport", daddr="daddr", dport="dport"),
        ("tcpconnect-bpfcc -L", r"^(?P<pid>\d+)\s+\S+\s+[46]\s+" + _PORTS),
        ("bpftrace -B line /usr/sbin/tcpconnect.bt", r"^\S+\s+(?P<pid>\d+)\s+\S+\s+" + _PORTS),
        note="IPv4, IPv6, and refused ones",
    ),
    Case(
        "tcpaccept",
        _ACCEPTS,
        ["rport", "lport"],
        lambda _: bpfnb.tools.tcpaccept(),
        fields(pid="pid", raddr="raddr", rport="rport", laddr="laddr", lport="lport"),
        ("tcpaccept-bpfcc", r"^(?P<pid>\d+)\s+\S+\s+[46]\s+" + _ACCEPT),
        ("bpftrace -B line /usr/sbin/tcpaccept.bt", r"^\S+\s+(?P<pid>\d+)\s+\S+\s+" + _ACCEPT),
        note="IPv4 and IPv6",
    ),
    Case(
        "tcplife",
        _LIVES,
        ["lport", "rport"],
        lambda _: bpfnb.tools.tcplife(),
        _lives,
        ("tcplife-bpfcc", _LIFE),
        ("bpftrace -B line /usr/sbin/tcplife.bt", _LIFE),
        note="both ends, with their processes and KB",
    ),
    Case(
        "gethostlatency",
        _LOOKUPS,
        ["pid", "host"],
        lambda _: bpfnb.tools.gethostlatency(),
        fields(pid="pid", host="host"),
        ("gethostlatency-bpfcc", r"^\S+\s+(?P<pid>\d+)\s+\S+\s+[\d.]+ (?P<host>.*)$"),
        ("bpftrace -B line /usr/sbin/gethostlatency.bt", r"^\S+\s+(?P<pid>\d+)\s+\S+\s+\d+ (?P<host>.*)$"),
        note="names, an address, a name that is not there",
    ),
    Case(
        "runqlat",
        _WAITS,
        [],
        lambda pid: bpfnb.tools.runqlat(pid=pid),
        lambda df: [{"count": df["count"].sum()}],
        ("runqlat-bpfcc -p {pid}", _BUCKET),
        collect=total("count"),
        note="how often a thread got the CPU, as schedstat counts",
    ),
    Case(
        "offcputime",
        _SLEEPS,
        [],
        lambda pid: bpfnb.tools.offcputime(pid=pid),
        _slept,
        ("offcputime-bpfcc -p {pid}", _STACK.format("us")),
        collect=total("us"),
        note="the sum of 20 sleeps",
    ),
    Case(
        "profile",
        _BURNS,
        [],
        lambda pid: bpfnb.tools.profile(pid=pid),
        lambda df: [{"samples": df["count"].sum()}],
        ("profile-bpfcc -p {pid}", _STACK.format("samples")),
        collect=total("samples"),
        note="4 s of CPU time at 49 Hz",
    ),
    Case(
        "funccount",
        _READS,
        [],
        lambda pid: bpfnb.count("kprobe:vfs_read", pid=pid),
        lambda df: [{"count": df["count"].sum()}],
        ("funccount-bpfcc -p {pid} vfs_read", r"^vfs_read\s+(?P<count>\d+)$"),
        ("bpftrace -e 'kprobe:vfs_read /pid == {pid}/ {{ @ = count(); }}'", r"^@: (?P<count>\d+)$"),
        note='count("kprobe:vfs_read")',
    ),
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.side_by_side", description=__doc__)
    parser.add_argument("tools", nargs="*", metavar="TOOL", help="only these")
    parser.add_argument("--kernel", choices=("6.1", "6.12"), help="in scripts/vm, with headers")
    parser.add_argument("--headers", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kernel:
        command = [ROOT / "scripts/vm", "run", arguments.kernel, "--timeout", "7200", "--memory", "4G", "--"]
        command += [sys.executable, "-m", "benchmarks.side_by_side", "--headers", real_headers(arguments.kernel)]
        return subprocess.run([*command, *arguments.tools], cwd=ROOT, check=False).returncode
    if arguments.headers:
        os.environ["BCC_KERNEL_SOURCE"] = str(_unpack(arguments.headers))
    lines = []
    for case in CASES:
        if arguments.tools and case.name not in arguments.tools:
            continue
        began = time.monotonic()
        try:
            results = run(case)
        except (BpfnbError, AttributeError) as error:
            results = {"bpfnb": f"did not run: {error}", "bcc": None, "bpftrace": None}
        cells = ["" if result is None else str(result) for result in map(results.get, ("bpfnb", "bcc", "bpftrace"))]
        lines.append(f"| {' | '.join([case.name, case.note, *cells])} |")
        print(f"{lines[-1]}  {time.monotonic() - began:.0f} s", flush=True)
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    print(f"\n{date}, Linux {platform.release()}; right / missing / wrong\n")
    print("\n".join(["| tool | workload | bpfnb | bcc | bpftrace |", "| --- | --- | --- | --- | --- |", *lines]))
    return 0


def _unpack(archive: Path) -> Path:
    """The headers of Debian's two packages, as one tree."""
    folder = Path(tempfile.mkdtemp(prefix="side-by-side-headers-"))
    subprocess.run(["tar", "-C", folder, "-xf", archive], check=True)
    (common,) = (folder / "usr/src").glob("*-common")
    (built,) = (path for path in (folder / "usr/src").iterdir() if path != common)
    subprocess.run(["cp", "-a", f"{built}/.", common], check=True)
    return common


if __name__ == "__main__":
    sys.exit(main())
