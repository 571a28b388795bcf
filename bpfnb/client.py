"""The notebook's end: starting the tracer, asking it, hearing from it.

Threads: callers ask and wait; one reader thread hears everything, hands replies to those who wait and segments to the
sessions they belong to. Locks are held for bookkeeping only, never while waiting.
"""

from __future__ import annotations

import atexit
import fcntl
import itertools
import os
import socket
import subprocess
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from bpfnb import protocol, ways
from bpfnb.errors import PrivilegeError, TracerDied
from bpfnb.program import Program
from bpfnb.protocol import (
    Connection,
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
    SegmentAdded,
    Stopped,
    ToTracer,
)

__all__ = ["Client", "Listener", "close", "connect", "replace", "start_in_background"]


class Listener:
    """What a session hears. Called on the reader thread: must neither wait nor raise."""

    def on_loaded(self, loaded: Loaded) -> None: ...

    def on_segment(self, message: SegmentAdded, fd: int) -> None: ...

    def on_counters(self, message: CountersAdded, fd: int) -> None: ...

    def on_costs(self, message: CostsAdded, fd: int) -> None: ...

    def on_map(self, message: MapRead, data: bytes) -> None:
        """A map as it was at the session's end; or, with ``taken``, entries whose taker was interrupted."""

    def on_map_lost(self, message: MapLost) -> None: ...

    def on_ended(self, message: Ended) -> None: ...

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
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Any]] = {}
        self._listeners: dict[int, Listener] = {}
        self._hello: Future[Any] = Future()
        self._reader = threading.Thread(target=self._read, name="bpfnb-reader", daemon=True)
        self._reader.start()

    @classmethod
    def launch(cls) -> Client:
        """Start a tracer; it imports bcc and warms LLVM while we return. PrivilegeError when there is no way to."""
        way = ways.choose()
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

    def hello(self) -> Hello:
        """Wait until the tracer is up. Raises what kept it from coming up."""
        reply = self._hello.result()
        assert isinstance(reply, Hello)
        return reply

    def load(self, program: Program, listener: Listener, limits: Limits) -> tuple[int, Loaded]:
        """Run a program; ``listener`` hears of it from then on. Raises the error that kept it from running."""
        number = next(self._requests)
        with self._lock:
            self._listeners[number] = listener
        try:
            reply = self._ask(protocol.Load(number, program, _folder(), limits))
        except BaseException:
            with self._lock:
                self._listeners.pop(number, None)
            raise
        assert isinstance(reply, Loaded)
        return number, reply

    def stop(self, number: int) -> Stopped:
        """Stop a session. On return its programs are off and all it had is delivered.

        ``on_detached`` follows where the kernel has still to let go of attachments, or large maps are still to be read.
        """
        reply = self._ask(protocol.Stop(next(self._requests), number))  # interrupted, the session goes on hearing
        assert isinstance(reply, Stopped)
        if not reply.detaching and not reply.maps:
            with self._lock:
                self._listeners.pop(number, None)
        return reply

    def read_map(self, session: int, name: str) -> tuple[int, bytes]:
        """How many entries a map of a session has, and their bytes, as MapRead lays them out."""
        message, data = self._ask(protocol.ReadMap(next(self._requests), session, name))
        return message.count, data

    def look_up(self, session: int, name: str, key: bytes) -> bytes | None:
        """A key's value in a map, as MapValue has it."""
        reply = self._ask(protocol.LookupMap(next(self._requests), session, name, key))
        assert isinstance(reply, protocol.MapValue)
        return reply.value

    def take_map(self, session: int, name: str, most: int) -> tuple[int, bytes]:
        """Take entries out of a map, as TakeMap says. The listener gets those that an interrupted call had taken."""
        message, data = self._ask(protocol.TakeMap(next(self._requests), session, name, most))
        return message.count, data

    def write_map(self, session: int, name: str, key: bytes, value: bytes | None) -> bool:
        """Set an entry of a map, or delete it where ``value`` is None; False where there was none to delete."""
        reply = self._ask(protocol.WriteMap(next(self._requests), session, name, key, value))
        assert isinstance(reply, protocol.MapWritten)
        return reply.found

    def open_counter(self, session: int, name: str, kind: str, event: str) -> None:
        """Fill a perf array with a counter."""
        self._ask(protocol.OpenCounter(next(self._requests), session, name, kind, event))

    def clear_map(self, session: int, name: str) -> None:
        self._ask(protocol.ClearMap(next(self._requests), session, name))

    def find_symbols(self, pid: int, addresses: Sequence[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of code addresses of a process, of the kernel for pid 0, and the modules or files they are in."""
        reply = self._ask(protocol.FindSymbols(next(self._requests), pid, tuple(addresses)))
        assert isinstance(reply, protocol.Symbols)
        return reply.names, reply.modules

    def find_probes(self, pattern: str, limit: int) -> tuple[tuple[str, ...], int]:
        reply = self._ask(protocol.FindProbes(next(self._requests), pattern, limit, _folder()))
        assert isinstance(reply, protocol.ProbeNames)
        return reply.names, reply.more

    def run_checks(self) -> tuple[protocol.Check, ...]:
        reply = self._ask(protocol.RunChecks(next(self._requests)))
        assert isinstance(reply, protocol.Checks)
        return reply.rows

    def close(self) -> None:
        """End the tracer, and with it every session of this client. Idempotent."""
        self._connection.close()
        if threading.current_thread() is not self._reader:
            self._reader.join()

    def forget(self) -> None:
        """In a forked child: the tracer is the parent's, and must not hear from us."""
        self.died = TracerDied("this process was forked from the one whose tracer it is")
        self._connection.abandon()

    def _ask(self, message: ToTracer) -> Any:
        """The reply to a message; of a MapRead, the message and its data."""
        self.hello()  # what kept the tracer from coming up says more than that it is gone
        future: Future[Any] = Future()
        with self._lock:
            if self.died:
                raise self.died
            self._waiting[message.request] = future
        with suppress(OSError):  # the reader hears of the end as well, and knows more
            self._connection.send(message)
        try:
            return future.result()
        except BaseException:
            # Interrupted (Ctrl-C) while the tracer is at it: the reply will find nobody, and _hear undoes a Loaded.
            if not future.cancel() and not future.exception():
                self._give_back(future.result())
            raise

    def _read(self) -> None:
        try:
            while True:
                message, fds = self._connection.receive()
                try:
                    self._hear(message, fds)
                finally:
                    for fd in fds:
                        os.close(fd)
        except EOFError:
            pass
        except Exception:
            traceback.print_exc()  # a bug of ours: nobody listens any more, so nobody may wait any more
        self._end()

    def _hear(self, message: FromTracer, fds: list[int]) -> None:
        if isinstance(message, Hello):
            if other := ways.check(self.way, message.version, message.build):
                self._hello.set_exception(other)
                self._connection.close()  # nothing more of it would be understood
            else:
                self._hello.set_result(message)
            return
        if isinstance(message, SegmentAdded):
            if listener := self._listener(message.session):
                listener.on_segment(message, fds[0])
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
        with self._lock:
            future = self._waiting.pop(message.request, None)
            listener = self._listeners.get(message.request)
        if isinstance(message, MapRead):
            data = _content(fds[0])
            if not (future and _settle(future, lambda f: f.set_result((message, data)))):
                self._give_back((message, data))
            return
        if isinstance(message, protocol.Failed):
            error = message.exception()
            _settle(future or self._hello, lambda f: f.set_exception(error))
            return
        if isinstance(message, Loaded) and listener:
            listener.on_loaded(message)
        if not (future and _settle(future, lambda f: f.set_result(message))) and isinstance(message, Loaded):
            self._connection.send(protocol.Stop(next(self._requests), message.request))

    def _listener(self, session: int) -> Listener | None:
        with self._lock:
            return self._listeners.get(session)

    def _give_back(self, reply: Any) -> None:
        """What has been taken out of a map for somebody who was interrupted: the session keeps it for the next."""
        message, data = reply if isinstance(reply, tuple) else (None, b"")
        if message and message.taken and (listener := self._listener(message.session)):
            listener.on_map(message, data)

    def _end(self) -> None:
        """The tracer is gone: everybody who waits and every session hears why."""
        self._connection.close()
        status = self._process.wait() if self._process else None
        output = _last_words(self._log)
        error = self._death(status, output)
        with self._lock:
            self.died = error if isinstance(error, TracerDied) else TracerDied(str(error))
            waiting, self._waiting = list(self._waiting.values()), {}
            listeners, self._listeners = list(self._listeners.values()), {}
        for future in [self._hello, *waiting]:
            _settle(future, lambda f: f.set_exception(error))
        for listener in listeners:
            listener.on_death(self.died)

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


def _settle(future: Future[Any], act: Callable[[Future[Any]], None]) -> bool:
    """Complete a future unless its waiter has given up or it is complete. Whether it was completed now."""
    try:
        act(future)
    except InvalidStateError:
        return False
    return True


def _last_words(log: int) -> str:
    if log < 0:
        return ""
    text = os.pread(log, 1 << 16, max(os.fstat(log).st_size - (1 << 16), 0)).decode(errors="replace")
    os.close(log)
    return text


# --- the one tracer of this process -------------------------------------------------------------------------------

_lock = threading.Lock()
_client: Client | None = None


def connect() -> Client:
    """The tracer of this process, started when there is none. Raises what keeps it from starting."""
    global _client
    with _lock:
        if _client is None or _client.died:
            _client = Client.launch()
        client = _client
    client.hello()
    return client


def replace(client: Client | None) -> Client | None:
    """Put another client (bpfnb.testing's) in the place of this process's; returns the one before."""
    global _client
    with _lock:
        before, _client = _client, client
    return before


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
def close() -> None:
    """End this process's tracer; another is started when needed."""
    global _client
    with _lock:
        client, _client = _client, None
    if client:
        client.close()


def _after_fork() -> None:
    global _client, _lock
    _lock = threading.Lock()  # the parent's may have been held
    client, _client = _client, None
    if client:
        client.forget()


os.register_at_fork(after_in_child=_after_fork)
