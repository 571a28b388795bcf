"""Answer the notebook's requests.

The worker's main thread accepts requests and passes them to threads. Requests of one session are answered in order,
those of different sessions concurrently. ``Stop`` has threads of its own, so a session is detached at once, whatever
else goes on. The number of bytes accepted and the number of threads are limited.
"""

from __future__ import annotations

import os
import platform
import threading
import traceback
from collections.abc import Hashable, Sequence
from functools import partial

from bpfnb import release
from bpfnb.errors import BpfnbError, InternalError, ProgramError, few_descriptors
from bpfnb.protocol import messages
from bpfnb.protocol.messages import FromTracer, Request, ToTracer
from bpfnb.tracer.access import impersonate
from bpfnb.tracer.access.audit import Audit
from bpfnb.tracer.access.peer import Peer
from bpfnb.tracer.access.policy import Policy
from bpfnb.tracer.kernel import capabilities, tracefs
from bpfnb.tracer.lanes import Lanes
from bpfnb.tracer.outbox import Outbox
from bpfnb.tracer.sessions import follower
from bpfnb.tracer.sessions.audience import Audience

__all__ = ["Numbers", "Service"]

_MAX_THREADS = 32
_MAX_STOP_THREADS = 16
_MAX_BYTES = 64 << 20  # of requests accepted and not answered yet
_MIN_BYTES = 256 << 10  # a request counts as at least so many: it costs more than its text
_MAX_NUMBER = 1 << 63
_MAX_LISTED = 200_000  # probes in an answer


class Service:
    """Answers requests. ``accept`` and ``close`` are for the main thread, and never wait for a request to be answered.

    ``compiler``: has a process of its own; when that ends, the worker ends too. ``user``: the user who asks, None for
    root (impersonate.py).
    """

    def __init__(
        self, outbox: Outbox, who: Peer, user: impersonate.User | None = None, by_service: bool = False
    ) -> None:
        self._outbox = outbox
        self._policy = Policy(who, service=by_service)
        self._numbers = Numbers()
        self._lock = threading.Lock()
        self._pending = 0  # bytes
        self._closing = False
        capabilities.require()
        impersonate.require(user)
        # It shows addresses to processes that had CAP_SYSLOG when they opened it.
        kallsyms = os.open("/proc/kallsyms", os.O_RDONLY | os.O_CLOEXEC)
        capabilities.drop(also=capabilities.BECOMING if user else ())
        tracefs.sweep_orphans()
        # Imported only now: bcc loads LLVM, whose threads must start without the dropped capabilities.
        from bpfnb.tracer.compile.compiler import Compiler
        from bpfnb.tracer.compile.engine import Engine
        from bpfnb.tracer.link import uprobe
        from bpfnb.tracer.loaders import loaders
        from bpfnb.tracer.sessions.sessions import Sessions
        from bpfnb.tracer.symbols.symbols import Symbols

        engine = Engine()
        self.compiler = Compiler(engine, user)  # it forks, so there must be no threads yet
        capabilities.forgo(*capabilities.BECOMING)
        uprobe.restrict(self._policy.check_file)
        self._audience = Audience(outbox)
        self._sessions = Sessions(loaders(self.compiler), self._audience, self._policy, Audit(self._policy.audit, who))
        self._symbols = Symbols(kallsyms, capabilities.with_sys_ptrace)
        self._requests = Lanes("bpfnb-request", _MAX_THREADS)
        self._stops = Lanes("bpfnb-stop", _MAX_STOP_THREADS)
        about = (engine.version, platform.release(), release.version(), release.build())
        self._hello = messages.Hello(os.getpid(), *about)
        outbox.send(self._hello)

    @property
    def accepting(self) -> bool:
        """Whether there is room for another request: none are accepted from a notebook that does not read replies."""
        return self._pending < _MAX_BYTES and not self._outbox.full

    def accept(self, message: ToTracer, size: int, fds: Sequence[int] = ()) -> None:
        """Accept a request of ``size`` bytes, which a thread will answer. The descriptors stay the caller's."""
        if isinstance(message, messages.Received):
            self._sessions.received(message.session, message.segments)
            return
        try:
            self._numbers.use(message.request)
            if isinstance(message, messages.Load) and message.follower:
                self._follow(message.request, fds)
        except BpfnbError as error:
            self._outbox.send(messages.Failed.of(message.request, error))
            return
        weight = size + _MIN_BYTES
        with self._lock:
            self._pending += weight
        lanes = self._stops if isinstance(message, messages.Stop) else self._requests
        if isinstance(message, messages.Load):
            self._sessions.expect(message.request)
        lanes.put(_lane(message), partial(self._run, message, weight))

    def close(self) -> None:
        """End every session and the compiling process. Requests under way are not waited for: this process ends."""
        self._closing = True
        self._sessions.stop_all()
        self.compiler.close()
        self._audience.leave()

    def _follow(self, session: int, fds: Sequence[int]) -> None:
        """Have somebody follow a session that is about to be loaded. ProgramError."""
        try:
            sock = follower.accepted(fds, self._policy.peer)
            follows = follower.Follower(sock, self._hello, partial(self._answer_follower, session))
        except OSError as error:
            raise few_descriptors(error) or ProgramError(f"nobody can follow the session: {error}") from None
        self._audience.add(session, follows)

    def _answer_follower(
        self, session: int, message: messages.ReadMap | messages.FindSymbols, outbox: Outbox
    ) -> messages.Symbols | None:
        """Answer who follows a session; of others nothing is said."""
        if message.session != session:
            raise ProgramError(f"{message.session} is not the session that is followed here")
        if isinstance(message, messages.ReadMap):
            self._sessions.maps.read(message.request, session, message.map, outbox)
            return None
        return self._find_symbols(message)

    def _find_symbols(self, message: messages.FindSymbols) -> messages.Symbols:
        _require_addresses(message.pid, message.addresses)
        self._policy.check_symbols(message.pid)
        past = self._sessions.past(message.session, message.pid)
        return messages.Symbols(message.request, *self._symbols.find(message.pid, message.addresses, past))

    def _run(self, message: Request, weight: int) -> None:
        try:
            if isinstance(message, messages.Stop) or self._outbox.wait_for_room():
                self._answer(message)
        finally:
            with self._lock:
                self._pending -= weight

    def _answer(self, message: Request) -> None:
        try:
            reply = self._reply(message)
            if reply:
                self._outbox.send(reply)
        except BpfnbError as error:
            self._fail(message.request, error)
        except Exception as error:
            bug: BpfnbError = few_descriptors(error) or InternalError(
                f"the tracer failed: {type(error).__name__}: {error}", remote_traceback=traceback.format_exc()
            )
            self._fail(message.request, bug)

    def _fail(self, request: int, error: BpfnbError) -> None:
        if self._closing or self.compiler.ended:
            return  # it failed because the worker ends, which the notebook will be told
        failed = messages.Failed.of(request, error)
        try:
            self._outbox.send(failed)
        except UnicodeEncodeError:  # file names need not be text
            message = failed.message.encode(errors="backslashreplace").decode()
            self._outbox.send(messages.Failed(request, failed.error, message, {}))

    def _reply(self, message: Request) -> FromTracer | None:
        """Answer a request. Return the reply, or None when it is sent elsewhere."""
        sessions = self._sessions
        match message:
            case messages.Load(request, program, folder, limits, keep, _):
                sessions.start(request, program, folder, limits, keep, self._audience.say_loaded)
            case messages.Stop(request, session):
                sessions.stop(session, lambda left, maps: self._outbox.send(messages.Stopped(request, left, maps)))
            case messages.ReadMap(request, session, name):
                sessions.maps.read(request, session, name)
            case messages.LookupMap(request, session, name, key):
                return messages.MapValue(request, sessions.maps.look_up(session, name, key))
            case messages.TakeMap(request, session, name, most):
                sessions.maps.take(request, session, name, most)
            case messages.WriteMap(request, session, name, key, value):
                return messages.MapWritten(request, sessions.maps.write(session, name, key, value))
            case messages.ClearMap(request, session, name):
                sessions.maps.clear(session, name)
                return messages.MapWritten(request)
            case messages.OpenCounter(request, session, name, kind, event):
                sessions.maps.open_counter(session, name, kind, event)
                return messages.MapWritten(request)
            case messages.Ping(request):
                return messages.Pong(request)
            case messages.FindSymbols():
                return self._find_symbols(message)
            case messages.FindProbes(request, pattern, limit, folder):
                from bpfnb.tracer.link import catalog

                _require_limit(limit)
                names, more = catalog.find(pattern, limit, folder)
                return messages.ProbeNames(request, names, more)
            case messages.ListProbes(request, pattern, limit, folder):
                from bpfnb.tracer.probes.listing import listed

                _require_limit(limit)
                rows, more = listed(pattern, min(limit, _MAX_LISTED), folder)
                names, arguments, returns, notes = zip(*rows, strict=True) if rows else ((), (), (), ())
                return messages.ProbesListed(request, names, arguments, returns, notes, more)
            case messages.DescribeProbes(request, probes, paths, limit, folder):
                from bpfnb.tracer.probes.describe import describe

                return messages.ProbesDescribed(request, describe(probes, paths, limit, folder))
            case messages.DescribeType(request, type_, path, limit):
                from bpfnb.tracer.signatures.lookup import describe_type

                _require_limit(limit, "members")
                return describe_type(request, type_, path, limit)
            case messages.FindNames(request, start, limit):
                from bpfnb.tracer.signatures.lookup import find_names

                _require_limit(limit, "names")
                return find_names(request, start, limit)
            case messages.RunChecks(request):
                from bpfnb.tracer.doctor import checks

                return messages.Checks(request, (*checks.run(), self._policy.check()))
        return None


def _lane(message: Request) -> Hashable:
    """Return the lane of a request: requests of one lane are answered in order."""
    match message:
        case messages.Load(request):
            return request
        case (
            messages.Ping()
            | messages.FindSymbols()
            | messages.FindProbes()
            | messages.ListProbes()
            | messages.DescribeProbes()
            | messages.DescribeType()
            | messages.FindNames()
            | messages.RunChecks()
        ):
            return type(message).__name__
    return message.session


def _require_limit(limit: int, what: str = "probes") -> None:
    if limit < 0:
        raise ProgramError(f"the limit of {what} must not be negative: {limit}")


def _require_addresses(pid: int, addresses: tuple[int, ...]) -> None:
    if not 0 <= pid < 1 << 31:
        raise ProgramError(f"there is no process {pid}")
    for address in addresses:
        if not 0 <= address < 1 << 64:
            raise ProgramError(f"{address} is not an address")


class Numbers:
    """Checks that each request's number is used once.

    Numbers rise, but concurrent callers may send them slightly out of order, so the latest ones are remembered.
    """

    _REMEMBERED = 4096

    def __init__(self) -> None:
        self._used: set[int] = set()
        self._highest = 0

    def use(self, number: int) -> None:
        """Mark a number as used. Raise ProgramError where it was used, may have been, or is out of range."""
        if not 0 < number < _MAX_NUMBER:
            raise ProgramError(f"{number} is not a request number")
        if number in self._used or number <= self._highest - self._REMEMBERED:
            raise ProgramError(f"request number {number} has been used before")
        self._used.add(number)
        self._highest = max(self._highest, number)
        if len(self._used) > 2 * self._REMEMBERED:
            self._used = {n for n in self._used if n > self._highest - self._REMEMBERED}
