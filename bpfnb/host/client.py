"""A tracer at the other end of a socket: requests to it, answers and messages from it.

Threads: callers send requests and wait, on threads that no signal interrupts (bpfnb.interrupts). A reader thread
receives every message, and passes answers to the callers and the rest to the sessions' listeners. Another thread
acknowledges segments. Locks are held for bookkeeping only, never while waiting.
"""

from __future__ import annotations

import itertools
import os
import queue
import socket
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from bpfnb.errors import BpfnbError, InternalError, TracerDied, few_descriptors
from bpfnb.host.tracer import Listener, Tracer
from bpfnb.interrupts import Flag, caller_left, new_lock, patience, uninterrupted
from bpfnb.language.program import Program
from bpfnb.language.signature import Signature
from bpfnb.progress import EVERY, Step, step
from bpfnb.protocol import messages
from bpfnb.protocol.connection import Connection
from bpfnb.protocol.messages import (
    CostsAdded,
    CountersAdded,
    Detached,
    Ended,
    FromTracer,
    Hello,
    Limits,
    Loaded,
    MapLost,
    MapRead,
    Noted,
    Request,
    SegmentAdded,
    Stopped,
)

__all__ = ["Client", "Peer"]

Answer = TypeVar("Answer")

_CONTINUE_AFTER = 1.0  # seconds
_CLOSE_TIMEOUT = 60.0  # seconds: detaching hundreds of tracepoints takes the kernel so long
_MAX_KEEP = 1 << 62  # what a message can carry


class Peer:
    """The process at the other end of a connection. This one is unknown: somebody else started it."""

    @property
    def reached(self) -> str:
        """Return how it was reached, in words."""
        return "a connection that was there"

    def check(self, hello: Hello) -> BpfnbError | None:
        """Return the error where it is of another bpfnb than this one."""

    def resume(self, hello: Hello | None) -> bool:
        """Continue the process if a signal has stopped it; return whether it can be expected to end."""
        return True

    def death(self) -> BpfnbError:
        """Return why the connection was closed. Called once, after that."""
        return TracerDied("the tracer process ended; what was collected so far is kept")

    def wait(self) -> None:
        """Wait until its process has ended, where we started it."""


class Client(Tracer):
    """The tracer at the other end of a socket.

    ``follow``: hears of the one session that the tracer tells of here, and that somebody else has loaded; it
    acknowledges its segments itself (``acknowledge``), once it is done with them.
    """

    def __init__(self, sock: socket.socket, peer: Peer | None = None, follow: Listener | None = None) -> None:
        self.died: TracerDied | None = None
        self.peer = peer or Peer()
        self._connection: Connection[FromTracer] = Connection(sock, FromTracer)
        self._requests = itertools.count(1)
        self._lock = new_lock()
        self._waiting: dict[int, _Reply] = {}
        self._listeners: dict[int, Listener] = {}
        self._follow = follow
        self._hello = _Reply()
        self._reader = threading.Thread(target=self._read, name="bpfnb-reader", daemon=True)
        self._received: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # sessions, by segment
        threading.Thread(target=self._acknowledge, name="bpfnb-acks", daemon=True).start()
        self._reader.start()

    @property
    def reached(self) -> str:
        return self.peer.reached

    @uninterrupted
    def hello(self) -> Hello:
        if self._hello.now() is None:
            with step("starting the tracer") as starting:
                self._hello.watch(starting)
        return _checked(Hello, self._hello.wait(), "what it was started with")

    def ping(self) -> None:
        self._ask(messages.Ping(next(self._requests)), messages.Pong)

    @uninterrupted
    def load(
        self, program: Program, listener: Listener, limits: Limits, keep: int, follower: socket.socket | None = None
    ) -> int:
        number = next(self._requests)
        with self._lock:
            self._listeners[number] = listener
        load = messages.Load(number, program, _folder(), limits, min(keep, _MAX_KEEP), follower is not None)
        try:
            _checked(Loaded, self._reply(load, fds=[follower.fileno()] if follower else ()), load)
            return number
        except BaseException:
            with self._lock:
                self._listeners.pop(number, None)
            raise

    @uninterrupted
    def stop(self, number: int) -> Stopped:
        reply = self._ask(messages.Stop(next(self._requests), number), Stopped)
        if not reply.detaching and not reply.maps:
            with self._lock:
                self._listeners.pop(number, None)
        return reply

    def read_map(self, session: int, name: str) -> tuple[int, bytes]:
        return self._ask_map(messages.ReadMap(next(self._requests), session, name))

    def look_up(self, session: int, name: str, key: bytes) -> bytes | None:
        return self._ask(messages.LookupMap(next(self._requests), session, name, key), messages.MapValue).value

    def take_map(self, session: int, name: str, most: int) -> tuple[int, bytes]:
        return self._ask_map(messages.TakeMap(next(self._requests), session, name, most))

    def write_map(self, session: int, name: str, key: bytes, value: bytes | None) -> bool:
        return self._ask(messages.WriteMap(next(self._requests), session, name, key, value), messages.MapWritten).found

    def open_counter(self, session: int, name: str, kind: str, event: str) -> None:
        self._ask(messages.OpenCounter(next(self._requests), session, name, kind, event), messages.MapWritten)

    def clear_map(self, session: int, name: str) -> None:
        self._ask(messages.ClearMap(next(self._requests), session, name), messages.MapWritten)

    def find_symbols(
        self, pid: int, addresses: Sequence[int], session: int = 0
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        reply = self._ask(messages.FindSymbols(next(self._requests), pid, tuple(addresses), session), messages.Symbols)
        return reply.names, reply.modules

    def find_probes(self, pattern: str, limit: int) -> tuple[tuple[str, ...], int]:
        reply = self._ask(messages.FindProbes(next(self._requests), pattern, limit, _folder()), messages.ProbeNames)
        return reply.names, reply.more

    def list_probes(self, pattern: str, limit: int) -> messages.ProbesListed:
        return self._ask(messages.ListProbes(next(self._requests), pattern, limit, _folder()), messages.ProbesListed)

    def describe(self, probes: Sequence[str], paths: Sequence[tuple[str, ...]], limit: int) -> tuple[Signature, ...]:
        asked = messages.DescribeProbes(next(self._requests), tuple(probes), tuple(paths), limit, _folder())
        return self._ask(asked, messages.ProbesDescribed).signatures

    def describe_type(self, name: str, path: Sequence[str], limit: int) -> messages.TypeDescribed:
        return self._ask(messages.DescribeType(next(self._requests), name, tuple(path), limit), messages.TypeDescribed)

    def find_names(self, start: str, limit: int) -> messages.NamesFound:
        return self._ask(messages.FindNames(next(self._requests), start, limit), messages.NamesFound)

    def run_checks(self) -> tuple[messages.Check, ...]:
        return self._ask(messages.RunChecks(next(self._requests)), messages.Checks).rows

    @uninterrupted
    def close(self) -> None:
        """End the tracer, and with it every session of this client. Idempotent.

        A tracer that is stopped (SIGSTOP) is continued, since its programs would stay attached. Where we may not signal
        it, a line on stderr says so. A tracer that takes longer than a minute to end is not waited for.
        """
        self._connection.close()
        for seconds in (_CONTINUE_AFTER, _CONTINUE_AFTER, _CLOSE_TIMEOUT):
            self._reader.join(seconds)
            hello = self._hello.now()
            if not self._reader.is_alive() or not self.peer.resume(hello if isinstance(hello, Hello) else None):
                return

    def forget(self) -> None:
        self.died = TracerDied("this process was forked from the one whose tracer it is")
        self._connection.abandon()

    @uninterrupted
    def _ask(self, message: Request, kind: type[Answer]) -> Answer:
        """Return the answer to a request. Raise the error in it, or InternalError for an answer of another type."""
        return _checked(kind, self._reply(message), message)

    @uninterrupted
    def _ask_map(self, message: messages.ReadMap | messages.TakeMap) -> tuple[int, bytes]:
        """Return how many entries there are in the answer, and their bytes."""
        seconds = patience() if isinstance(message, messages.ReadMap) else None  # what is taken must not be lost
        answer, data = _checked(tuple, self._reply(message, seconds), message)
        if (answer.session, answer.map) != (message.session, message.map):
            raise _no_answer(answer, message)
        return answer.count, data

    def acknowledge(self, session: int) -> None:
        """Acknowledge a segment of the session that is followed. For any thread but the one that reads."""
        self._received.put(session)

    def _reply(self, message: Request, seconds: float | None = None, fds: Sequence[int] = ()) -> object:
        """Send a request and return the answer; of a map, the message and its data. BpfnbError after ``seconds``."""
        self.hello()  # raises what kept the tracer from coming up, which says more than that it is gone
        reply = _Reply()
        with self._lock:
            if self.died:
                raise self.died
            self._waiting[message.request] = reply
        with suppress(OSError):  # the reader notices the end as well, and knows why
            self._connection.send(message, fds)
        try:
            if seconds is None and (what := _LONG.get(type(message))):
                with step(what(message)) as waiting:
                    reply.watch(waiting, partial(self._give_up, message))
            return reply.wait(seconds)
        finally:
            with self._lock:
                self._waiting.pop(message.request, None)  # where nobody waits for it any more
            del reply  # see _Reply.wait

    def _give_up(self, message: Request) -> None:
        """Have the tracer give up a session that nobody waits for any more. The answer to the Load comes all the
        same, and says so."""
        if isinstance(message, messages.Load):
            with suppress(OSError):
                self._connection.send(messages.Stop(next(self._requests), message.request))

    def _read(self) -> None:
        try:
            while True:
                message, fds = self._connection.receive()
                try:
                    self._handle(message, fds)
                finally:
                    for fd in fds:
                        os.close(fd)
        except Exception as error:
            why = few_descriptors(error)
            if not why and not isinstance(error, EOFError):
                traceback.print_exc()  # a bug of ours: nothing is read any more, so nobody may wait any more
        self._end(why)

    def _acknowledge(self) -> None:
        """Acknowledge each segment received. Not on the reader thread, which must not wait for the tracer: the tracer
        reads no requests while the notebook does not read."""
        with suppress(OSError):  # the tracer is gone, which the reader notices
            while (session := self._received.get()) is not None:
                self._connection.send(messages.Received(session))

    def _handle(self, message: FromTracer, fds: list[int]) -> None:
        request = getattr(message, "request", 0)
        if isinstance(message, Hello):
            self._greet(message)
        elif request:
            self._settle(request, message, fds)
        elif isinstance(message, messages.Failed):
            self._hello.settle(message.exception())
        elif isinstance(message, messages.Progress):
            if reply := self._waiting.get(message.session):
                reply.progress = message
        elif tell := _TELL.get(type(message)):
            if listener := self._listener_of(message):
                tell(listener, message, fds)
            if isinstance(message, SegmentAdded) and not self._follow:
                self._received.put(message.session)

    def _greet(self, hello: Hello) -> None:
        if error := self.peer.check(hello):
            self._hello.settle(error)
            self._connection.close()  # nothing more of it would be understood
        else:
            self._hello.settle(hello)

    def _settle(self, request: int, message: Any, fds: list[int]) -> None:
        """Pass an answer to the caller who waits for it."""
        with self._lock:
            reply = self._waiting.pop(request, None)
            listener = self._listeners.get(request)
        if reply is None:
            if isinstance(message, Loaded) and self._follow:
                self._follow.on_loaded(message)
            return  # nobody asked for it
        if isinstance(message, MapRead):
            reply.settle((message, _content(fds[0])))
        elif isinstance(message, messages.Failed):
            reply.settle(message.exception())
        else:
            if isinstance(message, Loaded) and listener:
                listener.on_loaded(message)
            reply.settle(message)

    def _listener_of(self, message: Any) -> Listener | None:
        """Return the listener of a message's session; forget it where this is the session's last message."""
        last = isinstance(message, Detached) or (
            isinstance(message, Ended) and not message.detaching and not message.maps
        )
        with self._lock:
            if self._follow:
                return self._follow
            if last:
                return self._listeners.pop(message.session, None)
            return self._listeners.get(message.session)

    def _end(self, why: BpfnbError | None = None) -> None:
        """Tell every waiting caller and every session that the tracer is gone. ``why``: where we could not read on."""
        self._connection.close()
        self._received.put(None)
        death = self.peer.death()
        error = TracerDied(f"{why}; what was collected so far is kept", hint=why.hint) if why else death
        with self._lock:
            self.died = error if isinstance(error, TracerDied) else TracerDied(str(error))
            waiting, self._waiting = list(self._waiting.values()), {}
            listeners, self._listeners = [*self._listeners.values()], {}
            if self._follow:
                listeners.append(self._follow)
        for reply in [self._hello, *waiting]:
            reply.settle(error)
        for listener in listeners:
            try:
                listener.on_death(self.died)
            except Exception:
                traceback.print_exc()  # of one session; the others are told all the same
        self.peer.wait()  # ``close`` waits for this thread, and so until the kernel has let go of everything


# Messages that answer no request: how a session's listener gets them.
_TELL: dict[type, Callable[[Listener, Any, list[int]], None]] = {
    SegmentAdded: lambda listener, message, fds: listener.on_segment(message, fds[0]),
    CountersAdded: lambda listener, message, fds: listener.on_counters(message, fds[0]),
    CostsAdded: lambda listener, message, fds: listener.on_costs(message, fds[0]),
    MapRead: lambda listener, message, fds: listener.on_map(message, _content(fds[0])),
    MapLost: lambda listener, message, fds: listener.on_map_lost(message),
    Noted: lambda listener, message, fds: listener.on_note(message),
    Ended: lambda listener, message, fds: listener.on_ended(message),
    Detached: lambda listener, message, fds: listener.on_detached(),
}


# Requests that may take long, and what they do.
_LONG: dict[type, Callable[[Any], str]] = {
    messages.Load: lambda message: "compiling",
    messages.ReadMap: lambda message: f"reading the map {message.map}",
    messages.TakeMap: lambda message: f"emptying the map {message.map}",
    messages.FindSymbols: lambda message: "looking up names of functions",
    messages.RunChecks: lambda message: "trying what this machine can do",
}


def _folder() -> str:
    """Return the current folder, "" where that has been removed."""
    try:
        return os.getcwd()  # noqa: PTH109 (a str, or none)
    except OSError:
        return ""


def _content(fd: int) -> bytes:
    """Return all of a memfd, as a copy: a mapping would keep a descriptor for as long as the data lives."""
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        return file.read()


class _Reply:
    """The answer that a caller waits for. The reader settles it with an answer or an error; the first one counts."""

    def __init__(self) -> None:
        self._outcome: list[object] = []
        self._settled = Flag()
        self.progress: messages.Progress | None = None  # the latest

    def settle(self, outcome: object) -> None:
        self._outcome.append(outcome)
        self._settled.set()

    def now(self) -> object:
        """Return the answer or the error, None where there is none yet."""
        return self._outcome[0] if self._outcome else None

    def watch(self, step: Step, give_up: Callable[[], None] = lambda: None) -> None:
        """Wait for the answer, saying so. ``give_up`` is called once if nobody waits for it any more."""
        while not self._settled.wait(EVERY):
            if caller_left():
                give_up()
                return
            if progress := self.progress:
                step.say("attaching probes", progress.done, progress.total)
            else:
                step.tick()

    def wait(self, seconds: float | None = None) -> object:
        """Wait for the answer and return it. Raise the error, BpfnbError where there is no answer after ``seconds``."""
        if not self._settled.wait(seconds):
            raise BpfnbError(f"the tracer has not answered for {seconds:g} s")
        outcome = self._outcome[0]
        if not isinstance(outcome, Exception):
            return outcome
        try:
            raise outcome.with_traceback(None)  # that of another caller, whose frames it would keep
        finally:
            del self, outcome  # or the traceback, which has this frame, and the error would keep each other


def _checked(kind: type[Answer], answer: object, asked: object) -> Answer:
    if not isinstance(answer, kind):
        raise _no_answer(answer, asked)
    return answer


def _no_answer(answer: object, asked: object) -> InternalError:
    return InternalError(f"the tracer answered {type(asked).__name__} with {type(answer).__name__}, which is none")
