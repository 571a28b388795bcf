"""A long run: mixed load, floods, restarts and suspended notebooks; many sessions; Ctrl-C; kills. See scripts/soak.

What is produced is counted by the producer, what is left is looked for in /proc and in the kernel.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ctrl_c
import kills
import processes
from leaks import bpf_ids
from processes import descriptors

import bpfnb
from bpfnb.hosts import default_host

ROOT = Path(__file__).parents[1]
KINDS = ("mixed", "many", "interrupts", "kills", "tests")

_HEAD = "static inline int other(void) { return bpf_get_current_pid_tgid() >> 32 != PID; }\n"
_EVENT = "struct event { u64 number; char text[24]; };\n"
_SOURCES = {
    "printk": 'int f(void *ctx) { if (other()) return 0; bpf_trace_printk("x\\n"); return 0; }',
    "perf": _EVENT
    + "BPF_PERF_OUTPUT(events); int f(void *ctx) { if (other()) return 0; struct event e = {}; "
    + "events.perf_submit(ctx, &e, sizeof(e)); return 0; }",
    "ring": _EVENT
    + "BPF_RINGBUF_OUTPUT(events, 64); int f(void *ctx) { if (other()) return 0; struct event e = {}; "
    + "events.ringbuf_output(&e, sizeof(e), 0); return 0; }",
    "map": "BPF_HASH(calls, u32, u64); int f(void *ctx) { if (other()) return 0; u32 k = 1; calls.increment(k); "
    + "return 0; }",
}
_ATTACH = {"syscall:getpgid": "f"}
# Makes events, and says how many: "go N" is N a second, as fast as may be for 0; "stop" ends them.
_PRODUCER = """
import ctypes, os, select, sys, time
libc, made, rate = ctypes.CDLL(None), 0, None
print(os.getpid(), flush=True)
while True:
    if select.select([sys.stdin], [], [], None if rate is None else 0)[0]:
        words = sys.stdin.readline().split()
        if not words: break
        rate = float(words[1]) if words[0] == "go" else None
        if rate is None:
            print(made, flush=True)
            made = 0
        continue
    for _ in range(100): libc.getpgid(0)
    made += 100
    if rate: time.sleep(100 / rate)
"""


class Result(NamedTuple):
    what: str
    amount: str
    found: str
    right: bool


class Producer:
    """A process that makes events and counts them."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PRODUCER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.pid = int(self._line())

    def go(self, rate: float) -> None:
        self._say(f"go {rate}")

    def stop(self) -> int:
        self._say("stop now")
        return int(self._line())

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _say(self, text: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(text + "\n")

    def _line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline()


class Levels:
    """Memory, descriptors, threads and BPF objects of the notebook and its tracer, looked at again and again."""

    def __init__(self) -> None:
        self._seen: dict[str, list[int]] = {}

    def look(self) -> None:
        worker = default_host.connect().hello().pid
        for who, pid in (("notebook", os.getpid()), ("tracer", worker)):
            self._note(f"{who}: MiB", _status(pid, "VmRSS") >> 10)
            self._note(f"{who}: threads", _status(pid, "Threads"))
            self._note(f"{who}: descriptors", len(descriptors(pid)))
        self._note("tracer: BPF objects", len(processes.objects(worker)))

    def results(self) -> list[Result]:
        """The first and the last third of the looks, by their medians."""
        found = []
        for what, values in self._seen.items():
            third = max(len(values) // 3, 1)
            first, last = int(statistics.median(values[:third])), int(statistics.median(values[-third:]))
            grown = last - first
            right = grown <= (64 + first // 10 if "MiB" in what else 2)
            found.append(Result(what, f"{len(values)} looks", f"{first} at first, {last} at last", right))
        return found

    def _note(self, what: str, value: int) -> None:
        self._seen.setdefault(what, []).append(value)


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


# --- mixed load ---------------------------------------------------------------------------------------------------


def mixed(seconds: float, say: Callable[[str], object]) -> list[Result]:
    """printk, perf, ring and map at once: steady load, floods, the notebook suspended, the tracer restarted."""
    dice = random.Random(1)
    levels, producer = Levels(), Producer()
    produced = accounted = lost = rounds = restarts = suspended = 0
    wrong: list[str] = []
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            sessions = {
                kind: bpfnb.trace(
                    _HEAD + source, name=kind, attach=_ATTACH, cflags=[f"-DPID={producer.pid}"], keep=32 << 20
                )
                for kind, source in _SOURCES.items()
            }
            flood = rounds % 4 == 3
            producer.go(0 if flood else dice.choice([2_000, 20_000]))
            if rounds % 3 == 1:
                _suspend_for(1.0)
                suspended += 1
            until = time.monotonic() + (1.5 if flood else 6)
            while time.monotonic() < until:
                for kind in ("printk", "perf", "ring"):
                    len(sessions[kind].df)
                len(sessions["map"].maps["calls"].df)
                time.sleep(0.1)
            made = producer.stop()
            dies = rounds % 10 == 9
            if dies:
                os.kill(default_host.connect().hello().pid, signal.SIGKILL)
                restarts += 1
            for kind, session in sessions.items():
                session.wait(20) if dies else session.stop()
                found, missing = _accounted(kind, session)
                produced, accounted, lost = produced + made, accounted + found, lost + missing
                if found + missing > made or (found + missing != made and not dies):
                    wrong.append(
                        f"round {rounds}, {kind}: {made} made, {found} there, {missing} lost: {session.reason}"
                    )
                if dies:  # what the tracer had not delivered yet is gone with it
                    produced -= made - found - missing
            levels.look()
            rounds += 1
            say(f"mixed: round {rounds}, {produced:,} produced, {lost:,} lost, {len(wrong)} wrong")
    finally:
        producer.end()
        bpfnb.stop_all()
    for text in wrong:
        say(f"  WRONG: {text}")
    amount = f"{rounds} rounds, {suspended} suspended, {restarts} restarts"
    text = f"{produced:,} = {accounted:,} delivered + {lost:,} lost"
    return [Result("produced = delivered + lost", amount, text, not wrong), *levels.results()]


def _accounted(kind: str, session: bpfnb.Session) -> tuple[int, int]:
    """How many events of a session that ended are there, or were and made room for others; how many were lost."""
    if kind == "map":
        try:
            counted = session.maps["calls"].get(1, 0)
        except bpfnb.BpfnbError:
            return 0, 0  # the tracer died with it
        return int(counted), session.maps["calls"].lost
    output = session.outputs["printk" if kind == "printk" else "events"]
    len(output.df)
    return output.rows, output.lost


def _suspend_for(seconds: float) -> None:
    """Have this process stopped, and continued."""
    script = f"kill -STOP {os.getpid()}; sleep {seconds}; kill -CONT {os.getpid()}"
    subprocess.Popen(["sh", "-c", script]).wait()


# --- the others ---------------------------------------------------------------------------------------------------


def many(cycles: int, say: Callable[[str], object]) -> list[Result]:
    """Fifty sessions with ten probes each stay, while another comes and goes."""
    names = sorted(bpf_raw_tracepoints())[:10]
    source = "BPF_ARRAY(runs, u64, 1); int f(void *ctx) { runs.increment(0); return 0; }"
    began, levels = time.monotonic(), Levels()
    stay = [
        bpfnb.trace(source, name=f"s{n}", attach=[(f"rawtracepoint:{name}", "f") for name in names]) for n in range(50)
    ]
    attached = sum(len(session.probes) for session in stay)
    done = 0
    try:
        for _ in range(cycles):
            with bpfnb.trace(source, name="goes", attach={"rawtracepoint:task_rename": "f"}) as goes:
                len(goes.maps["runs"].df)
            done += 1
            if done % 20 == 0:
                levels.look()
            if done % 200 == 0:
                say(f"many: {done:,} of {cycles:,} cycles in {time.monotonic() - began:.0f} s")
        running = sum(session.state == "running" for session in stay)
    finally:
        bpfnb.stop_all()
    amount = f"{done:,} cycles beside {attached} probes"
    return [Result("sessions that stay", amount, f"{running} of 50 ran on", running == 50), *levels.results()]


def bpf_raw_tracepoints() -> list[str]:
    """Tracepoints that are seldom passed."""
    names = ["task_rename", "task_newtask", "sched_process_fork", "sched_process_exec", "sched_process_exit"]
    return [*names, "sched_process_free", "signal_generate", "signal_deliver", "sched_process_wait", "sched_wait_task"]


def interrupts(count: int, say: Callable[[str], object]) -> list[Result]:
    report = ctrl_c.run(count, seed=int(time.time()), say=lambda text: say(f"interrupts: {text}"))
    text = f"{report.hangs} hangs, {report.orphans} orphans, {report.wrong} rows wrong, {report.again} pressed again"
    right = (report.hangs, report.orphans, report.wrong) == (0, 0, 0)
    return [Result("Ctrl-C at random moments", f"{report.interrupts:,}", text, right)]


def killing(count: int, say: Callable[[str], object]) -> list[Result]:
    report = kills.run(count, seed=int(time.time()), say=lambda text: say(f"kills: {text}"))
    for text in report.wrong:
        say(f"  WRONG: {text}")
    found = f"{len(report.wrong)} wrong; all gone after {report.slowest:.1f} s at most"
    return [Result("kill -9 at random moments", str(report.kills), found, not report.wrong)]


def tests(say: Callable[[str], object]) -> list[Result]:
    """The faults lane's long forms."""
    environment = {
        **os.environ,
        "BPFNB_KERNEL_TESTS": "1",
        "BPFNB_FRAMES": "100000",
        "BPFNB_MUTATED_FILES": "5000",
    }
    found = []
    for name in ("test_fuzzed_frames.py", "test_mutated_files.py"):
        if not (ROOT / "tests/faults" / name).exists():
            say(f"tests: there is no {name}")
            continue
        command = [sys.executable, "-m", "pytest", "-q", "--timeout=7200", f"tests/faults/{name}"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        last = (done.stdout.strip().splitlines() or ["nothing"])[-1]
        say(f"tests: {name}: {last}")
        found.append(Result(name, "long", last, done.returncode == 0))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0, help="of mixed load (1)")
    parser.add_argument("--interrupts", type=int, default=20_000, metavar="N", help="Ctrl-C (20,000)")
    parser.add_argument("--kills", type=int, default=300, metavar="N", help="kill -9 (300)")
    parser.add_argument("--cycles", type=int, default=2_000, metavar="N", help="beside fifty sessions (2,000)")
    parser.add_argument("--only", action="append", choices=KINDS, help="just this; may be given again")
    args = parser.parse_args()
    results: list[Result] = []
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{datetime.timedelta(seconds=int(time.monotonic() - began))}] {text}", flush=True)

    before = {kind: bpf_ids(kind) for kind in ("program", "map", "link")}
    parts: dict[str, Callable[[], list[Result]]] = {
        "mixed": lambda: mixed(args.hours * 3600, say),
        "many": lambda: many(args.cycles, say),
        "interrupts": lambda: interrupts(args.interrupts, say),
        "kills": lambda: killing(args.kills, say),
        "tests": lambda: tests(say),
    }
    interrupted = False
    for name in args.only or KINDS:
        try:
            results += parts[name]()
        except KeyboardInterrupt:
            interrupted = True
            say("interrupted")
            break
    bpfnb.stop_all()
    held = {
        (kind, number)
        for kind, number in processes.objects(default_host.connect().hello().pid)
        if number not in before[kind]
    }
    default_host.close()
    time.sleep(1)
    left = [f"{kind} {number}" for kind, number in held if number in bpf_ids(kind)]
    results.append(Result("left in the kernel", "of the last tracer's", ", ".join(left) or "nothing", not left))
    left_threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    results.append(Result("threads left", "", ", ".join(left_threads) or "none", not left_threads))
    widths = [max(len(row[column]) for row in results) for column in range(3)]
    for row in results:
        cells = (row[column].ljust(width) for column, width in enumerate(widths))
        print("ok   " if row.right else "WRONG", *cells, sep="  ")
    return int(interrupted or not all(row.right for row in results))


if __name__ == "__main__":
    sys.exit(main())
