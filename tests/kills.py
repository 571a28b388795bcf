"""kill -9 of anything at random moments: the notebook, or one of its tracer's processes. ``run``."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from leaks import bpf_ids, instances
from processes import alive, children, objects, parent

import bpfnb
from bpfnb.hosts import default_host

VICTIMS = ("worker", "supervisor", "compiler", "cell", "notebook")
_LIMIT = 10.0  # seconds for everything to be gone
_SOURCE = 'BPF_HASH(counts, u32, u64); int f(void *ctx) { u32 k = 0; counts.increment(k); bpf_trace_printk("x\\n"); '
_SOURCE += "return 0; }"
_ATTACH = {"rawtracepoint:task_rename": "f"}
_NOTEBOOK = f"""
import bpfnb
from bpfnb.hosts import default_host
print(default_host.connect().hello().pid, flush=True)
while True:
    session = bpfnb.trace({_SOURCE!r}, name="s", attach={_ATTACH!r})
    session.df, session.maps["counts"].df
    session.stop()
"""


class Report(NamedTuple):
    """``wrong``: what did not hold, in words. ``slowest``: seconds until all was gone, of the slowest."""

    kills: int
    wrong: list[str]
    slowest: float


def run(count: int, seed: int = 0, say: Callable[[str], object] = lambda text: None) -> Report:
    """Kill so many times."""
    dice = random.Random(seed)
    wrong: list[str] = []
    slowest = 0.0
    for number in range(count):
        victim = VICTIMS[number % len(VICTIMS)]
        kill = _kill_notebook if victim == "notebook" else _kill_tracer
        faults, seconds = kill(victim, 10 ** dice.uniform(-3, -0.3))
        wrong += [f"{number}, {victim}: {fault}" for fault in faults]
        slowest = max(slowest, seconds)
        if (number + 1) % 50 == 0:
            say(f"{number + 1} of {count} kills, slowest {slowest:.1f} s")
    return Report(count, wrong, slowest)


def _kill_tracer(victim: str, delay: float) -> tuple[list[str], float]:
    """A process of this notebook's tracer dies, while sessions are started and read; then another tracer is there."""
    worker = default_host.connect().hello().pid
    held: set[tuple[str, int]] = set()
    began = [time.monotonic()]
    processes = _processes(worker)

    def kill() -> None:
        time.sleep(delay)
        with suppress(OSError):  # it has been killed
            held.update(objects(worker))
        began[0] = time.monotonic()
        with suppress(ProcessLookupError, KeyError):
            os.kill(_processes(worker)[victim], signal.SIGKILL)

    faults = []
    stays = bpfnb.trace(_SOURCE, name="stays", attach=_ATTACH)
    events = _Events()
    killer = threading.Thread(target=kill)
    killer.start()
    seen = 0
    try:
        while killer.is_alive() or time.monotonic() < began[0] + 0.2:
            seen = max(seen, events.of(stays.df))
            bpfnb.trace(_SOURCE, name="goes", attach=_ATTACH).stop()
    except bpfnb.TracerDied as error:
        faults += [f"more than a line: {error}"] if "\n" in str(error) else []
    except bpfnb.InternalError as error:  # the compiler's child was killed: that cell alone fails
        faults += [] if victim == "cell" else [f"{type(error).__name__}: {error}"]
    except bpfnb.BpfnbError as error:
        faults += [] if victim == "cell" else [f"{type(error).__name__}: {error}"]
    killer.join()
    if victim == "cell":
        events.end()
        stays.stop()
        if events.of(stays.df) + stays.lost != events.made:
            faults.append("rows are gone")
        return faults + [f"it is {stays.state}" for _ in "x" if stays.state != "stopped"], 0.0
    if not stays.wait(_LIMIT):
        faults.append(f"the session is {stays.state} still")
    events.end()
    while bpfnb.sessions() and time.monotonic() < began[0] + _LIMIT:
        time.sleep(0.01)  # one hears of it after the other
    if (stays.state, bpfnb.sessions()) != ("failed", {}) or not stays.reason:
        faults.append(f"it is {stays.state}, for {stays.reason!r}; running: {list(bpfnb.sessions())}")
    mine = events.of(stays.df)
    if mine < seen or mine > events.made:
        faults.append(f"{mine} rows, of {events.made}, after {seen} had been seen")
    return faults + _gone(worker, processes.values(), held), time.monotonic() - began[0]


def _kill_notebook(victim: str, delay: float) -> tuple[list[str], float]:
    notebook = subprocess.Popen([sys.executable, "-c", _NOTEBOOK], stdout=subprocess.PIPE, text=True)
    try:
        assert notebook.stdout
        worker = int(notebook.stdout.readline())
        time.sleep(delay)
        held, processes = objects(worker), _processes(worker)
    finally:
        notebook.kill()
        began = time.monotonic()
        notebook.communicate()
    return _gone(worker, processes.values(), held), time.monotonic() - began


class _Events:
    """Makes events in a thread, and counts them."""

    def __init__(self) -> None:
        self.made = 0
        self._going = True
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        comm = Path(f"/proc/self/task/{threading.get_native_id()}/comm")
        while self._going:
            self.made += 1
            comm.write_text("producer")
            time.sleep(0.001)

    def of(self, frame: pd.DataFrame) -> int:
        """How many of a session's rows are these."""
        return int((frame.pid == self._thread.native_id).sum())

    def end(self) -> None:
        self._going = False
        self._thread.join()


def _processes(worker: int) -> dict[str, int]:
    found = {"worker": worker, "supervisor": parent(worker)}
    for name, above in (("compiler", worker), ("cell", 0)):
        if started := children(above or found.get("compiler", worker)):
            found[name] = min(started)
    return found


def _gone(worker: int, processes: object, held: set[tuple[str, int]]) -> list[str]:
    """What is left of a tracer after a while; nothing, when all is well."""
    deadline = time.monotonic() + _LIMIT
    while True:
        left = [f"process {pid} is there" for pid in processes if alive(pid)]  # type: ignore[attr-defined]
        left += [f"{kind} {number} is there" for kind, number in held if number in bpf_ids(kind)]
        left += [f"{name} is there" for name in instances(worker) if f"-{worker}-" in name]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)
