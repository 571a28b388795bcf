"""A tracer spoken to without bpfnb's client: frames as bytes, read or not."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from bpfnb.host import ways
from bpfnb.protocol import messages
from bpfnb.protocol.connection import Connection
from bpfnb.protocol.messages import FromTracer


class RawTracer:
    """A tracer of its own. ``sock``: our end, with a time limit on every read and write."""

    def __init__(self, seconds: float = 20) -> None:
        self.sock, theirs = socket.socketpair()
        command, null, pipe = ways.choose().command, subprocess.DEVNULL, subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=theirs, stdout=null, stderr=pipe, start_new_session=True)
        theirs.close()
        self.sock.settimeout(seconds)
        self._connection: Connection[FromTracer] = Connection(self.sock, FromTracer)
        self._number = 0
        hello = self.receive()
        assert isinstance(hello, messages.Hello), hello
        self.worker = hello.pid

    def __enter__(self) -> RawTracer:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> str:
        """End it: what it wrote."""
        self._connection.close()
        try:
            return self._process.communicate(timeout=20)[1].decode()
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise

    def number(self) -> int:
        self._number += 1
        return self._number

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        self._connection.send(message, fds)

    def receive_whole(self) -> tuple[FromTracer, list[int]]:
        """The next message, and its descriptors, which are the caller's."""
        return self._connection.receive()

    def receive(self) -> FromTracer:
        """The next message; descriptors are closed. EOFError when the tracer has hung up."""
        message, fds = self.receive_whole()
        for fd in fds:
            socket.close(fd)
        return message

    def answer(self, number: int) -> Any:
        """The answer to a request; what else comes first is dropped."""
        while True:
            message = self.receive()
            if getattr(message, "request", None) == number:
                return message

    def ask(self, message: msgspec.Struct) -> Any:
        self.send(message)
        return self.answer(message.request)  # type: ignore[attr-defined]

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.worker}/fd").iterdir()))

    def resident(self) -> int:
        """Bytes of memory the worker has."""
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{self.worker}/status").read_text().splitlines())
        return int(fields["VmRSS"].split()[0]) * 1024

    def ended_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return self._process.poll() is not None
