"""A workload that knows itself: processes made in four ways and disks synced, counted exactly.

Run it (``python workload.py --help``) or, in a notebook, ``work = workload.start(forks=20)`` and later
``work.result()``. The count is of what the workload's own processes did, so a trace that filters on those processes
must find exactly that many lines.

Reading, waiting, touching memory, searching files and burning processor time are each done by a child of its own, named
"reader", "waiter", "toucher", "searcher" and "burner". It does that and nothing else: the reader's calls of read() are
just those asked for.

Which syscall makes a process depends on who asks: C's fork() calls clone, posix_spawn() calls clone3 (in glibc 2.34 and
newer; before, clone), Python's subprocess calls vfork, a bash subshell calls clone.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import mmap
import os
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_TRUE = shutil.which("true") or "/bin/true"
_BASH = shutil.which("bash") or "/bin/bash"


class Workload:
    """A workload under way in a process of its own, ``pid``."""

    def __init__(self, **counts: float) -> None:
        options = [f"--{name}={value}" for name, value in counts.items()]
        self._process = subprocess.Popen([sys.executable, "-I", __file__, *options], stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid

    def result(self) -> dict[str, Any]:
        """Wait for its end: {"processes": {pid: creations}, "created": their sum, "syncs": ..., "sync_pid": ...,
        "children": {"reader": pid, ...}}, in "children" only those asked for."""
        output, _ = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(f"the workload failed with exit status {self._process.returncode}")
        done: dict[str, Any] = json.loads(output)
        done["processes"] = {int(pid): count for pid, count in done["processes"].items()}
        return done


def start(**counts: float) -> Workload:
    """Start one: forks=, vforks=, spawns=, subshells=, syncs= (how many of each), seconds= (spread over how long).

    And by children of its own, at once:

    reads=    "reader" reads so many times from /dev/zero: 1 byte, 2, 4, and so on to 4096, then 1 again
    waits=    "waiter" reads so many times from a terminal where nobody types, and gives up after a tenth of a second
    pages=    "toucher" writes to so many pages of memory that it never wrote to before
    searches= "searcher" looks for a file so many times: in three folders that have it not, then where it is
    burn=     "burner" uses so many seconds of processor time, in turn for sums and for random numbers of the kernel's
    """
    return Workload(**counts)


def run(
    forks: int,
    vforks: int,
    spawns: int,
    subshells: int,
    syncs: int,
    seconds: float,
    reads: int,
    waits: int,
    pages: int,
    searches: int,
    burn: float,
) -> dict[str, Any]:
    """Do it all, evenly mixed over ``seconds``, in this process and its children."""
    processes: dict[int, int] = {}
    children: dict[str, int] = {}

    def count(pid: int, creations: int) -> None:
        processes[pid] = processes.get(pid, 0) + creations

    def bash() -> None:
        # Started by a vfork of ours; its subshells are clones of its own. The last ":" keeps bash from becoming one.
        shell = subprocess.Popen([_BASH, "-c", "(:); (:); :"])
        shell.wait()
        count(os.getpid(), 1)
        count(shell.pid, 2)

    def creating(make: Callable[[], object]) -> Callable[[], None]:
        def act() -> None:
            make()
            count(os.getpid(), 1)

        return act

    def child(name: str, act: Callable[[Any], object], amount: float) -> None:
        if amount:
            children[name] = _child(name, lambda: act(amount))
            count(os.getpid(), 1)

    child("reader", _read, reads)
    child("waiter", _wait, waits)
    child("toucher", _touch, pages)
    child("searcher", _search, searches)
    child("burner", _burn, burn)
    sync = ctypes.CDLL(None).sync
    actions = _mixed(
        [
            (forks, creating(_fork)),
            (vforks, creating(lambda: subprocess.run([_TRUE], check=True))),
            (spawns, creating(_spawn)),
            (subshells // 2, bash),
            (syncs, sync),
        ]
    )
    begun = time.monotonic()
    for i, action in enumerate(actions):
        time.sleep(max(0.0, begun + seconds * i / len(actions) - time.monotonic()))
        action()
    time.sleep(max(0.0, begun + seconds - time.monotonic()))
    for name, pid in children.items():
        if os.waitpid(pid, 0)[1]:
            raise RuntimeError(f"the {name} failed")
    created = sum(processes.values())
    done = {"processes": processes, "created": created, "syncs": syncs, "sync_pid": os.getpid()}
    return done | {"children": children}


def _fork() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _spawn() -> None:
    os.waitpid(os.posix_spawn(_TRUE, [_TRUE], os.environ), 0)


def _child(name: str, act: Callable[[], object]) -> int:
    """Fork a child of this name that acts and ends."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            Path("/proc/self/comm").write_text(name)
            act()
            status = 0
        finally:
            os._exit(status)
    return pid


def _read(times: int) -> None:
    zeros = os.open("/dev/zero", os.O_RDONLY)
    for size in itertools.islice(itertools.cycle(2**power for power in range(13)), times):
        os.read(zeros, size)


def _wait(times: int) -> None:
    _, terminal = os.openpty()
    mode = termios.tcgetattr(terminal)
    mode[3] &= ~termios.ICANON  # do not wait for the end of a line
    mode[6][termios.VMIN], mode[6][termios.VTIME] = 0, 1  # but for a tenth of a second
    termios.tcsetattr(terminal, termios.TCSANOW, mode)
    for _ in range(times):
        os.read(terminal, 1)


def _touch(pages: int) -> None:
    memory = mmap.mmap(-1, pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)  # each page comes by itself
    for begin in range(0, len(memory), mmap.PAGESIZE):
        memory[begin] = 1


def _search(times: int) -> None:
    for _ in range(times):
        for folder in ("/nonexistent/a", "/nonexistent/b", "/nonexistent/c", "/etc"):
            with suppress(FileNotFoundError):
                os.close(os.open(f"{folder}/passwd", os.O_RDONLY))


def _burn(seconds: float) -> None:
    random = os.open("/dev/urandom", os.O_RDONLY)
    while time.process_time() < seconds:
        sum(n * n for n in range(10_000))
        os.read(random, 1 << 18)


def _mixed(kinds: list[tuple[int, Callable[[], object]]]) -> list[Callable[[], object]]:
    """Every action as often as asked for, each kind spread evenly over the whole."""
    placed = [((i + 0.5) / times, n, action) for n, (times, action) in enumerate(kinds) for i in range(times)]
    return [action for _, _, action in sorted(placed, key=lambda p: p[:2])]


def main() -> None:
    parser = argparse.ArgumentParser(description="Make processes and sync disks, a known number of times.")
    parser.add_argument("--forks", type=int, default=0, help="processes made by fork()")
    parser.add_argument("--vforks", type=int, default=0, help="programs run by vfork() and exec")
    parser.add_argument("--spawns", type=int, default=0, help="programs run by posix_spawn()")
    parser.add_argument("--subshells", type=int, default=0, help="bash subshells, an even number")
    parser.add_argument("--syncs", type=int, default=0, help="calls of sync()")
    parser.add_argument("--reads", type=int, default=0, help="reads that return at once, by a child")
    parser.add_argument("--waits", type=int, default=0, help="reads that wait for a tenth of a second, by a child")
    parser.add_argument("--pages", type=int, default=0, help="pages of fresh memory written to, by a child")
    parser.add_argument("--searches", type=int, default=0, help="searches of a file in four folders, by a child")
    parser.add_argument("--burn", type=float, default=0.0, help="seconds of processor time used, by a child")
    parser.add_argument("--seconds", type=float, default=0.0, help="spread over so many seconds")
    print(json.dumps(run(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
