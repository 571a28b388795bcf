"""What a notebook and the recorder that it started say to each other, over a pair of sockets that keep messages whole.

Neither waits for the other: the recorder records whatever becomes of the notebook, and what a notebook in a long call
does not read is dropped, but for the last word.
"""

from __future__ import annotations

import os
import select
import socket
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Struct

from bpfnb.errors import Diagnostic
from bpfnb.recordings.format import Manifest

__all__ = ["Begin", "Status", "Update", "read", "receive", "send", "write"]

_MAX = 100_000  # bytes of a message: a socket takes twice as much
_MAX_WARNINGS = 64


class Begin(Struct, frozen=True):
    """What the recorder begins with. ``folder``: made for it; ``path``: what the recording will be. ``manifest``: what
    is known of the session before it runs. ``units``: of columns."""

    path: str
    folder: str
    manifest: Manifest
    units: dict[str, str] = {}


class Update(Struct, frozen=True, tag=True):
    """What the notebook alone knows of its session, as it is now."""

    name: str = ""
    command: tuple[str, ...] = ()
    returncode: int | None = None
    warnings: tuple[Diagnostic, ...] = ()


class Status(Struct, frozen=True, tag=True):
    """How far the recording has come: rows in it, bytes on the disk. ``failed``: why nothing more is written, or "".
    ``over``: it has ended, and this is the last word. ``note``: what is missing in it, or ""."""

    rows: int = 0
    bytes: int = 0
    failed: str = ""
    over: bool = False
    note: str = ""


def write(begin: Begin) -> int:
    """Return a descriptor that ``read`` can be given in another process."""
    fd = os.memfd_create("bpfnb-recorder", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(msgspec.json.encode(begin))
    return fd


def read(fd: int) -> Begin:
    """Read what ``write`` has written, and close it."""
    with open(fd, "rb") as file:
        file.seek(0)
        return msgspec.json.decode(file.read(), type=Begin)


def send(sock: socket.socket, message: Update | Status, seconds: float = 0) -> bool:
    """Send a message where it goes at once, or within so many seconds; return whether it went."""
    if isinstance(message, Update):
        message = msgspec.structs.replace(message, warnings=message.warnings[-_MAX_WARNINGS:])
    data = msgspec.json.encode(message)
    if len(data) > _MAX and isinstance(message, Update):
        data = msgspec.json.encode(msgspec.structs.replace(message, warnings=()))
    with suppress(OSError):
        if _ready(sock, select.POLLOUT, seconds):
            sock.send(data, socket.MSG_DONTWAIT)
            return True
    return False


def receive(sock: socket.socket, kind: type[Any], seconds: float | None = None) -> Any:
    """Return the next message; None where none came in time. EOFError when the other end is gone."""
    try:
        if not _ready(sock, select.POLLIN, seconds):
            return None
        data = sock.recv(2 * _MAX, socket.MSG_DONTWAIT)
    except OSError as error:
        raise EOFError(str(error)) from None
    if not data:
        raise EOFError
    return msgspec.json.decode(data, type=kind)


def _ready(sock: socket.socket, event: int, seconds: float | None) -> bool:
    """Wait until a socket can be read or written. The socket itself stays one that waits: other threads use it."""
    poll = select.poll()
    poll.register(sock, event)
    return bool(poll.poll(None if seconds is None else seconds * 1000))
