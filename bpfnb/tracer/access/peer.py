"""Ask the kernel who is at the other end of the tracer's socket.

The kernel noted it when the connection was made: of a socketpair the process that made it, even through ``sudo``; of a
connection to a listening socket the process that connected. Nothing comes from the peer's messages, and nothing changes
when the peer passes its end on.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from typing import NamedTuple

__all__ = ["Peer", "of", "watch"]

_SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h; Linux commit 28b5ba2aa0f5 (in v4.13)
_SO_PEERPIDFD = 77  # Linux commit 7b26952a91cf (in v6.5)
_MAX_GROUPS = 1 << 16  # the kernel's NGROUPS_MAX

_libc = ctypes.CDLL(None, use_errno=True)


class Peer(NamedTuple):
    """A process as it was when it connected.

    ``pid``: 0 where our PID namespace does not have it. ``uid``, ``gid``: its effective ids; 65534 (nobody) for a user
    that has no number in our user namespace. ``groups``: its supplementary groups.
    """

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]

    def in_group(self, gid: int) -> bool:
        """Return whether the process has this group."""
        return gid == self.gid or gid in self.groups


def of(sock: socket.socket) -> Peer:
    """Return the process at the other end of a UNIX socket."""
    pid, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(pid, uid, gid, _groups(sock))


def watch(sock: socket.socket) -> int | None:
    """Return a pidfd of the process at the other end, which becomes readable when the process ends.

    Return None where our PID namespace does not have it. Raise ProcessLookupError when it has already ended.
    """
    try:
        pidfd: int = struct.unpack("i", sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4))[0]
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None
        pid = of(sock).pid  # an older kernel. The number may be reused by now, if the process ended at once
        return os.pidfd_open(pid) if pid else None
    return pidfd


def _groups(sock: socket.socket) -> frozenset[int]:
    groups = (ctypes.c_uint32 * _MAX_GROUPS)()  # through libc: Python's getsockopt takes at most 1,024 bytes
    size = ctypes.c_uint32(ctypes.sizeof(groups))
    if _libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, _SO_PEERGROUPS, groups, ctypes.byref(size)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return frozenset(groups[: size.value // 4])
