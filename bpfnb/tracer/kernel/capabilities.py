"""What the tracer may do, and giving up the rest.

Capabilities as in Linux's include/uapi/linux/capability.h. Loading needs CAP_BPF and CAP_PERFMON; CAP_DAC_READ_SEARCH
reads tracefs and other people's executables (uprobes). The tracer stays user 0 where it began so: tracefs lets only
its owner make instances. Without capabilities user 0 is merely the owner of root's files.

Attaching can take CAP_SYS_ADMIN: where kernel.perf_event_paranoid is above 2, as Debian and Ubuntu set it, for every
perf event, which probes are; elsewhere for uprobes (tried on 6.18). So the tracer keeps that one too, but raises it
only while it attaches (``attaching``); compiling and reading run without, but for a cell with a pinned map, which bcc
opens by its number (pins.py). In the same way it keeps CAP_IPC_LOCK, for perf buffers larger than everybody may have
(``locking``), and CAP_SYS_PTRACE, to open what other users' processes have mapped, for the names of their functions,
or what probes name by a path through them (``looking``).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from bpfnb.errors import PrivilegeError, SetupError
from bpfnb.tracer.kernel import tracefs

__all__ = ["attaching", "drop", "forgo", "has", "locking", "looking", "mount", "mount_tracefs", "raised", "require"]

_DAC_READ_SEARCH, _SETGID, _SETUID, _IPC_LOCK, _SYS_PTRACE, _SYS_ADMIN, _PERFMON, _BPF = 2, 6, 7, 14, 19, 21, 38, 39
_KEPT = (_DAC_READ_SEARCH, _PERFMON, _BPF)
BECOMING = (_SETGID, _SETUID)  # to take on another user's file permissions (asker.py)
READING = (_DAC_READ_SEARCH, _SYS_PTRACE)  # to read what others may not

_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 23, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def require() -> None:
    """PrivilegeError when this process may not trace."""
    held, _ = _held()
    if _SYS_ADMIN not in held and not {_PERFMON, _BPF} <= held:
        raise PrivilegeError(
            f"user {os.geteuid()} may not load BPF programs: CAP_BPF and CAP_PERFMON are missing",
            hint="run as root, allow `sudo -n`, or give this process CAP_BPF, CAP_PERFMON and CAP_DAC_READ_SEARCH",
        )


def mount_tracefs() -> None:
    """Mount tracefs where the system has not, as trace-cmd and perf do; quietly not where we may not."""
    try:
        tracefs.root()
    except SetupError:
        mount("tracefs", Path("/sys/kernel/tracing"))


def mount(kind: str, target: Path) -> None:
    """Mount a file system of the kernel's at its usual place, where there is one and we may."""
    if target.is_dir():
        with attaching():
            _libc.mount(b"nodev", bytes(target), kind.encode(), 0, None)


def drop(also: Collection[int] = ()) -> None:
    """Give up every capability but the three, for good: for this process and all it may start.

    CAP_IPC_LOCK, CAP_SYS_PTRACE and CAP_SYS_ADMIN stay at hand, but not in force, and those of ``also``.
    """
    held, _ = _held()
    effective = [c for c in _KEPT if c in held]
    keep = [*effective, *({_IPC_LOCK, _SYS_PTRACE, _SYS_ADMIN, *also} & held)]
    if _SYS_ADMIN in held and not {_PERFMON, _BPF} <= held:
        effective.append(_SYS_ADMIN)  # kernels before 5.8 have only this one
    capability = 0
    while _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0) >= 0:
        if capability not in keep:
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # refused without CAP_SETPCAP: then it is bounded below
        capability += 1
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _set(effective, keep)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def forgo(*capabilities: int) -> None:
    """Give up these of what this thread has in force or at hand, for good."""
    gone = set(capabilities)
    effective, permitted = _held()
    _set(effective - gone, permitted - gone)


def has(*capabilities: int) -> bool:
    """Whether these are at hand."""
    return set(capabilities) <= _held()[1]


@contextmanager
def attaching() -> Iterator[None]:
    """CAP_SYS_ADMIN, if it was kept, is in force inside; for this thread alone, as capabilities are."""
    with raised(_SYS_ADMIN):
        yield


@contextmanager
def locking() -> Iterator[None]:
    """CAP_IPC_LOCK, if it was kept, is in force inside, for this thread: memory may be locked beyond the limits."""
    with raised(_IPC_LOCK):
        yield


@contextmanager
def looking() -> Iterator[None]:
    """CAP_SYS_PTRACE, if it was kept, is in force inside, for this thread: other users' processes may be looked at."""
    with raised(_SYS_PTRACE):
        yield


@contextmanager
def raised(*capabilities: int) -> Iterator[None]:
    """These, as far as they are at hand, are in force inside, for this thread."""
    before, permitted = _held()
    wanted = set(capabilities) & permitted
    if wanted <= before:
        yield
        return
    _set(before | wanted, permitted)
    try:
        yield
    finally:
        _set(before, permitted)


def _held() -> tuple[set[int], set[int]]:
    """capget(2): which capabilities this thread has in force, and which at hand. Takes no descriptor."""
    data = (ctypes.c_uint32 * 6)()
    if _libc.capget(_header(), data):
        raise _failed("capget")
    effective, permitted = (data[i] | data[i + 3] << 32 for i in (0, 1))
    return _bits(effective), _bits(permitted)


def _set(effective: Collection[int], permitted: Collection[int]) -> None:
    """capset(2): these sets become exactly so, inheritable none."""
    masks = [sum(1 << c for c in capabilities) for capabilities in (effective, permitted)]
    data = (ctypes.c_uint32 * 6)(*(m & 0xFFFFFFFF for m in masks), 0, *(m >> 32 for m in masks), 0)
    if _libc.capset(_header(), data):
        raise _failed("capset")


def _header() -> ctypes.Array[ctypes.c_uint32]:
    return (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)  # of this thread


def _bits(mask: int) -> set[int]:
    return {c for c in range(64) if mask >> c & 1}


def _failed(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
