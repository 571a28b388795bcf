"""Processes that a filter names: their numbers here, and what they have started.

A notebook may be in another pid namespace than the tracer. The kernel tests numbers of the host's, the first namespace;
so does the tracer, which is expected to run there.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from bpfnb.errors import ProgramError, UnsupportedError, printable
from bpfnb.tracer.kernel import capabilities

__all__ = ["Process", "children", "find", "started"]

_HOST = 0xEFFFFFFC  # the inode of the first pid namespace (Linux: include/uapi/linux/nsfs.h, PID_NS_INIT_INO)
_NS_GET_PARENT = 0xB702  # include/uapi/linux/nsfs.h
_PROC = Path("/proc")


class Process(NamedTuple):
    """``pid``: as the host numbers it. ``started``: when, as /proc/PID/stat has it: with the pid it is unique."""

    pid: int
    started: int


def find(option: str, pid: int, peer: int) -> Process:
    """Return the process that the notebook, process ``peer``, calls ``pid``. ProgramError where it is none.

    ``option``: of the session, for messages. UnsupportedError where numbers cannot be translated.
    """
    if _namespace("self") != _HOST:
        what = "and so cannot tell by which number the kernel knows a process"
        raise UnsupportedError(f"{option} cannot be had: the tracer runs in a pid namespace of its own, {what}")
    here = _translated(pid, peer)
    status = _status(here) if here else {}
    if not status or status.get("State", "").startswith(("Z", "X")):
        raise ProgramError(f"{option}={pid}: there is no such process")
    if (leader := int(status["Tgid"])) != here:
        name = printable(status.get("Name", ""))
        which = f"write {option}={leader}" if here == pid else ""
        raise ProgramError(f"{option}={pid} is a thread ({name}), not a process", hint=which or None)
    when = started(here)
    if when is None:
        raise ProgramError(f"{option}={pid}: there is no such process")
    return Process(here, when)


def started(pid: int) -> int | None:
    """Return when a process started, in ticks since the machine did; None where there is none."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def children() -> dict[int, list[Process]]:
    """Return whose parent each process is, by pid."""
    found: dict[int, list[Process]] = {}
    for pid in _pids():
        if fields := _stat(pid):
            found.setdefault(int(fields[1]), []).append(Process(pid, int(fields[19])))
    return found


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third, the state, on; [] where there is no such process."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _status(pid: int) -> dict[str, str]:
    try:
        lines = (_PROC / str(pid) / "status").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _pids() -> Iterator[int]:
    return (int(path.name) for path in _PROC.iterdir() if path.name.isdecimal())


# --- namespaces ---------------------------------------------------------------------------------------------------


def _namespace(pid: str | int) -> int:
    """Return the inode of a process's pid namespace."""
    with capabilities.with_sys_ptrace():
        return (_PROC / str(pid) / "ns/pid").stat().st_ino


def _translated(pid: int, peer: int) -> int:
    """Return the pid here of what the notebook calls ``pid``; 0 where there is none."""
    try:
        theirs = _namespace(peer) if peer else 0
    except OSError:
        theirs = 0
    if theirs == _namespace("self"):
        return pid
    if not theirs:
        raise UnsupportedError("the notebook's pid namespace is not known here, and so not which process is meant")
    depth = len(_status(peer).get("NSpid", "").split()) - 1
    for candidate in _pids():
        numbers = _status(candidate).get("NSpid", "").split()
        if len(numbers) > depth and numbers[depth] == str(pid) and _is_inside(candidate, theirs):
            return candidate
    return 0


def _is_inside(pid: int, namespace: int) -> bool:
    """Return whether a process is in a pid namespace, or in one below it."""
    try:
        with capabilities.with_sys_ptrace():
            fd = os.open(_PROC / str(pid) / "ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    while True:
        try:
            if os.fstat(fd).st_ino == namespace:
                return True
            above = fcntl.ioctl(fd, _NS_GET_PARENT)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EINVAL):
                raise
            return False
        finally:
            with suppress(OSError):
                os.close(fd)
        fd = above
