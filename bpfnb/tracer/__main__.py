"""The tracer process. Its standard input is the socketpair to the one notebook it serves.

A guardian that does nothing but wait, and the worker it forks, which does the work (and has a process of its own to
compile in, compiler.py). Whichever of the two is killed, the other removes what the kernel would not remove by itself
(a tracefs instance outlives its maker; programs, maps and links do not). The worker ends when the notebook does: at the
socket's end of file, or, where a forked child of the notebook still holds the socket, at the death of its maker.
"""

from __future__ import annotations

import os
import platform
import resource
import select
import signal
import socket
import sys
import traceback

from bpfnb import protocol
from bpfnb.errors import BpfnbError, InternalError
from bpfnb.protocol import Connection, FromTracer, ToTracer
from bpfnb.tracer import peer, privileges, tracefs

__all__ = ["main"]

_MAX_DESCRIPTORS = 1 << 16  # a probe takes two; the compiling process closes as many


def main() -> int:
    sock = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    guardian = os.getpid()
    worker = os.fork()
    if worker:
        sock.close()
        return _guard(worker)
    _work(sock, guardian)
    return 0


def _guard(worker: int) -> int:
    # A polite signal to both must not end the guardian before the worker has cleaned up.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(worker, number))
    privileges.drop()
    _, status = os.waitpid(worker, 0)
    tracefs.sweep(worker)
    return os.waitstatus_to_exitcode(status) & 0xFF


def _work(sock: socket.socket, guardian: int) -> None:
    connection: Connection[ToTracer] = Connection(sock, ToTracer)
    try:
        watched = [os.pidfd_open(guardian), *filter(None, [peer.watch(sock)])]
    except ProcessLookupError:  # one of them was quick to end
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, _MAX_DESCRIPTORS), most))
    try:
        service = _Service(connection, watched)
    except BpfnbError as error:
        connection.send(protocol.Failed.of(0, error))
        return
    try:
        watched.append(service.compiler.pidfd)
        while _wait(connection, watched):
            message, _ = connection.receive()
            service.answer(message)
    except (EOFError, BrokenPipeError, ConnectionResetError, _Ended):
        pass  # the notebook is gone, or we were asked to go
    finally:
        service.close()


class _Ended(Exception):
    """A signal asked the worker to end."""


def _end(number: int, frame: object) -> None:
    raise _Ended


def _wait(connection: Connection[ToTracer], watched: list[int]) -> bool:
    """Wait for a message: False when the notebook, the guardian or the compiling process died instead."""
    if connection.pending():
        return True
    ready, _, _ = select.select([connection.fileno(), *watched], [], [])
    return not set(watched) & set(ready)


class _Service:
    """Answers the notebook's requests, one at a time."""

    def __init__(self, connection: Connection[ToTracer], watched: list[int]) -> None:
        self._connection = connection
        privileges.require()
        privileges.mount_tracefs()
        # It shows the kernel's addresses to those who had CAP_SYSLOG when they opened it.
        kallsyms = os.open("/proc/kallsyms", os.O_RDONLY | os.O_CLOEXEC)
        privileges.drop()
        tracefs.sweep_orphans()
        # Imported only now: bcc brings LLVM, whose threads and memory are to begin without the dropped capabilities.
        from bpfnb.tracer.compiler import Compiler
        from bpfnb.tracer.engine import Engine
        from bpfnb.tracer.sessions import Sessions
        from bpfnb.tracer.symbols import Symbols

        engine = Engine()
        self.compiler = Compiler(engine, watched)  # forks, so before there are threads
        self._sessions = Sessions(engine, self.compiler, connection)
        self._symbols = Symbols(kallsyms, privileges.looking)
        connection.send(protocol.Hello(os.getpid(), engine.version, platform.release()))

    def answer(self, message: ToTracer) -> None:
        try:
            reply = self._reply(message)
        except BpfnbError as error:
            reply = protocol.Failed.of(message.request, error)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:
            bug = InternalError(
                f"the tracer failed: {type(error).__name__}: {error}", remote_traceback=traceback.format_exc()
            )
            reply = protocol.Failed.of(message.request, bug)
        if reply:
            self._connection.send(reply)

    def close(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # we are ending already
        self._sessions.stop_all()
        self._symbols.close()
        self.compiler.close()

    def _reply(self, message: ToTracer) -> FromTracer | None:
        """The answer; None when it has been sent, with a descriptor."""
        match message:
            case protocol.Load(request, program, folder):
                self._sessions.start(request, program, folder, self._connection.send)
            case protocol.Stop(request, session):
                self._sessions.stop(session, lambda left: self._connection.send(protocol.Stopped(request, left)))
            case protocol.ReadMap(request, session, name):
                self._sessions.read_map(request, session, name)
            case protocol.LookupMap(request, session, name, key):
                return protocol.MapValue(request, self._sessions.look_up(session, name, key))
            case protocol.TakeMap(request, session, name, most):
                self._sessions.take_map(request, session, name, most)
            case protocol.WriteMap(request, session, name, key, value):
                return protocol.MapWritten(request, self._sessions.write_map(session, name, key, value))
            case protocol.ClearMap(request, session, name):
                self._sessions.clear_map(session, name)
                return protocol.MapWritten(request)
            case protocol.OpenCounter(request, session, name, kind, event):
                self._sessions.open_counter(session, name, kind, event)
                return protocol.MapWritten(request)
            case protocol.FindSymbols(request, pid, addresses):
                return protocol.Symbols(request, *self._symbols.find(pid, addresses))
            case protocol.FindProbes(request, pattern, limit, folder):
                from bpfnb.tracer import probes

                names, more = probes.find(pattern, limit, folder)
                return protocol.ProbeNames(request, names, more)
            case protocol.RunChecks(request):
                from bpfnb.tracer import checks

                return protocol.Checks(request, checks.run())
        return None


if __name__ == "__main__":
    sys.exit(main())
