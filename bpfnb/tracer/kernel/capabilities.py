"""The capabilities the tracer keeps, and dropping the rest.

Numbers are those of Linux's include/uapi/linux/capability.h. Loading needs CAP_BPF and CAP_PERFMON. CAP_DAC_READ_SEARCH
reads tracefs and other users' executables (uprobes). The tracer stays user 0 where it started as user 0: tracefs lets
only its owner make instances. Without capabilities, user 0 is merely the owner of root's files.

Three more stay permitted, and each is effective only inside its context manager:

- CAP_SYS_ADMIN (``with_sys_admin``), while probes are attached. Where kernel.perf_event_paranoid is above 2, as on
  Debian and Ubuntu, every perf event needs it, and probes are perf events; elsewhere uprobes need it (tried on 6.18).
  Compiling a cell with a pinned map needs it as well: bcc opens the map by its number (pins.py).
- CAP_IPC_LOCK (``with_ipc_lock``), while perf buffers are mapped that are larger than every user may have.
- CAP_SYS_PTRACE (``with_sys_ptrace``), while files are opened that other users' processes have mapped, for the names of
  their functions, or that probes name by a path through such a process.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from bpfnb.errors import PrivilegeError, SetupError
from bpfnb.tracer.kernel import tracefs
from bpfnb.tracer.kernel.uapi import Capability

__all__ = [
    "drop",
    "forgo",
    "has",
    "mount",
    "mount_tracefs",
    "raised",
    "require",
    "with_ipc_lock",
    "with_sys_admin",
    "with_sys_ptrace",
]

_KEPT = (Capability.DAC_READ_SEARCH, Capability.PERFMON, Capability.BPF)
BECOMING = (Capability.SETGID, Capability.SETUID)  # to take on another user's file permissions (impersonate.py)
READING = (Capability.DAC_READ_SEARCH, Capability.SYS_PTRACE)  # to read what others may not

_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 23, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def require() -> None:
    """Raise PrivilegeError when this process may not trace."""
    held, _ = _held()
    if Capability.SYS_ADMIN not in held and not {Capability.PERFMON, Capability.BPF} <= held:
        raise PrivilegeError(
            f"user {os.geteuid()} may not load BPF programs: CAP_BPF and CAP_PERFMON are missing",
            hint="run as root, allow `sudo -n`, or give this process CAP_BPF, CAP_PERFMON and CAP_DAC_READ_SEARCH",
        )


def mount_tracefs() -> None:
    """Mount tracefs where the system has not, as trace-cmd and perf do. Do nothing where we may not mount."""
    try:
        tracefs.root()
    except SetupError:
        mount("tracefs", Path("/sys/kernel/tracing"))


def mount(kind: str, target: Path) -> None:
    """Mount a kernel file system on ``target``. Do nothing where there is no such folder or we may not mount."""
    if target.is_dir():
        with with_sys_admin():
            _libc.mount(b"nodev", bytes(target), kind.encode(), 0, None)


def drop(also: Collection[int] = ()) -> None:
    """Drop every capability but the three, for good: for this process and all that it starts.

    CAP_IPC_LOCK, CAP_SYS_PTRACE, CAP_SYS_ADMIN and those of ``also`` stay permitted, but not effective.
    """
    held, _ = _held()
    effective = [c for c in _KEPT if c in held]
    keep = [*effective, *({Capability.IPC_LOCK, Capability.SYS_PTRACE, Capability.SYS_ADMIN, *also} & held)]
    if Capability.SYS_ADMIN in held and not {Capability.PERFMON, Capability.BPF} <= held:
        effective.append(Capability.SYS_ADMIN)  # kernels before 5.8 have only this one
    capability = 0
    while _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0) >= 0:
        if capability not in keep:
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # refused without CAP_SETPCAP: then it is bounded below
        capability += 1
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _set(effective, keep)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def forgo(*capabilities: int) -> None:
    """Drop these from this thread's effective and permitted capabilities, for good."""
    gone = set(capabilities)
    effective, permitted = _held()
    _set(effective - gone, permitted - gone)


def has(*capabilities: int) -> bool:
    """Return whether these are permitted."""
    return set(capabilities) <= _held()[1]


@contextmanager
def with_sys_admin() -> Iterator[None]:
    """Make CAP_SYS_ADMIN effective inside, if it was kept. Capabilities are per thread: only for this thread."""
    with raised(Capability.SYS_ADMIN):
        yield


@contextmanager
def with_ipc_lock() -> Iterator[None]:
    """Make CAP_IPC_LOCK effective inside, if it was kept, for this thread: memory may be locked beyond the limits."""
    with raised(Capability.IPC_LOCK):
        yield


@contextmanager
def with_sys_ptrace() -> Iterator[None]:
    """Make CAP_SYS_PTRACE effective inside, if it was kept, for this thread: it may inspect other users' processes."""
    with raised(Capability.SYS_PTRACE):
        yield


@contextmanager
def raised(*capabilities: int) -> Iterator[None]:
    """Make these effective inside, as far as they are permitted, for this thread."""
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
    """Return this thread's effective and permitted capabilities: capget(2). Uses no descriptor."""
    data = (ctypes.c_uint32 * 6)()
    if _libc.capget(_header(), data):
        raise _failed("capget")
    effective, permitted = (data[i] | data[i + 3] << 32 for i in (0, 1))
    return _bits(effective), _bits(permitted)


def _set(effective: Collection[int], permitted: Collection[int]) -> None:
    """Set this thread's effective and permitted capabilities to exactly these, and inheritable to none: capset(2)."""
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
