"""Run the tracer: a supervisor and its worker. Standard input is the socketpair to the one notebook it serves.

The supervisor only waits. The worker, which it forks, does the work, and has a process of its own to compile in
(compiler.py). If one of the two is killed, the other removes the tracefs instances, which outlive their process;
programs, maps and links are removed by the kernel. The worker ends when the notebook does: at the socket's end of file,
or, where a forked child of the notebook still holds the socket, when the process that made it ends.

Signals are blocked in all of the worker's threads, and its main thread reads them from a descriptor. A handler could
interrupt that thread anywhere: in the middle of a message, or inside a ``try`` that catches what the handler raises.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Collection
from contextlib import suppress

from bpfnb.errors import BpfnbError, SetupError
from bpfnb.protocol import messages
from bpfnb.protocol.connection import Connection
from bpfnb.protocol.messages import ToTracer
from bpfnb.tracer.access import impersonate, peer
from bpfnb.tracer.access.audit import Audit
from bpfnb.tracer.access.peer import Peer
from bpfnb.tracer.access.policy import Policy
from bpfnb.tracer.kernel import capabilities, tracefs
from bpfnb.tracer.outbox import Outbox
from bpfnb.tracer.service import Service

__all__ = ["main"]

_MAX_DESCRIPTORS = 1 << 16  # a probe takes two; the compiling process closes that many
_END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CLOSE_TIMEOUT = 1.0  # seconds for the notebook to read the last messages
_RETRY_SECONDS = 0.05  # while there is no room for requests


def main(*, service: bool = False) -> int:
    """Run the supervisor and, in a forked process, the worker. Return the exit status.

    ``service``: the tracer was started for any user who may connect (policy.py), by the launcher of ``bpfnb setup``.
    """
    # Before there is a second process or thread. Signals now stay pending until they are read.
    signal.pthread_sigmask(signal.SIG_BLOCK, _END_SIGNALS)
    sock = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    capabilities.mount_tracefs()
    tracefs.hold()
    supervisor, who = os.getpid(), peer.of(sock)
    worker = os.fork()
    if worker:
        sock.close()
        return _supervise(worker, who, service)
    _work(sock, supervisor, service)
    return 0


# --- the supervisor -----------------------------------------------------------------------------------------------


def _supervise(worker: int, who: Peer, service: bool) -> int:
    """Forward signals, wait for the worker to end, clean up after it, and return its exit status."""
    pidfd = os.pidfd_open(worker)
    capabilities.drop()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    while os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        number = signal.sigwait({*_END_SIGNALS, signal.SIGCHLD})
        if number != signal.SIGCHLD:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)  # not by its number, which may be reused by now
    _, status = os.waitpid(worker, 0)
    tracefs.sweep()
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        print(f"the tracer's worker {_ended(code)}", file=sys.stderr)
    if status:
        with suppress(SetupError):  # the policy has a mistake, which the worker has reported
            Audit(Policy(who, service=service).audit, who).died(worker, code)
    if code == -signal.SIGKILL:
        os.kill(os.getpid(), signal.SIGKILL)  # show our parent how the worker ended
    return code & 0xFF


# --- the worker ---------------------------------------------------------------------------------------------------


def _work(sock: socket.socket, supervisor: int, by_service: bool) -> None:
    """Serve the notebook until it, the supervisor or the compiler ends, or a signal comes. Does not return."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, _MAX_DESCRIPTORS), most))
    try:
        ends = {_signals(), os.pidfd_open(supervisor), *filter(None, [peer.watch(sock)])}
    except ProcessLookupError:  # one of them has already ended
        return
    sock = _moved_up(sock)
    connection: Connection[ToTracer] = Connection(sock, ToTracer, descriptors=1)
    outbox = Outbox(connection)
    # Not poll(2): it refuses more descriptors than the process may have at the time (RLIMIT_NOFILE).
    poll = select.epoll()
    try:
        service = Service(outbox, peer.of(sock), impersonate.user_of(sock), by_service)
    except BpfnbError as error:
        outbox.send(messages.Failed.of(0, error))
        outbox.close(_CLOSE_TIMEOUT)
        return
    status = 0
    try:
        _attend(poll, connection, service, {*ends, service.compiler.pidfd})
        if service.compiler.ended:
            print(f"the tracer's compiler {_ended(service.compiler.status)}", file=sys.stderr)
    except EOFError:
        pass  # the peer is gone, or is not a notebook
    except BaseException:
        traceback.print_exc()
        status = 70
    service.close()
    outbox.close(_CLOSE_TIMEOUT)
    sys.stderr.flush()
    os._exit(status)  # without waiting for threads: the kernel frees everything with our descriptors


def _attend(poll: select.epoll, connection: Connection[ToTracer], service: Service, ends: Collection[int]) -> None:
    """Accept requests until one of ``ends`` is readable or the notebook has hung up."""
    for fd in {*ends, connection.fileno()}:
        poll.register(fd, select.EPOLLIN)
    while True:
        accepting = service.accepting
        received = connection.poll() if accepting else None
        if received:
            message, fds = received
            try:
                service.accept(message, connection.size, fds)
            finally:
                for fd in fds:
                    os.close(fd)
        poll.modify(connection.fileno(), select.EPOLLRDHUP | (select.EPOLLIN if accepting else 0))
        ready = poll.poll(0 if received else None if accepting else _RETRY_SECONDS)
        if any(fd in ends or event & ~select.EPOLLIN for fd, event in ready):
            return


def _moved_up(sock: socket.socket) -> socket.socket:
    """Return the socket at the highest possible descriptor.

    The kernel closes the descriptors of a killed process from the last to the first: each is put on a list of pending
    work, and the newest is taken off first. Closing a tracepoint takes some 40 ms, so the notebook now learns of the
    end before those.
    """
    number = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1
    with sock:
        return socket.socket(fileno=fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, number))


def _ended(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit status {code}"


def _signals() -> int:
    """Return a descriptor that is readable when a signal to end has come: signalfd(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    mask = (ctypes.c_ulong * (1024 // (8 * ctypes.sizeof(ctypes.c_ulong))))()
    for number in _END_SIGNALS:
        mask[0] |= 1 << (number - 1)
    fd: int = libc.signalfd(-1, ctypes.byref(mask), os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "signalfd")
    return fd


if __name__ == "__main__":
    sys.exit(main(service="--service" in sys.argv[1:]))
