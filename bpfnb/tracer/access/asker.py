"""The user who asks, and compiling with that user's permissions for files.

clang opens what a cell's #include, -I, .incbin and __has_include name, and quotes lines of it in its messages; the
tracer may read every file. So where another user asks, the compiling processes open files as that user: the kernel
checks, whatever way a cell finds to name a file. (setfsuid(2): they stay user 0 otherwise, and go on loading programs.)

What bcc needs and that user may not read it is given in a mount namespace of those processes:

- bcc declares the arguments of a tracepoint by its format file in tracefs, which is root's alone. A tmpfs in its place
  has those that the cell names (``show_formats``).
- Maps are pinned in a bpffs, often root's alone as well. bcc gets one of its own with what is pinned there already
  (``show_pins``), and the worker pins what is new.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from bpfnb.errors import PrivilegeError, ProgramError
from bpfnb.tracer.access import peer
from bpfnb.tracer.kernel import bpf, capabilities

__all__ = ["User", "asking", "reachable", "require", "show_formats", "show_pins", "take_on"]

_TRACEFS, _DEBUGFS = Path("/sys/kernel/tracing"), Path("/sys/kernel/debug")  # where bcc looks
_CLONE_NEWNS, _MS_REC, _MS_SLAVE = 0x20000, 1 << 14, 1 << 19

_libc = ctypes.CDLL(None, use_errno=True)
_libc.setfsuid.restype = _libc.setfsgid.restype = ctypes.c_uint32


User = peer.Peer


def asking(sock: socket.socket) -> User | None:
    """Who is at the other end of a socket; None where that is root, or whom this process runs as: there are nobody's
    permissions to take on."""
    user = peer.of(sock)
    return None if user.uid in (0, os.geteuid()) else user


def require(user: User | None) -> None:
    """PrivilegeError where this process cannot take on a user's permissions."""
    if user and not capabilities.has(*capabilities.BECOMING):
        raise PrivilegeError(
            f"the tracer cannot compile with the file permissions of user {user.uid}",
            hint="it needs CAP_SETUID and CAP_SETGID for that, until it has started",
        )


def take_on(user: User) -> None:
    """Open files as this user from now on, for good: but for ``owning``, and what needs no permission."""
    global _mounted
    with capabilities.with_sys_admin():
        _mounted = _mount_our_own()
    with capabilities.raised(*capabilities.BECOMING):
        os.setgroups(sorted(user.groups))
        _libc.setfsgid(user.gid)
        _libc.setfsuid(user.uid)
    capabilities.forgo(*capabilities.BECOMING, *capabilities.READING)
    if (_libc.setfsuid(-1), _libc.setfsgid(-1)) != (user.uid, user.gid):  # they do not say when they fail
        raise PermissionError(f"files are not opened as user {user.uid}")


@contextmanager
def owning() -> Iterator[None]:
    """Files are opened as user 0 inside: what root owns is root's, and no more."""
    before, mask = _libc.setfsuid(0), os.umask(0)
    try:
        yield
    finally:
        os.umask(mask)
        _libc.setfsuid(before)


# --- what bcc needs -----------------------------------------------------------------------------------------------

_mounted = False  # whether this process has mounts of its own


def reachable(folder: str) -> str:
    """A path by which the user reaches a folder of headers that root keeps, whatever is on the way."""
    with suppress(OSError):
        Path(folder).stat()
        return folder
    with owning():
        return f"/proc/self/fd/{os.open(folder, os.O_PATH | os.O_DIRECTORY)}"


def _mount_our_own() -> bool:
    """Mounts of this process and its children alone, with a tmpfs in the place of tracefs. False where we may not.

    What the system mounts later is seen here too.
    """
    if _libc.unshare(_CLONE_NEWNS) or _libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None):
        return False
    if (_DEBUGFS / "tracing").is_dir() and not _mount("tmpfs", _DEBUGFS, "mode=755,size=64k"):
        return False  # bcc looks there first
    return _mount("tmpfs", _TRACEFS, "mode=755,size=64m")


def _mount(kind: str, place: Path, options: str) -> bool:
    return bool(_libc.mount(b"bpfnb", bytes(place), kind.encode(), 0, options.encode()) == 0)


def show_formats(formats: Mapping[str, str]) -> None:
    """Put format files where bcc looks for them: "sched/sched_switch" to text. ProgramError where that cannot be."""
    for event, text in formats.items():
        if not _mounted and not os.access(_TRACEFS / "events" / event / "format", os.R_OK, effective_ids=True):
            raise ProgramError(f"the fields of tracepoint {event.replace('/', ':')} cannot be shown to bcc: {_WHY}")
        if _mounted:
            with owning():
                folder = _TRACEFS / "events" / event
                folder.mkdir(mode=0o755, parents=True, exist_ok=True)
                (folder / "format").write_text(text)


_WHY = "the tracer may not mount (CAP_SYS_ADMIN)"


def show_pins(pinned: Mapping[str, int]) -> None:
    """Have a bpffs of this process's own where maps are to be pinned: path to the descriptor of what is there already,
    or -1. ProgramError where that cannot be."""
    if not pinned:
        return
    with capabilities.with_sys_admin(), owning():
        if not _mounted or _libc.unshare(_CLONE_NEWNS):  # what this cell pins is not there for the next
            raise ProgramError(f"maps cannot be pinned for a user other than root: {_WHY}")
        mounted: list[Path] = []
        for place in sorted({_existing(path) for path in pinned}):  # an outer one before those in it
            if not any(place.is_relative_to(outer) for outer in mounted):
                if not _mount("bpf", place, "mode=777"):
                    raise ProgramError(f"maps cannot be pinned in {place}: {_WHY}")
                mounted.append(place)
        for path, fd in pinned.items():
            if fd >= 0:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                bpf.pin(fd, path)
                Path(path).chmod(0o666)


def _existing(path: str) -> Path:
    """The innermost folder on the way that is there."""
    return next(folder for folder in Path(os.path.normpath(path)).parents if folder.is_dir())
