"""What a test must not leave behind: descriptors, threads, processes, BPF objects, tracefs instances."""

from __future__ import annotations

import ctypes
import gc
import os
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path

from processes import children, command, descriptors, everyone, objects, parent

_SYS_BPF = {"x86_64": 321, "aarch64": 280}.get(os.uname().machine, 0)
# include/uapi/linux/bpf.h, enum bpf_cmd
_NEXT_ID = {"program": 11, "map": 12, "link": 31}
TIMEOUT = 10.0  # seconds: the kernel frees programs after an RCU grace period, threads end when they are scheduled
# With other tracers at work on this machine: they may be detaching, which takes the kernel so long, and meanwhile no
# descriptor tells whose a program is.
TIMEOUT_WITH_OTHERS = 40.0

_libc = ctypes.CDLL(None, use_errno=True)


def bpf_ids(kind: str) -> set[int]:
    """The ids of every BPF program, map or link on this machine; none where we may not ask."""
    ids: set[int] = set()
    current = 0
    while True:
        attr = ctypes.create_string_buffer(struct.pack("II", current, 0), 64)
        if _libc.syscall(_SYS_BPF, _NEXT_ID[kind], attr, 64) != 0:
            return ids
        current = struct.unpack_from("II", attr)[1]
        ids.add(current)


def others(tracer: int) -> bool:
    """Whether tracers run on this machine that are neither ours nor our children's."""
    ours = {os.getpid(), tracer}
    return any("bpfnb.tracer" in command(pid) and not ours & _lineage(pid) for pid in everyone())


def _lineage(pid: int) -> set[int]:
    """A process and its ancestors, as long as they live."""
    lineage = set()
    with suppress(OSError):
        while pid > 1:
            lineage.add(pid)
            pid = parent(pid)
    return lineage


def instances(tracer: int = 0) -> set[str]:
    """bpfnb's tracefs instances, but for those of other living tracers: other notebooks of this machine."""
    names = {path.name for path in Path("/sys/kernel/tracing/instances").glob("bpfnb-*")}
    owners = {name: int(name.split("-")[1]) for name in names}
    return {name for name, owner in owners.items() if owner == tracer or not Path(f"/proc/{owner}").exists()}


def probes() -> set[str]:
    """Our dynamic events in tracefs: bcc makes them where it may not open a perf event, and nobody takes them out."""
    found = set()
    for name in ("kprobe_events", "uprobe_events"):
        with suppress(OSError):  # a kernel without, or not ours to read
            lines = Path("/sys/kernel/tracing", name).read_text().splitlines()
            found |= {line for line in lines if "bpfnb" in line}
    return found


def held_elsewhere(kind: str, ours: set[int]) -> set[int]:
    """Ids of BPF objects that processes other than ours hold open: somebody else's, not our leak."""
    found = set()
    for pid in everyone() - ours:
        with suppress(OSError):  # it has ended, or is not ours to read
            found |= {number for what, number in objects(pid) if what == kind}
    return found


class Baseline:
    """What there was before a test. ``check`` says what there is more of now. ``tracer``: a process to watch, or 0."""

    def __init__(
        self, tracer: int = 0, timeout: float = TIMEOUT, timeout_with_others: float = TIMEOUT_WITH_OTHERS
    ) -> None:
        self._timeout = timeout
        self._timeout_with_others = timeout_with_others
        self._tracer = tracer
        self._before = self._now()

    def check(self) -> list[str]:
        """What is left over, after giving it a moment to go; [] when all is well.

        That is what was there from the first look to the last: what comes only later is somebody else's.
        """
        begun = time.monotonic()
        left = set(self._left())
        while left:
            passed = time.monotonic() - begun
            if passed > self._timeout and (passed > self._timeout_with_others or not others(self._tracer)):
                break
            gc.collect()
            time.sleep(0.02)
            left &= set(self._left())
        return sorted(left)

    def _now(self) -> dict[str, set[str]]:
        state = {
            "thread": {thread.name for thread in threading.enumerate()},
            "process": {str(pid) for pid in children()},
            "descriptor": {f"{fd}: {target}" for fd, target in descriptors(os.getpid()).items()},
            "tracefs instance": instances(self._tracer),
            "tracefs probe": probes(),
            **{f"BPF {kind}": {str(i) for i in bpf_ids(kind)} for kind in _NEXT_ID},
        }
        if self._tracer:
            state["tracer descriptor"] = {f"{fd}: {target}" for fd, target in descriptors(self._tracer).items()}
        return state

    def _left(self) -> list[str]:
        now = self._now()
        new = {kind: names - self._before.get(kind, set()) for kind, names in now.items()}
        ours = {os.getpid(), self._tracer}
        for kind in _NEXT_ID:
            if new[f"BPF {kind}"]:
                new[f"BPF {kind}"] -= {str(i) for i in held_elsewhere(kind, ours)}
        return [f"{kind} {name}" for kind, names in new.items() for name in sorted(names)]
