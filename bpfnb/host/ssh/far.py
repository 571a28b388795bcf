"""far: the program on the host. It starts a tracer there, is its client, and sends what it hears on in frames.

It needs the standard library, msgspec and numpy, and of bpfnb what a tracer's client is made of. It listens to nothing
but its standard input, and ends, and the tracer with it, when that ends or is silent for too long.

Threads: the main one passes requests on. ``bpfnb-far-tracer`` hears the tracer. ``bpfnb-far-drain`` copies rows and
numbers, twenty times a second, and minds the silence. ``bpfnb-far-send`` sends (outgoing.py). ``bpfnb-far-asking``
sends to the tracer: the others must not wait for it, since it reads nothing while its answers are not read.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path

from msgspec import structs

from bpfnb.errors import BpfnbError, MapError, TracerDied
from bpfnb.host import local
from bpfnb.host.ssh.drains import Drains
from bpfnb.host.ssh.frames import (
    MAGIC,
    MAX_MAP,
    Asked,
    Bye,
    Died,
    FrameError,
    Frames,
    Passed,
    Start,
    Taken,
    Tick,
    Tock,
    ToFar,
    Up,
)
from bpfnb.host.ssh.outgoing import Outgoing
from bpfnb.host.ways import Way
from bpfnb.protocol import messages
from bpfnb.protocol.connection import Connection
from bpfnb.protocol.messages import FromTracer, Hello, Received, Request, ToTracer

__all__ = ["main"]

_DRAIN_SECONDS = 0.05
_IDLE_SECONDS = 0.2  # while there are no sessions
_COPIES = 4  # drains, from one copy of the numbers to the next
_MAX_KEEP = 256 << 20  # bytes of segments that this host's memory holds, a session
_CONTINUE_AFTER = 1.0  # seconds
_CLOSE_TIMEOUT = 60.0  # seconds for the kernel to detach hundreds of tracepoints


def main(way: Way | None = None) -> int:
    """Serve near through standard input and output until it is gone or silent. Return the exit status. ``way``: to the
    tracer, where not the usual one."""
    incoming, outgoing = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)  # whatever anybody prints is no frame
    os.close(null)
    heard = _Heard()
    try:
        os.write(outgoing, MAGIC)
        frames: Frames[ToFar] = Frames(incoming, outgoing, ToFar, heard.now)
        start = frames.receive()
    except (EOFError, OSError):
        return 1  # nobody is there
    if not isinstance(start, Start):
        raise FrameError("it does not begin with Start")
    try:
        sock, tracer = local.start(way)
    except BpfnbError as error:
        frames.send(Passed(messages.Failed.of(0, error)))
        return 1
    frames.send(Up(tracer.reached))
    _Far(frames, sock, tracer, start.silence, heard).serve()
    return 0


class _Heard:
    """When something was heard last."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def now(self) -> None:
        self._last = time.monotonic()

    def silent_for(self) -> float:
        return time.monotonic() - self._last


class _Far:
    """``_lock``: of the sessions, held while rows are copied."""

    def __init__(
        self, frames: Frames[ToFar], sock: socket.socket, tracer: local.LocalTracer, silence: float, heard: _Heard
    ) -> None:
        self._frames = frames
        self._tracer = tracer
        self._silence = silence
        self._heard = heard
        self._connection: Connection[FromTracer] = Connection(sock, FromTracer)
        self._outgoing = Outgoing(frames, self._leave)
        self._lock = threading.Lock()
        self._sessions: dict[int, Drains] = {}
        self._stops: dict[int, int] = {}  # sessions, by the request to stop them
        self._asked: queue.SimpleQueue[ToTracer] = queue.SimpleQueue()
        self._hello: Hello | None = None
        self._leaving = False
        self._hearing = threading.Thread(target=self._hear, name="bpfnb-far-tracer", daemon=True)

    def serve(self) -> None:
        """Pass requests on. Does not return."""
        self._hearing.start()
        threading.Thread(target=self._drain, name="bpfnb-far-drain", daemon=True).start()
        threading.Thread(target=self._send, name="bpfnb-far-asking", daemon=True).start()
        try:
            while True:
                self._accept()
        except EOFError:
            pass  # near is gone
        except BaseException:
            traceback.print_exc()
        self._leave()

    def _accept(self) -> None:
        match self._frames.receive():
            case Asked(request):
                self._ask(request)
            case Taken(frames):
                self._outgoing.taken(frames)
            case Tick(number):
                self._outgoing.put_now(Tock(number, time.monotonic_ns()))
            case Bye():
                self._leave_behind()
            case Start():
                raise FrameError("a second Start")

    def _ask(self, request: Request) -> None:
        match request:
            case messages.Load():
                request = structs.replace(request, folder=_home(), keep=min(request.keep, _MAX_KEEP))
                with self._lock:
                    self._sessions[request.request] = Drains(
                        request.request, self._outgoing, partial(self._asked.put, Received(request.request))
                    )
            case messages.FindProbes() | messages.ListProbes() | messages.DescribeProbes():
                request = structs.replace(request, folder=_home())
            case messages.Stop(number, session):
                self._stops[number] = session
        self._asked.put(request)

    def _send(self) -> None:
        with suppress(OSError):  # it is gone, which the other thread notices, and knows why
            while True:
                self._connection.send(self._asked.get())

    # --- the tracer ---

    def _hear(self) -> None:
        try:
            while True:
                self._outgoing.wait_for_room()
                message, fds = self._connection.receive()
                try:
                    self._handle(message, fds)
                finally:
                    for fd in fds:
                        os.close(fd)
        except EOFError:
            pass
        except BaseException:
            traceback.print_exc()
        if not self._leaving:
            self._say_died()
            self._leave_behind()
        self._tracer.wait()

    def _say_died(self) -> None:
        self._connection.hang_up()
        death = self._tracer.death()
        with self._lock:
            for drains in self._sessions.values():
                drains.finish()
        if isinstance(death, TracerDied):
            self._outgoing.put(Died(death.message, death.status, death.output, death.hint))
        else:
            self._outgoing.put(Passed(messages.Failed.of(0, death)))
        self._outgoing.flush()

    def _handle(self, message: FromTracer, fds: list[int]) -> None:
        match message:
            case Hello():
                self._hello = message
                if error := self._tracer.check(message):
                    self._outgoing.put(Passed(messages.Failed.of(0, error)))
                    self._connection.hang_up()
                    return
            case messages.SegmentAdded(session=session):
                self._add_segment(session, message, fds[0])
                return
            case messages.CountersAdded(session) | messages.CostsAdded(session):
                with self._lock:
                    self._outgoing.put_ahead(Passed(message))
                    if drains := self._sessions.get(session):
                        drains.add_memory(message, fds[0])
                return
            case messages.MapRead():
                self._send_map(message, fds[0])
                return
            case messages.Stopped(request):
                self._finish(self._stops.pop(request, 0))
            case messages.Ended(session):
                self._finish(session)
            case messages.Failed(request):
                self._stops.pop(request, None)
                self._finish(request)  # a session that did not start
        self._outgoing.put(Passed(message))

    def _add_segment(self, session: int, message: messages.SegmentAdded, fd: int) -> None:
        with self._lock:
            if drains := self._sessions.get(session):
                if message.schema:
                    self._outgoing.put_ahead(Passed(message))
                drains.add_segment(message, fd)

    def _send_map(self, message: messages.MapRead, fd: int) -> None:
        size = os.fstat(fd).st_size
        if size <= MAX_MAP:
            self._outgoing.put_map(message, fd)
            return
        error = MapError(f"the map {message.map} has {size:,} bytes, more than are sent to another host")
        if message.request:
            self._outgoing.put(Passed(messages.Failed.of(message.request, error)))
        else:
            self._outgoing.put(Passed(messages.MapLost(message.session, message.map, error.message)))

    def _finish(self, session: int) -> None:
        with self._lock:
            if drains := self._sessions.pop(session, None):
                drains.finish()

    # --- rows and numbers ---

    def _drain(self) -> None:
        turn = 0
        while self._heard.silent_for() < self._silence:
            turn += 1
            try:
                with self._lock:
                    for drains in self._sessions.values():
                        drains.drain()
                        if turn % _COPIES == 0:
                            drains.copy_memory()
            except Exception:
                traceback.print_exc()
                break
            time.sleep(_DRAIN_SECONDS if self._sessions else _IDLE_SECONDS)
        self._leave()

    # --- the end ---

    def _leave_behind(self) -> None:
        threading.Thread(target=self._leave, name="bpfnb-far-end", daemon=True).start()

    def _leave(self) -> None:
        """End the tracer, wait until it has ended, and end this process. From whichever thread is first."""
        with self._lock:
            first, self._leaving = not self._leaving, True
        if not first:
            threading.Event().wait()  # the other one ends this process
        self._connection.hang_up()
        for seconds in (_CONTINUE_AFTER, _CONTINUE_AFTER, _CLOSE_TIMEOUT):
            self._hearing.join(seconds)
            if not self._hearing.is_alive() or not self._tracer.resume(self._hello):
                break
        sys.stderr.flush()
        os._exit(0)


def _home() -> str:
    """Return where relative paths begin: the user's home, as that of a command that ssh runs."""
    try:
        return str(Path.home())
    except RuntimeError:
        return "/"


if __name__ == "__main__":
    sys.exit(main())
