"""Eighteen questions people ask of a machine, each answered in at most three lines without C.

``ANSWERS`` has the lines as a person types them; ``answer`` runs them. ``work()`` is the workload, of known truth: what
it says of itself, or the kernel does elsewhere, is what the answer is held against.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import bpfnb

CPU = max(os.sched_getaffinity(0))
LINES = 3
ANSWERS = {
    "who starts processes, and how long they live": """
with bpfnb.tools.execsnoop() as starts, bpfnb.tools.exitsnoop() as ends:
    work()
found = starts.df[["ppid", "pid", "args"]].merge(ends.df[["pid", "age", "exit_code_wait"]], on="pid")
""",
    "what is opened, and what cannot be": """
with bpfnb.tools.opensnoop() as opens:
    work()
found = opens.df.groupby(["pid", "path", "err_error"], observed=True, dropna=False).size()
""",
    "how long reads, writes and fsyncs take, by process": """
with bpfnb.latency(["syscall:read", "syscall:write", "syscall:fsync"], by=["pid", "probe"]) as times:
    work()
found = times.quantiles(0.5, 0.99)
""",
    "which process uses the disk": """
with bpfnb.tools.biotop() as disks:
    work()
found = disks.df
""",
    "what is on CPU": """
with bpfnb.stacks("profile:99", by="comm", where="pid > 0") as cpu:
    found = work(lambda: cpu.df)
""",
    "what keeps a thread off CPU": """
with bpfnb.tools.offcputime() as off:
    work()
found = off.df
""",
    "TCP connections with addresses and bytes": """
with bpfnb.tools.tcplife() as connections:
    work()
found = connections.df
""",
    "how long name lookups take": """
with bpfnb.tools.gethostlatency() as lookups:
    work()
found = lookups.df
""",
    "what sizes are allocated": """
with bpfnb.hist("uprobe:c:malloc", "arg0", by="comm") as sizes:
    work()
found = sizes.df
""",
    "which system calls a cell makes": """
with bpfnb.count("syscall:*", by="probe", pid=os.getpid(), where=f"tid == {threading.get_native_id()}") as calls:
    work()
found = calls.df
""",
    "which code paths fault pages in": """
with bpfnb.stacks("software:page-faults:1", comm="bpfnb-faults", kernel=False) as faults:
    found = work(lambda: faults.df)
""",
    "how long threads wait for a CPU": """
with bpfnb.tools.runqlat(pids=True) as waits:
    work()
found = waits.df
""",
    "who sends which signal to whom": """
with bpfnb.rows("tracepoint:signal:signal_generate", {"sender": "pid", "sig": "sig", "target": "args.pid"}) as signals:
    work()
found = signals.df
""",
    "what Python's garbage collector does, by its USDT probes": """
with bpfnb.count("usdt:/usr/bin/python3:gc__start", by=["pid", "arg0"]) as collections:
    work()
found = collections.df
""",
    "which code paths make memory grow": """
with bpfnb.tools.memleak(pid=pid, older=0) as growth:
    found = work(lambda: growth.df)
""",
    "what the processes of a cgroup write": """
with bpfnb.stats("sysret:write", "retval", by="pid", cgroup=group) as writes:
    work()
found = writes.df
""",
    "what a web server does for its requests": """
with bpfnb.stats("syscall:*", "latency", by="probe", pid=server) as calls:
    work()
found = calls.df
""",
    "which system calls git clone makes": """
calls = bpfnb.count("syscall:*", by="probe", command=["git", "clone", "-q", there, here])
calls.wait()
found = calls.df
""",
}


def answer(question: str, **names: Any) -> Any:
    """Run a question's lines, as a script's, and return what they found."""
    scope = {"bpfnb": bpfnb, "os": os, "threading": threading, **names}
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(ANSWERS[question])
        script.flush()
        exec(compile(ANSWERS[question], script.name, "exec"), scope)
    return scope["found"]


def test_there_are_eighteen_and_each_takes_at_most_three_lines() -> None:
    assert len(ANSWERS) == 18
    for lines in ANSWERS.values():
        assert 0 < len(lines.strip().splitlines()) <= LINES
        assert max(map(len, lines.splitlines())) <= 120
        assert ";" not in lines


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start Python with its standard input and output as pipes."""
    command = [sys.executable, "-ISc", code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def says(process: subprocess.Popen[str]) -> Any:
    """Wait for the end of a process; what it printed as JSON."""
    output, _ = process.communicate()
    assert process.returncode == 0
    return json.loads(output)


# --- processes and files ----------------------------------------------------------------------------------------------


def test_who_starts_processes_and_how_long_they_live() -> None:
    known = {}

    def work() -> None:
        for words in (["sleep", "0.05"], ["sh", "-c", "exit 3", "two words"], ["sleep", "0.2"]):
            begun = time.monotonic()
            process = subprocess.Popen(words)
            process.wait()
            known[process.pid] = words, time.monotonic() - begun

    found = answer("who starts processes, and how long they live", work=work)
    mine = found[found["ppid"] == os.getpid()]
    assert [(pid, shlex.split(args)) for pid, args in zip(mine["pid"], mine["args"], strict=True)] == [
        (pid, words) for pid, (words, _) in known.items()
    ]
    assert mine["exit_code_wait"].tolist() == ["exited 0", "exited 3", "exited 0"]
    for age, (words, most) in zip(mine["age"].dt.total_seconds(), known.values(), strict=True):
        least = float(words[1]) if words[0] == "sleep" else 0
        assert least <= age <= most


def test_what_is_opened_and_what_cannot_be(tmp_path: Path) -> None:
    code = """
import os, sys
os.chdir(sys.argv[1])
for name, times in (("there", 5), ("missing", 3), ("folder/deep", 2)):
    for _ in range(times):
        try: os.close(os.open(name, os.O_RDWR))
        except OSError: pass
try: os.open("folder", os.O_RDWR)
except OSError: pass
"""
    (tmp_path / "there").touch()
    (tmp_path / "folder").mkdir()
    pids = []

    def work() -> None:
        process = python(code, tmp_path)
        process.communicate()
        pids.append(process.pid)

    found = answer("what is opened, and what cannot be", work=work)[pids[0]].reset_index()
    mine = found[found["path"].astype(str).str.startswith(str(tmp_path))]
    expected = {("there", ""): 5, ("missing", "ENOENT"): 3, ("folder/deep", "ENOENT"): 2, ("folder", "EISDIR"): 1}
    counts = mine.set_index(["path", "err_error"])[0].to_dict()
    assert {(path, "" if pd.isna(error) else error): n for (path, error), n in counts.items()} == {
        (str(tmp_path / name), error): n for (name, error), n in expected.items()
    }


def test_how_long_reads_writes_and_fsyncs_take(tmp_path: Path) -> None:
    """Of a hundred reads two wait for 30 ms; the process times its fsyncs itself."""
    code = """
import json, os, sys, time
end, other = os.pipe()
if not os.fork():
    for n in range(100):
        if n in (50, 60): time.sleep(0.03)
        os.write(other, b"x" * 10)
    os._exit(0)
times = []
for _ in range(100): os.read(end, 10)
file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
for _ in range(5):
    os.write(file, bytes(4096))
    begun = time.perf_counter_ns(); os.fsync(file); times.append(time.perf_counter_ns() - begun)
os.wait()
print(json.dumps(times))
"""
    known: dict[int, list[int]] = {}

    def work() -> None:
        process = python(code, tmp_path / "file")
        known[process.pid] = says(process)

    found = answer("how long reads, writes and fsyncs take, by process", work=work)
    ((pid, times),) = known.items()
    mine = found[found["pid"] == pid].set_index(["probe", "quantile"])
    assert mine.loc[("syscall:read", 0.5), "high"] <= 2e6
    assert mine.loc[("syscall:read", 0.99), "low"] <= 30e6 < 2 * mine.loc[("syscall:read", 0.99), "high"]
    assert mine.loc[("syscall:read", 0.99), "high"] > 29e6
    assert mine.loc[("syscall:fsync", 0.99), "low"] <= max(times)
    assert mine.loc[("syscall:fsync", 0.5), "low"] <= sorted(times)[2] <= 2 * mine.loc[("syscall:fsync", 0.5), "high"]


@pytest.fixture
def disk() -> Iterator[str]:
    """The path of a loop device, which the kernel counts for itself."""
    image = Path(f"/dev/shm/bpfnb-question-{os.getpid()}")
    image.write_bytes(bytes(1 << 20))
    made = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=False)
    if made.returncode:
        image.unlink()
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    try:
        yield made.stdout.strip()
    finally:
        subprocess.run(["losetup", "-d", made.stdout.strip()], check=True)
        image.unlink()


def test_which_process_uses_the_disk(disk: str) -> None:
    """Nine pieces of 64 KiB are written past the page cache, four read."""
    code = """
import mmap, os, sys
piece = mmap.mmap(-1, 1 << 16)
fd = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
for i in range(9): os.pwrite(fd, piece, i << 16)
for i in range(4): os.preadv(fd, [piece], i << 16)
"""
    pids = []

    def work() -> None:
        process = python(code, disk)
        process.communicate()
        pids.append(process.pid)

    found = answer("which process uses the disk", work=work)
    mine = found[found["pid"] == pids[0]].set_index("d")
    assert mine["bytes"].to_dict() == {"W": 9 << 16, "R": 4 << 16}
    assert mine["io"].to_dict() == {"W": 9, "R": 4}
    assert set(mine["disk"]) == {disk.removeprefix("/dev/")}


# --- processors -------------------------------------------------------------------------------------------------------

WORK = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>
#define OUT __attribute__((noinline))

OUT long spin(double seconds) {
    struct timespec begun, now;
    long sum = 0, i;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begun);
    do {
        for (i = 0; i < 100000; i++) { sum += i * i; __asm__ volatile("" : "+r"(sum)); }
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    } while (now.tv_sec - begun.tv_sec + (now.tv_nsec - begun.tv_nsec) / 1e9 < seconds);
    return sum;
}
OUT long often(void) { long r = spin(0.6); __asm__ volatile("" : "+r"(r)); return r; }
OUT long seldom(void) { long r = spin(0.2); __asm__ volatile("" : "+r"(r)); return r; }

OUT void touch(int pages) {
    char *memory = mmap(0, pages * 4096L, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(memory, pages * 4096L, MADV_NOHUGEPAGE);
    for (int i = 0; i < pages; i++) ((volatile char *)memory)[4096L * i] = 1;
}
OUT void many(void) { touch(400); __asm__ volatile(""); }
OUT void few(void) { touch(100); __asm__ volatile(""); }

void *volatile kept;
OUT void *get(size_t size) { return kept = malloc(size); }
OUT void leak(void) { for (int i = 0; i < 40; i++) get(1 << 20); __asm__ volatile(""); }
OUT void pass(void) { for (int i = 0; i < 7; i++) free(get(1 << 20)); __asm__ volatile(""); }

int main(int argc, char **argv) {
    char *what = argv[1];
    prctl(PR_SET_NAME, what);
    if (!strcmp(what, "bpfnb-cpu")) { often(); seldom(); }
    if (!strcmp(what, "bpfnb-faults")) { many(); few(); }
    if (!strcmp(what, "bpfnb-grows")) { getchar(); leak(); pass(); }
    if (!strcmp(what, "bpfnb-mallocs")) {
        for (int i = 0; i < 1000; i++) free(get(3000));
        for (int i = 0; i < 30; i++) free(get(70000));
        return 0;
    }
    puts("done");
    fflush(stdout);
    getchar();
    return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    (folder / "work.c").write_text(WORK)
    flags = ["-O1", "-w", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"]
    subprocess.run(["gcc", *flags, "-o", folder / "work", folder / "work.c"], check=True)
    return folder / "work"


@contextmanager
def done(program: Path, what: str) -> Iterator[None]:
    """The program has done its work, and has not ended: its functions have names."""
    with subprocess.Popen([program, what], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"done\n"
        yield
        process.communicate(b"\n")


def meanwhile(program: Path, what: str) -> Callable[[Callable[[], Any]], Any]:
    """A workload that has the answer looked at before it ends."""

    def work(look: Callable[[], Any]) -> Any:
        with done(program, what):
            return look()

    return work


def by_function(found: pd.DataFrame, *functions: str) -> list[int]:
    """How much was counted below each function."""
    frames = found["stack"].str.split(";")
    return [int(found["count"][frames.map(lambda names, f=f: f in names)].sum()) for f in functions]


def test_what_is_on_cpu(program: Path) -> None:
    """0.6 s in one function and 0.2 s in the other, at 99 samples a second: 59 and 20, by and large."""
    found = answer("what is on CPU", work=meanwhile(program, "bpfnb-cpu"))
    often, seldom = by_function(found[found["comm"] == "bpfnb-cpu"], "often", "seldom")
    assert often == pytest.approx(59, abs=18)
    assert seldom == pytest.approx(20, abs=12)
    assert often > 1.5 * seldom


def test_what_keeps_a_thread_off_cpu() -> None:
    pids = []

    def work() -> None:
        process = subprocess.Popen(["sleep", "0.25"])
        process.wait()
        pids.append(process.pid)

    found = answer("what keeps a thread off CPU", work=work)
    mine = found[(found["pid"] == pids[0]) & found["stack"].str.contains("nanosleep")]
    assert pd.Timedelta("0.25s") <= mine["total"].sum() <= pd.Timedelta("0.4s")


def test_which_code_paths_fault_pages_in(program: Path) -> None:
    found = answer("which code paths fault pages in", work=meanwhile(program, "bpfnb-faults"))
    many, few = by_function(found, "many", "few")
    assert many in (400, 401)  # and the stack's or the code's own page
    assert few in (100, 101)


def test_how_long_threads_wait_for_a_cpu() -> None:
    """Two processes share a CPU; the kernel accounts how long each waited."""
    code = f"""
import os, time
os.sched_setaffinity(0, [{CPU}])
end = time.monotonic() + 0.4
while time.monotonic() < end: pass
print(open("/proc/self/schedstat").read().split()[1])
"""
    known = {}

    def work() -> None:
        processes = [python(code) for _ in range(2)]
        known.update({process.pid: says(process) for process in processes})

    found = answer("how long threads wait for a CPU", work=work)
    for pid, waited in known.items():
        assert waited > 50e6
        mine = found[found["pid"] == pid]
        low, high = ((mine[side].dt.total_seconds() * mine["count"]).sum() * 1e9 for side in ("low", "high"))
        assert low * 0.99 - 20e6 <= waited <= high * 1.01


# --- the network ------------------------------------------------------------------------------------------------------


def test_tcp_connections_with_addresses_and_bytes() -> None:
    """This process is at both ends."""
    known = []

    def work() -> None:
        for sent, back in ((3_000, 70_000), (1, 0)):
            with socket.create_server(("127.0.0.1", 0)) as listener:
                with socket.create_connection(listener.getsockname()) as client, listener.accept()[0] as server:
                    client.sendall(bytes(sent))
                    assert len(server.recv(sent, socket.MSG_WAITALL)) == sent
                    server.sendall(bytes(back))
                    assert len(client.recv(back, socket.MSG_WAITALL)) == back
                    ours, theirs = client.getsockname(), client.getpeername()
                known.extend([(*ours, *theirs, sent, back), (*theirs, *ours, back, sent)])

    found = answer("TCP connections with addresses and bytes", work=work)
    mine = found[found["pid"] == os.getpid()]
    columns = ["laddr", "lport", "raddr", "rport", "tx", "rx"]
    assert sorted(mine[columns].itertuples(index=False, name=None)) == sorted(known)


def test_how_long_name_lookups_take() -> None:
    code = """
import json, socket, time
times = []
for host in ("localhost", "127.0.0.1", "::1"):
    begun = time.perf_counter_ns(); socket.getaddrinfo(host, 80); times.append(time.perf_counter_ns() - begun)
try: socket.getaddrinfo("localhost", "no such service")
except socket.gaierror: pass
print(json.dumps(times))
"""
    known = {}

    def work() -> None:
        process = python(code)
        known[process.pid] = says(process)

    found = answer("how long name lookups take", work=work)
    ((pid, times),) = known.items()
    mine = found[found["pid"] == pid]
    assert mine["host"].tolist() == ["localhost", "127.0.0.1", "::1", "localhost"]
    assert (mine["lat"].to_numpy("int64")[:3] <= times).all()
    assert mine["error"].isna().tolist() == [True] * 3 + [False]


SERVER = """
import http.server, os, sys
log = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/durable":
            os.write(log, b"line")
            os.fdatasync(log)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")
    def log_message(self, *_): pass
with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    print(server.server_port, flush=True)
    server.serve_forever()
"""


def test_what_a_web_server_does_for_its_requests(tmp_path: Path) -> None:
    """Of forty requests a quarter writes to the disk."""
    process = python(SERVER, tmp_path / "log")
    assert process.stdout
    port = int(process.stdout.readline())

    def work() -> None:
        for number in range(40):
            path = "durable" if number % 4 == 0 else "quick"
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}") as reply:
                assert reply.read() == b"hello"

    try:
        found = answer("what a web server does for its requests", work=work, server=process.pid)
    finally:
        process.kill()
        process.communicate()
    found = found.set_index("probe")
    counts = found["count"]
    assert counts["syscall:accept4"] == 40
    assert counts["syscall:fdatasync"] == 10
    assert counts["syscall:sendto"] == 80
    assert found.loc["syscall:fdatasync", "mean"] > found.loc["syscall:sendto", "mean"]


# --- one process ------------------------------------------------------------------------------------------------------


def test_what_sizes_are_allocated(program: Path) -> None:
    found = answer("what sizes are allocated", work=lambda: subprocess.run([program, "bpfnb-mallocs"], check=True))
    mine = found[found["comm"] == "bpfnb-mallocs"].set_index(["low", "high"])["count"].to_dict()
    assert mine == {(2048, 4096): 1000, (65536, 131072): 30}


def test_which_system_calls_a_cell_makes(tmp_path: Path) -> None:
    def cell() -> None:
        for _ in range(50):
            os.getppid()
        for _ in range(20):
            os.close(os.open(tmp_path, os.O_RDONLY))
        with suppress(OSError):
            (tmp_path / "nothing").unlink()

    found = answer("which system calls a cell makes", work=cell).set_index("probe")["count"]
    assert found["syscall:getppid"] == 50
    assert found["syscall:openat"] >= 20
    assert found["syscall:unlink"] == 1


def test_who_sends_which_signal_to_whom() -> None:
    targets = []

    def work() -> None:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL):
            with subprocess.Popen(["sleep", "60"]) as process:
                process.send_signal(number)
            targets.append((number, number.name, process.pid))

    found = answer("who sends which signal to whom", work=work)
    mine = found[found["sender"] == os.getpid()]
    assert list(mine[["sig", "sig_signal", "target"]].itertuples(index=False, name=None)) == targets


def test_what_pythons_garbage_collector_does() -> None:
    code = "import gc; gc.disable(); [gc.collect(n) for n in (0, 1, 1, 2, 2, 2)]; import os; os._exit(0)"
    pids = []

    def work() -> None:
        with subprocess.Popen(["/usr/bin/python3", "-ISc", code]) as process:
            pids.append(process.pid)

    found = answer("what Python's garbage collector does, by its USDT probes", work=work)
    counts = found[found["pid"] == pids[0]].set_index("arg0")["count"]
    assert counts[[1, 2]].to_dict() == {1: 2, 2: 3}


def test_which_code_paths_make_memory_grow(program: Path) -> None:
    """Forty pieces of a megabyte are kept; seven are given back."""
    with subprocess.Popen([program, "bpfnb-grows"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout

        def work(look: Callable[[], pd.DataFrame]) -> pd.DataFrame:
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"done\n"
            return look()

        found = answer("which code paths make memory grow", work=work, pid=process.pid)
        process.communicate(b"\n")
    (mine,) = found[found["stack"].str.split(";").map(lambda names: "leak" in names)].to_dict("records")
    assert (mine["pid"], mine["size"], mine["count"]) == (process.pid, 40 << 20, 40)
    assert not found["stack"].str.contains("pass").any()


def test_what_the_processes_of_a_cgroup_write() -> None:
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    roots = [Path(line[1]) for line in lines if line[2] == "cgroup2"]
    if not roots or not os.access(roots[0], os.W_OK):
        pytest.skip("no cgroups (v2) are mounted here")
    group = roots[0] / f"bpfnb-question-{os.getpid()}"
    code = "import os; input(); [os.write(1, b'x' * n) for n in range(100)]"
    group.mkdir()
    processes = [python(code) for _ in range(2)]

    def work() -> None:
        (group / "cgroup.procs").write_text(str(processes[0].pid))
        for process in processes:
            process.communicate("\n")

    try:
        found = answer("what the processes of a cgroup write", work=work, group=group)
    finally:
        group.rmdir()
    assert found[["pid", "count", "sum", "min", "max"]].to_numpy().tolist() == [[processes[0].pid, 100, 4950, 0, 99]]


@pytest.mark.skipif(not shutil.which("strace") or not shutil.which("git"), reason="needs strace and git")
def test_which_system_calls_git_clone_makes(tmp_path: Path) -> None:
    """As many of each as strace counts of another clone; those that depend on timing are left out."""
    there = tmp_path / "there"
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@localhost"]
    subprocess.run(["git", "init", "-q", there], check=True)
    (there / "file").write_text("hello")
    subprocess.run(["git", "-C", there, "add", "file"], check=True)
    subprocess.run(["git", "-C", there, *who, "commit", "-qm", "first"], check=True)
    found = answer("which system calls git clone makes", there=str(there), here=str(tmp_path / "here"))
    log = tmp_path / "strace"
    command = ["strace", "-f", "-qq", "-o", log, "git", "clone", "-q", there, tmp_path / "hera"]  # as long as "here"
    subprocess.run(command, check=True)
    calls = [line.split(None, 1)[1] for line in log.read_text().splitlines()]
    expected = Counter(call.partition("(")[0] for call in calls if re.match(r"\w+\(", call))
    ours = {probe.partition(":")[2]: n for probe, n in zip(found["probe"], found["count"], strict=True)}
    assert _steady(ours) == _steady(expected)
    assert ours["execve"] >= 3


def _steady(counts: Mapping[str, int]) -> dict[str, int]:
    """Without what depends on how long others take, and on chance."""
    timed = ("futex", "poll", "ppoll", "read", "clock_nanosleep", "restart_syscall", "rt_sigreturn", "brk", "munmap")
    return {name: n for name, n in counts.items() if name not in (*timed, "getrandom")}
