"""The notebook's end: starting the tracer, asking it, hearing from it.

Threads: callers ask and wait, where no signal interrupts them (bpfnb.interrupts); one reader thread hears everything,
hands replies to those who wait and segments to the sessions they belong to; another acknowledges segments. Locks are
held for bookkeeping only, never while waiting.
"""

from __future__ import annotations

import atexit
import fcntl
import itertools
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from bpfnb.errors import BpfnbError, InternalError, PrivilegeError, TracerDied, few_descriptors
from bpfnb.host import ways
from bpfnb.interrupts import Flag, new_lock, uninterrupted
from bpfnb.language.program import Program
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

__all__ = ["Client", "Listener", "close", "connect", "replace", "start_in_background"]

Answer = TypeVar("Answer")

_CONTINUE_AFTER = 1.0  # seconds
_CLOSE_TIMEOUT = 60.0  # seconds: detaching hundreds of tracepoints takes the kernel so long


_STATUS_TIMEOUT = 0.5  # seconds
_MAX_KEEP = 1 << 62  # what a message can carry


class Listener:
    """What a session hears. Called on the reader thread: must neither wait nor raise."""

    def on_loaded(self, loaded: Loaded) -> None: ...

    def on_segment(self, message: SegmentAdded, fd: int) -> None: ...

    def on_counters(self, message: CountersAdded, fd: int) -> None: ...

    def on_costs(self, message: CostsAdded, fd: int) -> None: ...

    def on_map(self, message: MapRead, data: bytes) -> None:
        """A map as it was at the session's end."""

    def on_map_lost(self, message: MapLost) -> None: ...

    def on_ended(self, message: Ended) -> None: ...

    def on_note(self, message: Noted) -> None: ...

    def on_detached(self) -> None: ...

    def on_death(self, error: TracerDied) -> None: ...


class Client:
    """A conversation with one tracer. ``died`` is set, and stays set, once the tracer is gone."""

    def __init__(
        self,
        sock: socket.socket,
        process: subprocess.Popen[bytes] | None = None,
        log: int = -1,
        way: ways.Way = ways.Way("direct"),  # noqa: B008 (it is frozen)
    ) -> None:
        self.died: TracerDied | None = None
        self._connection: Connection[FromTracer] = Connection(sock, FromTracer)
        self._process = process
        self._log = log
        self.way = way
        self._requests = itertools.count(1)
        self._lock = new_lock()
        self._waiting: dict[int, _Reply] = {}
        self._listeners: dict[int, Listener] = {}
        self._hello = _Reply()
        self._reader = threading.Thread(target=self._read, name="bpfnb-reader", daemon=True)
        self._received: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # sessions, by segment
        threading.Thread(target=self._acknowledge, name="bpfnb-acks", daemon=True).start()
        self._reader.start()

    @classmethod
    def launch(cls, way: ways.Way | None = None) -> Client:
        """Start a tracer; it imports bcc and warms LLVM while we return. PrivilegeError when there is no way to."""
        way = way or ways.choose()
        if way.socket:
            return cls(ways.connect(way), way=way)
        ours, theirs = socket.socketpair()
        # A memfd, not a pipe: nobody has to read it while the tracer runs, and its last words are still there after.
        log = os.memfd_create("bpfnb-tracer-log", os.MFD_CLOEXEC)
        fcntl.fcntl(log, fcntl.F_SETFL, os.O_APPEND)  # several processes write to it
        try:
            process = subprocess.Popen(
                way.command, stdin=theirs.fileno(), stdout=log, stderr=log, start_new_session=True
            )
        except BaseException:
            ours.close()
            os.close(log)
            raise
        finally:
            theirs.close()
        return cls(ours, process, log, way)

    @uninterrupted
    def hello(self) -> Hello:
        """Wait until the tracer is up. Raises what kept it from coming up."""
        return _checked(Hello, self._hello.wait(), "what it was started with")

    @uninterrupted
    def load(self, program: Program, listener: Listener, limits: Limits, keep: int) -> tuple[int, Loaded]:
        """Run a program; ``listener`` hears of it from then on. Raises the error that kept it from running.

        ``keep``: bytes of rows it may keep.
        """
        number = next(self._requests)
        with self._lock:
            self._listeners[number] = listener
        try:
            load = messages.Load(number, program, _folder(), limits, min(keep, _MAX_KEEP))
            return number, self._ask(load, Loaded)
        except BaseException:
            with self._lock:
                self._listeners.pop(number, None)
            raise

    @uninterrupted
    def stop(self, number: int) -> Stopped:
        """Stop a session. On return its programs are off and all it had is delivered.

        ``on_detached`` follows where the kernel has still to let go of attachments, or large maps are still to be read.
        """
        reply = self._ask(messages.Stop(next(self._requests), number), Stopped)
        if not reply.detaching and not reply.maps:
            with self._lock:
                self._listeners.pop(number, None)
        return reply

    def read_map(self, session: int, name: str) -> tuple[int, bytes]:
        """How many entries a map of a session has, and their bytes, as MapRead lays them out."""
        return self._ask_map(messages.ReadMap(next(self._requests), session, name))

    def look_up(self, session: int, name: str, key: bytes) -> bytes | None:
        """A key's value in a map, as MapValue has it."""
        return self._ask(messages.LookupMap(next(self._requests), session, name, key), messages.MapValue).value

    def take_map(self, session: int, name: str, most: int) -> tuple[int, bytes]:
        """Take entries out of a map, as TakeMap says. Nobody has them but the caller."""
        return self._ask_map(messages.TakeMap(next(self._requests), session, name, most))

    def write_map(self, session: int, name: str, key: bytes, value: bytes | None) -> bool:
        """Set an entry of a map, or delete it where ``value`` is None; False where there was none to delete."""
        return self._ask(messages.WriteMap(next(self._requests), session, name, key, value), messages.MapWritten).found

    def open_counter(self, session: int, name: str, kind: str, event: str) -> None:
        """Fill a perf array with a counter."""
        self._ask(messages.OpenCounter(next(self._requests), session, name, kind, event), messages.MapWritten)

    def clear_map(self, session: int, name: str) -> None:
        self._ask(messages.ClearMap(next(self._requests), session, name), messages.MapWritten)

    def find_symbols(self, pid: int, addresses: Sequence[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of code addresses of a process, of the kernel for pid 0, and the modules or files they are in."""
        reply = self._ask(messages.FindSymbols(next(self._requests), pid, tuple(addresses)), messages.Symbols)
        return reply.names, reply.modules

    def find_probes(self, pattern: str, limit: int) -> tuple[tuple[str, ...], int]:
        reply = self._ask(messages.FindProbes(next(self._requests), pattern, limit, _folder()), messages.ProbeNames)
        return reply.names, reply.more

    def run_checks(self) -> tuple[messages.Check, ...]:
        return self._ask(messages.RunChecks(next(self._requests)), messages.Checks).rows

    @uninterrupted
    def close(self) -> None:
        """End the tracer, and with it every session of this client. Idempotent.

        A tracer that is stopped (SIGSTOP) is continued, since its programs would stay attached, or, where it is not
        ours to signal, left alone with a word about it. What takes longer than a minute to end is not waited for.
        """
        self._connection.close()
        for seconds in (_CONTINUE_AFTER, _CONTINUE_AFTER, _CLOSE_TIMEOUT):
            self._reader.join(seconds)
            if not self._reader.is_alive() or not self._continue():
                return

    def _continue(self) -> bool:
        """Have a stopped tracer go on. Whether it may be expected to end."""
        stopped = [pid for pid in self._processes() if _is_stopped(pid)]
        try:
            if stopped and self._process:
                os.killpg(self._process.pid, signal.SIGCONT)  # it leads a group of its own
        except OSError:
            which = " ".join(map(str, stopped))
            print(f"bpfnb: the tracer is stopped, and its programs stay attached: kill -CONT {which}", file=sys.stderr)
            return False
        return True

    def _processes(self) -> set[int]:
        """The tracer's processes that are known here: the one that was started, and the worker."""
        started = {self._process.pid} if self._process else set()
        return started | {hello.pid for hello in [self._hello.now()] if isinstance(hello, Hello)}

    def forget(self) -> None:
        """In a forked child: the tracer is the parent's, and must not hear from us."""
        self.died = TracerDied("this process was forked from the one whose tracer it is")
        self._connection.abandon()

    @uninterrupted
    def _ask(self, message: Request, kind: type[Answer]) -> Answer:
        """The tracer's answer to a message. Raises the error it answers with; InternalError for what is no answer."""
        return _checked(kind, self._reply(message), message)

    @uninterrupted
    def _ask_map(self, message: messages.ReadMap | messages.TakeMap) -> tuple[int, bytes]:
        """How many entries there are in the answer, and their bytes."""
        answer, data = _checked(tuple, self._reply(message), message)
        if (answer.session, answer.map) != (message.session, message.map):
            raise _no_answer(answer, message)
        return answer.count, data

    def _reply(self, message: Request) -> object:
        """What the tracer answers to a message; of a map, the message and its data."""
        self.hello()  # what kept the tracer from coming up says more than that it is gone
        reply = _Reply()
        with self._lock:
            if self.died:
                raise self.died
            self._waiting[message.request] = reply
        with suppress(OSError):  # the reader hears of the end as well, and knows more
            self._connection.send(message)
        try:
            return reply.wait()
        finally:
            del reply  # see _Reply.wait

    def _read(self) -> None:
        try:
            while True:
                message, fds = self._connection.receive()
                try:
                    self._hear(message, fds)
                finally:
                    for fd in fds:
                        os.close(fd)
        except Exception as error:
            why = few_descriptors(error)
            if not why and not isinstance(error, EOFError):
                traceback.print_exc()  # a bug of ours: nobody listens any more, so nobody may wait any more
        self._end(why)

    def _acknowledge(self) -> None:
        """Tell the tracer of each segment received. Not on the reader thread, which must not wait for the tracer: that
        takes no requests while the notebook does not read."""
        with suppress(OSError):  # the tracer is gone, and we shall hear of it
            while (session := self._received.get()) is not None:
                self._connection.send(messages.Received(session))

    def _hear(self, message: FromTracer, fds: list[int]) -> None:
        if isinstance(message, Hello):
            if other := ways.check(self.way, message.version, message.build):
                self._hello.settle(other)
                self._connection.close()  # nothing more of it would be understood
            else:
                self._hello.settle(message)
            return
        if isinstance(message, SegmentAdded):
            if listener := self._listener(message.session):
                listener.on_segment(message, fds[0])
            self._received.put(message.session)
            return
        if isinstance(message, Detached):
            with self._lock:
                listener = self._listeners.pop(message.session, None)
            if listener:
                listener.on_detached()
            return
        if isinstance(message, Ended):
            with self._lock:
                listener = self._listeners.get(message.session)
                if not message.detaching and not message.maps:
                    self._listeners.pop(message.session, None)
            if listener:
                listener.on_ended(message)
            return
        if isinstance(message, Noted):
            if listener := self._listener(message.session):
                listener.on_note(message)
            return
        if isinstance(message, CountersAdded):
            if listener := self._listener(message.session):
                listener.on_counters(message, fds[0])
            return
        if isinstance(message, MapLost):
            if listener := self._listener(message.session):
                listener.on_map_lost(message)
            return
        if isinstance(message, CostsAdded):
            if listener := self._listener(message.session):
                listener.on_costs(message, fds[0])
            return
        if isinstance(message, MapRead) and not message.request:
            if listener := self._listener(message.session):
                listener.on_map(message, _content(fds[0]))
            return
        if isinstance(message, messages.Failed) and not message.request:
            self._hello.settle(message.exception())
            return
        with self._lock:
            reply = self._waiting.pop(message.request, None)
            listener = self._listeners.get(message.request)
        if reply is None:
            return  # to nothing that was asked
        if isinstance(message, MapRead):
            reply.settle((message, _content(fds[0])))
        elif isinstance(message, messages.Failed):
            reply.settle(message.exception())
        else:
            if isinstance(message, Loaded) and listener:
                listener.on_loaded(message)
            reply.settle(message)

    def _listener(self, session: int) -> Listener | None:
        with self._lock:
            return self._listeners.get(session)

    def _end(self, why: BpfnbError | None = None) -> None:
        """The tracer is gone, or we can hear it no more: everybody who waits and every session hears why."""
        self._connection.close()
        self._received.put(None)
        status = self._status()
        output = _last_words(self._log)
        error = (
            TracerDied(f"{why}; what was collected so far is kept", hint=why.hint)
            if why
            else self._death(status, output)
        )
        with self._lock:
            self.died = error if isinstance(error, TracerDied) else TracerDied(str(error))
            waiting, self._waiting = list(self._waiting.values()), {}
            listeners, self._listeners = list(self._listeners.values()), {}
        for reply in [self._hello, *waiting]:
            reply.settle(error)
        for listener in listeners:
            try:
                listener.on_death(self.died)
            except Exception:
                traceback.print_exc()  # of one session; the others hear of it all the same
        if self._process:
            self._process.wait()  # ``close`` waits for this thread, and so until the kernel has let go of everything

    def _status(self) -> int | None:
        """How the tracer ended; None where that is not known soon: the kernel may be detaching its probes for long."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(_STATUS_TIMEOUT) if self._process else None
        return None

    def _death(self, status: int | None, output: str) -> Exception:
        if output.lstrip().startswith("sudo:"):
            return ways.refused()
        how = "" if status is None else f" (signal {-status})" if status < 0 else f" (exit status {status})"
        message = f"the tracer process ended{how}; what was collected so far is kept"
        hint = "the journal has its last words: journalctl -t bpfnb" if self.way.socket else None
        return TracerDied(message, status=status, output=output, hint=hint)


def _folder() -> str:
    """The folder this process is in, "" when that has been removed."""
    try:
        return os.getcwd()  # noqa: PTH109 (a str, or none)
    except OSError:
        return ""


def _content(fd: int) -> bytes:
    """All of a memfd, copied: a mapping would hold on to a descriptor for as long as the data lives."""
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        return file.read()


class _Reply:
    """What one caller waits for: the reader settles it, with an answer or an error; the first time counts."""

    def __init__(self) -> None:
        self._outcome: list[object] = []
        self._settled = Flag()

    def settle(self, outcome: object) -> None:
        self._outcome.append(outcome)
        self._settled.set()

    def now(self) -> object:
        """The answer or the error, None where there is none yet."""
        return self._outcome[0] if self._outcome else None

    def wait(self) -> object:
        """The answer. Raises the error."""
        self._settled.wait()
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


def _is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False  # it has ended, or is not shown to us


def _last_words(log: int) -> str:
    if log < 0:
        return ""
    text = os.pread(log, 1 << 16, max(os.fstat(log).st_size - (1 << 16), 0)).decode(errors="replace")
    os.close(log)
    return text


# --- the one tracer of this process -------------------------------------------------------------------------------

_lock = new_lock()
_client: Client | None = None


@uninterrupted
def connect() -> Client:
    """The tracer of this process, started when there is none. Raises what keeps it from starting."""
    global _client
    with _lock:
        if _client is None or _client.died:
            _client = Client.launch()
        client = _client
    client.hello()
    return client


@uninterrupted
def replace(client: Client | None) -> Client | None:
    """Put another client (bpfnb.testing's) in the place of this process's; returns the one before."""
    global _client
    with _lock:
        before, _client = _client, client
    return before


@uninterrupted
def start_in_background() -> None:
    """Start the tracer without waiting for it; errors are left to the first one who needs it."""
    global _client
    with _lock:
        if _client is None:
            try:
                _client = Client.launch()
            except PrivilegeError:
                return  # connect() raises it again, to somebody who asked


@atexit.register
@uninterrupted
def close() -> None:
    """End this process's tracer; another is started when needed."""
    global _client
    with _lock:
        client, _client = _client, None
    if client:
        client.close()


def _after_fork() -> None:
    global _client
    client, _client = _client, None
    if client:
        client.forget()


os.register_at_fork(after_in_child=_after_fork)
