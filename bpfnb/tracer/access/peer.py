"""Who is at the other end of the tracer's socket: what the kernel noted when the connection was made.

Of a socketpair that is who made it, whatever ``sudo`` was in between; of a connection to a listening socket, who
connected. Nothing here comes from the peer's messages, and it does not change when the peer passes its end on.
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
    """A process, as it was when it connected.

    ``pid``: 0 where it lives in a PID namespace we do not see into. ``uid``, ``gid``: its effective ids; 65534
    (nobody's) for a user that has no number in our user namespace. ``groups``: its further groups.
    """

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]

    def in_group(self, gid: int) -> bool:
        return gid == self.gid or gid in self.groups


def of(sock: socket.socket) -> Peer:
    """The process at the other end of a UNIX socket."""
    pid, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(pid, uid, gid, _groups(sock))


def watch(sock: socket.socket) -> int | None:
    """A pidfd of the process at the other end, which becomes readable when it ends; None where we do not see it.

    ProcessLookupError when it has ended already.
    """
    try:
        pidfd: int = struct.unpack("i", sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4))[0]
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None
        pid = of(sock).pid  # an older kernel: the number may be another process's by now, if ours was quick to end
        return os.pidfd_open(pid) if pid else None
    return pidfd


def _groups(sock: socket.socket) -> frozenset[int]:
    groups = (ctypes.c_uint32 * _MAX_GROUPS)()  # by libc: Python's getsockopt takes 1,024 bytes at most
    size = ctypes.c_uint32(ctypes.sizeof(groups))
    if _libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, _SO_PEERGROUPS, groups, ctypes.byref(size)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return frozenset(groups[: size.value // 4])
