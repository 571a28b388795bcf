"""Compile with the file permissions of the user who asks.

clang opens the files that a cell names by #include, -I, .incbin and __has_include, and quotes their lines in its
messages, while the tracer may read every file. So where another user asks, the compiling processes open files as that
user (setfsuid(2)). The kernel then checks every open, however a cell names the file. The processes stay user 0
otherwise, and can load programs.

What bcc needs, and the user may not read, is in a mount namespace of those processes:

- bcc declares a tracepoint's arguments from its format file in tracefs, which only root may read. A tmpfs in its place
  has the files of the tracepoints that the cell names (``show_formats``).
- Maps are pinned in a bpffs, which often only root may read. bcc gets its own bpffs with what is pinned there already
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

__all__ = ["User", "impersonate", "reachable", "require", "show_formats", "show_pins", "user_of"]

_TRACEFS, _DEBUGFS = Path("/sys/kernel/tracing"), Path("/sys/kernel/debug")  # where bcc looks
_CLONE_NEWNS, _MS_REC, _MS_SLAVE = 0x20000, 1 << 14, 1 << 19

_libc = ctypes.CDLL(None, use_errno=True)
_libc.setfsuid.restype = _libc.setfsgid.restype = ctypes.c_uint32


User = peer.Peer


def user_of(sock: socket.socket) -> User | None:
    """Return the user at the other end of a socket, or None where that is root or our own user.

    There are no permissions to take on then.
    """
    user = peer.of(sock)
    return None if user.uid in (0, os.geteuid()) else user


def require(user: User | None) -> None:
    """Raise PrivilegeError where this process cannot take on a user's permissions."""
    if user and not capabilities.has(*capabilities.BECOMING):
        raise PrivilegeError(
            f"the tracer cannot compile with the file permissions of user {user.uid}",
            hint="it needs CAP_SETUID and CAP_SETGID for that, until it has started",
        )


def impersonate(user: User) -> None:
    """Open files as this user from now on, for good, except inside ``as_owner``."""
    global _mounted
    with capabilities.with_sys_admin():
        _mounted = _mount_our_own()
    with capabilities.raised(*capabilities.BECOMING):
        os.setgroups(sorted(user.groups))
        _libc.setfsgid(user.gid)
        _libc.setfsuid(user.uid)
    capabilities.forgo(*capabilities.BECOMING, *capabilities.READING)
    if (_libc.setfsuid(-1), _libc.setfsgid(-1)) != (user.uid, user.gid):  # neither call reports a failure
        raise PermissionError(f"files are not opened as user {user.uid}")


@contextmanager
def as_owner() -> Iterator[None]:
    """Open files as user 0 inside, with the permissions of an owner only."""
    before, mask = _libc.setfsuid(0), os.umask(0)
    try:
        yield
    finally:
        os.umask(mask)
        _libc.setfsuid(before)


# --- what bcc needs -----------------------------------------------------------------------------------------------

_mounted = False  # whether this process has mounts of its own


def reachable(folder: str) -> str:
    """Return a path by which the user reaches a folder of root's headers, even if a parent folder is not readable."""
    with suppress(OSError):
        Path(folder).stat()
        return folder
    with as_owner():
        return f"/proc/self/fd/{os.open(folder, os.O_PATH | os.O_DIRECTORY)}"


def _mount_our_own() -> bool:
    """Give this process and its children mounts of their own, with a tmpfs in place of tracefs.

    Mounts that the system makes later appear here too. Return False where we may not mount.
    """
    if _libc.unshare(_CLONE_NEWNS) or _libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None):
        return False
    if (_DEBUGFS / "tracing").is_dir() and not _mount("tmpfs", _DEBUGFS, "mode=755,size=64k"):
        return False  # bcc looks there first
    return _mount("tmpfs", _TRACEFS, "mode=755,size=64m")


def _mount(kind: str, place: Path, options: str) -> bool:
    return bool(_libc.mount(b"bpfnb", bytes(place), kind.encode(), 0, options.encode()) == 0)


def show_formats(formats: Mapping[str, str]) -> None:
    """Put format files where bcc looks for them. ``formats``: text by event, such as "sched/sched_switch".

    Raise ProgramError where that cannot be done.
    """
    for event, text in formats.items():
        if not _mounted and not os.access(_TRACEFS / "events" / event / "format", os.R_OK, effective_ids=True):
            raise ProgramError(f"the fields of tracepoint {event.replace('/', ':')} cannot be shown to bcc: {_WHY}")
        if _mounted:
            with as_owner():
                folder = _TRACEFS / "events" / event
                folder.mkdir(mode=0o755, parents=True, exist_ok=True)
                (folder / "format").write_text(text)


_WHY = "the tracer may not mount (CAP_SYS_ADMIN)"


def show_pins(pinned: Mapping[str, int]) -> None:
    """Mount a bpffs of this process's own wherever maps are to be pinned.

    ``pinned``: by path, the descriptor of the map that is pinned there already, or -1. Raise ProgramError where that
    cannot be done.
    """
    if not pinned:
        return
    with capabilities.with_sys_admin(), as_owner():
        if not _mounted or _libc.unshare(_CLONE_NEWNS):  # the next cell does not see what this one pins
            raise ProgramError(f"maps cannot be pinned for a user other than root: {_WHY}")
        mounted: list[Path] = []
        for place in sorted({_existing(path) for path in pinned}):  # outer folders first
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
    """Return the innermost folder of a path that exists."""
    return next(folder for folder in Path(os.path.normpath(path)).parents if folder.is_dir())
