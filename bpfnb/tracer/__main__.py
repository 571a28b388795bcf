"""The tracer process. Its standard input is the socketpair to the one notebook it serves.

A supervisor that does nothing but wait, and the worker it forks, which does the work (and has a process of its own to
compile in, compiler.py). Whichever of the two is killed, the other removes what the kernel would not remove by itself
(a tracefs instance outlives its maker; programs, maps and links do not). The worker ends when the notebook does: at the
socket's end of file, or, where a forked child of the notebook still holds the socket, at the death of its maker.

Signals are blocked in all of the worker's threads and read from a descriptor by its main one. A handler would be called
wherever that thread is: in the middle of a conversation, or within a ``try`` that takes what it raises for its own.
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
from bpfnb.tracer.access import asker, peer
from bpfnb.tracer.access.audit import Audit
from bpfnb.tracer.access.peer import Peer
from bpfnb.tracer.access.policy import Policy
from bpfnb.tracer.kernel import capabilities, tracefs
from bpfnb.tracer.outbox import Outbox
from bpfnb.tracer.service import Service

__all__ = ["main"]

_MAX_DESCRIPTORS = 1 << 16  # a probe takes two; the compiling process closes as many
_POLITE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 1.0  # seconds for the notebook to read what is left at the end
_LOOK_AGAIN = 0.05  # seconds, while there is no room for requests


def main(*, service: bool = False) -> int:
    """``service``: it was started for whoever may connect (policy.py), as the launcher of ``bpfnb setup`` does."""
    # Before there is a second process or thread: what comes from now on waits until somebody reads it.
    signal.pthread_sigmask(signal.SIG_BLOCK, _POLITE)
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
    """Hand signals on, wait for the worker's end, and clean up after it: its exit status."""
    pidfd = os.pidfd_open(worker)
    capabilities.drop()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    while os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        number = signal.sigwait({*_POLITE, signal.SIGCHLD})
        if number != signal.SIGCHLD:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)  # by its descriptor: a number may be another's by now
    _, status = os.waitpid(worker, 0)
    tracefs.sweep()
    code = os.waitstatus_to_exitcode(status)
    if status:
        with suppress(SetupError):  # the policy has a mistake: the worker has said so
            Audit(Policy(who, service=service).audit, who).died(worker, code)
    if code == -signal.SIGKILL:
        os.kill(os.getpid(), signal.SIGKILL)  # for whoever waits for us to see how it ended
    return code & 0xFF


# --- the worker ---------------------------------------------------------------------------------------------------


def _work(sock: socket.socket, supervisor: int, by_service: bool) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, _MAX_DESCRIPTORS), most))
    try:
        ends = {_signals(), os.pidfd_open(supervisor), *filter(None, [peer.watch(sock)])}
    except ProcessLookupError:  # one of them was quick to end
        return
    sock = _moved_up(sock)
    connection: Connection[ToTracer] = Connection(sock, ToTracer, descriptors=False)
    outbox = Outbox(connection)
    # Not poll(2): it refuses more descriptors than the process may have at the time (RLIMIT_NOFILE).
    poll = select.epoll()
    try:
        service = Service(outbox, peer.of(sock), asker.asking(sock), by_service)
    except BpfnbError as error:
        outbox.send(messages.Failed.of(0, error))
        outbox.close(_PATIENCE)
        return
    status = 0
    try:
        _attend(poll, connection, service, {*ends, service.compiler.pidfd})
    except EOFError:
        pass  # the notebook is gone, or is none
    except BaseException:
        traceback.print_exc()
        status = 70
    service.close()
    outbox.close(_PATIENCE)
    sys.stderr.flush()
    os._exit(status)  # whatever the threads are at: with its descriptors the kernel lets go of all there is


def _attend(poll: select.epoll, connection: Connection[ToTracer], service: Service, ends: Collection[int]) -> None:
    """Take in requests until one of ``ends`` is readable, or the notebook has hung up."""
    for fd in {*ends, connection.fileno()}:
        poll.register(fd, select.EPOLLIN)
    while True:
        accepting = service.accepting
        message = connection.poll() if accepting else None
        if message is not None:
            service.accept(message, connection.size)
        poll.modify(connection.fileno(), select.EPOLLRDHUP | (select.EPOLLIN if accepting else 0))
        ready = poll.poll(0 if message is not None else None if accepting else _LOOK_AGAIN)
        if any(fd in ends or event & ~select.EPOLLIN for fd, event in ready):
            return


def _moved_up(sock: socket.socket) -> socket.socket:
    """A socket at the highest descriptor there may be.

    A process that is killed closes its descriptors from the last to the first (Linux puts each on a list of what is
    left to do, and takes the newest off first). Each tracepoint's takes it some 40 ms: the notebook hears of the end
    before.
    """
    number = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1
    with sock:
        return socket.socket(fileno=fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, number))


def _signals() -> int:
    """A descriptor that is readable when a polite signal has come: signalfd(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    mask = (ctypes.c_ulong * (1024 // (8 * ctypes.sizeof(ctypes.c_ulong))))()
    for number in _POLITE:
        mask[0] |= 1 << (number - 1)
    fd: int = libc.signalfd(-1, ctypes.byref(mask), os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "signalfd")
    return fd


if __name__ == "__main__":
    sys.exit(main(service="--service" in sys.argv[1:]))
