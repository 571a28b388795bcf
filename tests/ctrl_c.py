"""Ctrl-C at random moments of what a notebook does, thousands of times: ``run``. The notebook is a process of its own,
so that one which hangs can be told from one which does not."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from processes import children, objects, threads

_PATIENCE = 10.0  # seconds until Ctrl-C is pressed again
_PRESSES = 6  # without an answer are a hang
_SOURCE = r"""
BPF_HASH(counts, u32, u64, 1024);
int f(void *ctx) {
    u32 key = bpf_get_smp_processor_id();
    counts.increment(key);
    bpf_trace_printk("x\n");
    return 0;
}
"""
_ATTACH = {"rawtracepoint:task_rename": "f"}


class Report(NamedTuple):
    """What came of it. ``by``: interrupts by what they came in. ``orphans``: sessions or programs that nobody had."""

    interrupts: int
    again: int  # times it had to be pressed again: Python drops a KeyboardInterrupt that comes amid a finaliser
    hangs: int
    orphans: int
    wrong: int  # rows of the session that stays, missing or too many at the end
    by: dict[str, int]
    seconds: float


def run(count: int, seed: int = 0, say: Callable[[str], object] = lambda text: None) -> Report:
    """Interrupt so many times; the first hang ends it, and its threads' stacks are said."""
    began = time.monotonic()
    dice = random.Random(seed)
    command = [sys.executable, __file__, str(count), str(seed)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    assert child.stdout
    hung, done, again, lines = False, 0, 0, b""
    try:
        while True:
            presses = 0
            while not select.select([child.stdout], [], [], _PATIENCE)[0] and presses < _PRESSES:
                child.send_signal(signal.SIGINT)
                presses += 1
            again += presses
            if presses == _PRESSES:
                hung = True
                say(_whereabouts(child.pid))
                child.send_signal(signal.SIGUSR1)  # faulthandler's
                time.sleep(1)
                break
            read = child.stdout.read(1)
            if read != b".":
                lines = read + child.stdout.read()
                break
            time.sleep(10 ** dice.uniform(-5, -1.3))
            child.send_signal(signal.SIGINT)
            if dice.random() < 0.1:  # an impatient one
                time.sleep(10 ** dice.uniform(-5, -3))
                child.send_signal(signal.SIGINT)
            done += 1
            if done % 1000 == 0:
                say(f"{done:,} of {count:,} interrupts in {time.monotonic() - began:.0f} s")
    finally:
        child.kill()
        _, stderr = child.communicate()
    if hung or child.returncode not in (0, -signal.SIGKILL) or not lines.strip():
        say(stderr.decode(errors="replace")[-8000:])
        return Report(done, again, 1, 0, 0, {}, time.monotonic() - began)
    found: dict[str, Any] = json.loads(lines)
    return Report(done, again, 0, found["orphans"], found["wrong"], found["by"], time.monotonic() - began)


def _whereabouts(pid: int) -> str:
    """Where the threads of a process and of those it started are in the kernel."""
    try:
        names, stacks = threads(pid, "comm"), threads(pid, "stack")
    except OSError:
        return ""  # it has ended
    found = ""
    for task, stack in stacks.items():
        places = " ".join(line.split()[-1] for line in stack.splitlines()[:8])
        found += f"{pid} {task} {names.get(task, '').strip()}: {places}\n"
    return found + "".join(map(_whereabouts, children(pid)))


# --- the notebook -------------------------------------------------------------------------------------------------


def _notebook(count: int, seed: int) -> None:
    import bpfnb
    from bpfnb.hosts import default_host

    faulthandler.register(signal.SIGUSR1, all_threads=True)
    dice = random.Random(seed)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keeper = bpfnb.trace(_SOURCE, name="keeper", attach=_ATTACH)
    counts = keeper.maps["counts"]
    worker = default_host.connect().hello().pid
    programs = _programs(worker)
    mine: list[Any] = []
    producer = _Producer()

    def trace() -> None:
        mine.clear()
        mine.append(bpfnb.trace(_SOURCE, name="goes", attach=_ATTACH))
        mine[0].stop()

    def stop() -> None:
        trace()

    def live() -> None:
        panel = keeper.live()
        panel.close()

    acts: dict[str, tuple[Callable[[], object], int]] = {
        "trace": (trace, 20),
        "stop": (stop, 10),
        "df": (lambda: keeper.df, 25),
        "get": (lambda: counts.get(0, 0), 25),
        "maps": (lambda: (counts.df, counts.drain()), 15),
        "live": (live, 2),
        "wait": (lambda: keeper.wait(0.01), 3),
    }
    by = dict.fromkeys(acts, 0)
    orphans = 0
    for _ in range(count):
        what = dice.choices(list(acts), [weight for _, weight in acts.values()])[0]
        act = acts[what][0]
        if what == "stop":
            _quietly(trace)
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.write(1, b".")
            while True:
                act()
        except KeyboardInterrupt:
            pass
        while True:
            try:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                break
            except KeyboardInterrupt:  # the impatient one's second
                continue
        by[what] += 1
        listed = [session for name, session in bpfnb.sessions().items() if name != "keeper"]
        orphans += sum(session not in mine for session in listed)
        for session in {*listed, *mine}:
            session.stop()
        if what in ("trace", "stop"):
            orphans += not _settles(lambda: _programs(worker) == programs)
    producer.end()
    keeper.stop()
    frame = keeper.df
    wrong = abs(int((frame.pid == producer.native_id).sum()) + keeper.lost - producer.made)
    os.write(1, json.dumps({"orphans": orphans, "wrong": wrong, "by": by}).encode() + b"\n")


class _Producer(threading.Thread):
    """Makes events, and counts them, where no signal interrupts it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.made = 0
        self._going = True
        self.start()

    def run(self) -> None:
        comm = Path(f"/proc/self/task/{self.native_id}/comm")
        while self._going:
            comm.write_text("producer")
            self.made += 1
            time.sleep(0.002)

    def end(self) -> None:
        self._going = False
        self.join()


def _quietly(act: Callable[[], object]) -> None:
    with contextlib.suppress(Exception):
        act()


def _programs(worker: int) -> set[int]:
    """The BPF programs a process holds."""
    return {number for kind, number in objects(worker) if kind == "program"}


def _settles(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


if __name__ == "__main__":
    _notebook(int(sys.argv[1]), int(sys.argv[2]))
