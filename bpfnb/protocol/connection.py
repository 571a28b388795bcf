"""How messages travel: a connection over a UNIX socketpair, with descriptors beside them."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from array import array
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Generic, TypeVar

import msgspec
from msgspec import Struct

__all__ = ["Connection", "Incoming", "TruncatedError"]

_HEADER = struct.Struct("<IB")
_MAX_BODY = 64 << 20  # a verifier log may be 16 MiB
_MAX_FDS = 250  # the kernel's SCM_MAX_FD is 253
_MAX_READ = 1 << 16  # bytes at once
_UNKNOWN_PEER = "the peer does not speak this protocol"

Incoming = TypeVar("Incoming")


class TruncatedError(OSError, EOFError):
    """This process has too many open files to receive a descriptor. The connection cannot be used any more."""


class Connection(Generic[Incoming]):
    """One end of the socketpair. ``send`` may be called from any thread, ``receive`` from one.

    ``descriptors``: how many a message may bring. With fewer than the protocol has, those beyond are closed, and so are
    those of messages that say nothing of any; a message may then come without what it says.
    """

    def __init__(self, sock: socket.socket, incoming: object, *, descriptors: int = _MAX_FDS) -> None:
        self._socket = sock
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Incoming] = msgspec.msgpack.Decoder(incoming)
        self._sending = threading.Lock()
        self._descriptors = descriptors
        self._bytes = bytearray()
        self._fds: deque[int] = deque()
        self.size = 0  # of the message received last, in bytes

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Struct, fds: Sequence[int] = ()) -> None:
        """Send one message. OSError when the other end is gone."""
        frame = self.frame(message, fds)
        with self._sending:
            sent = socket.send_fds(self._socket, [frame], fds) if fds else self._socket.send(frame)
            if sent < len(frame):
                self._socket.sendall(memoryview(frame)[sent:])

    def frame(self, message: Struct, fds: Sequence[int] = ()) -> bytes:
        """Encode a message with its header."""
        body = self._encoder.encode(message)
        return _HEADER.pack(len(body), len(fds)) + body

    def send_some(self, data: bytes | memoryview, fds: Sequence[int] = ()) -> int:
        """Send as much of a frame as goes without waiting. Return how many bytes. Descriptors go with the first one.

        For one thread at a time, and not together with ``send``. OSError when the other end is gone.
        """
        try:
            if fds:
                return socket.send_fds(self._socket, [data], fds, socket.MSG_DONTWAIT)
            return self._socket.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:  # this user may have no more descriptors in flight
                return 0
            raise

    def receive(self) -> tuple[Incoming, list[int]]:
        """Wait for one message and its descriptors, which the caller owns.

        EOFError when the other end is gone, or speaks another protocol; TruncatedError when there was no room for a
        descriptor.
        """
        while (taken := self._next()) is None:
            self._read(0)
        return taken

    def poll(self) -> tuple[Incoming, list[int]] | None:
        """Return the next message and its descriptors, which the caller owns, if all of it has arrived, else None.

        EOFError as ``receive``.
        """
        taken = self._next()
        if taken is None:
            with suppress(BlockingIOError):
                self._read(socket.MSG_DONTWAIT)
            taken = self._next()
        return taken

    def close(self) -> None:
        """Close the connection: a receive() waiting in another thread gets EOFError. Idempotent."""
        self.hang_up()
        self._socket.close()
        self._drop(0)

    def hang_up(self) -> None:
        """Shut the connection down, but leave the descriptor open for its users: receive() then gets EOFError."""
        with suppress(OSError):  # the peer was faster
            self._socket.shutdown(socket.SHUT_RDWR)

    def abandon(self) -> None:
        """Close this end only: another process holds on to the connection."""
        self._socket.close()

    def _next(self) -> tuple[Incoming, list[int]] | None:
        """Return the first message that has arrived whole, if any."""
        if len(self._bytes) < _HEADER.size:
            return None
        length, count = _HEADER.unpack_from(self._bytes)
        if length > _MAX_BODY or count > _MAX_FDS:
            raise EOFError(_UNKNOWN_PEER)
        end = _HEADER.size + length
        if len(self._bytes) < end:
            return None
        with memoryview(self._bytes) as data:
            message = self._decoded(data[_HEADER.size : end])
        del self._bytes[:end]
        self.size = end
        if count > len(self._fds) and self._descriptors == _MAX_FDS:
            raise EOFError(_UNKNOWN_PEER)
        fds = [self._fds.popleft() for _ in range(min(count, len(self._fds)))]
        if self._descriptors < _MAX_FDS and not self._bytes:
            self._drop(0)  # nothing is left that they could be for
        return message, fds

    def _drop(self, keep: int) -> None:
        """Close all descriptors but so many."""
        while len(self._fds) > keep:
            os.close(self._fds.pop())

    def _decoded(self, body: memoryview) -> Incoming:
        try:
            with body:
                return self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise EOFError(_UNKNOWN_PEER) from None

    def _read(self, flags: int) -> None:
        try:
            if self._descriptors:
                # Not socket.recv_fds: it drops the flags it is given (CPython 3.13, Lib/socket.py), and so would wait.
                room = socket.CMSG_LEN(4 * self._descriptors)
                data, parts, received, _ = self._socket.recvmsg(_MAX_READ, room, flags | socket.MSG_CMSG_CLOEXEC)
                for _, _, fds in parts:
                    self._fds.extend(array("i", fds))
                if self._descriptors < _MAX_FDS:
                    self._drop(2 * self._descriptors)  # of two messages: the next one's may come with this one's rest
                elif received & socket.MSG_CTRUNC:
                    raise TruncatedError(errno.EMFILE, os.strerror(errno.EMFILE))
            else:
                data = self._socket.recv(_MAX_READ, flags)
        except (BlockingIOError, TruncatedError):
            raise
        except OSError as error:
            raise EOFError(str(error)) from None
        if not data:
            raise EOFError("the peer closed the connection")
        self._bytes += data
