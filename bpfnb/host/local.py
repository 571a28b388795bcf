"""A tracer on this machine: starting it, and its process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from bpfnb.errors import BpfnbError, TracerDied
from bpfnb.host import ways
from bpfnb.host.client import Client, Peer
from bpfnb.protocol.messages import Hello

__all__ = ["LocalTracer", "launch", "start"]

_STATUS_TIMEOUT = 0.5  # seconds
_LAST_WORDS = 1 << 16  # bytes


def launch(way: ways.Way | None = None) -> Client:
    """Start a tracer; it imports bcc while we return. Errors: see ``start``."""
    return Client(*start(way))


def start(way: ways.Way | None = None) -> tuple[socket.socket, LocalTracer]:
    """Start a tracer, and return the socket that it serves.

    PrivilegeError or SetupError where there is no way to start one, SetupError where a socket for it does not answer.
    """
    way = way or ways.choose()
    if way.socket:
        return ways.connect(way), LocalTracer(way)
    import fcntl  # here: other systems have none, and read recordings

    ours, theirs = socket.socketpair()
    # A memfd, not a pipe: nobody has to read it while the tracer runs, and its last words are still there after.
    log = os.memfd_create("bpfnb-tracer-log", os.MFD_CLOEXEC)
    fcntl.fcntl(log, fcntl.F_SETFL, os.O_APPEND)  # several processes write to it
    try:
        process = subprocess.Popen(way.command, stdin=theirs.fileno(), stdout=log, stderr=log, start_new_session=True)
    except BaseException:
        ours.close()
        os.close(log)
        raise
    finally:
        theirs.close()
    return ours, LocalTracer(way, process, log)


class LocalTracer(Peer):
    """A tracer reached in some way, and its process where we started it ourselves.

    ``log``: a file with what it has written, closed here; -1 where there is none.
    """

    def __init__(self, way: ways.Way, process: subprocess.Popen[bytes] | None = None, log: int = -1) -> None:
        self.way = way
        self._process = process
        self._log = log

    @property
    def reached(self) -> str:
        whose = "with this notebook's own bpfnb" if self.way.own else "with root's own copy of bpfnb"
        return f"{self.way}, {whose}"

    def check(self, hello: Hello) -> BpfnbError | None:
        return ways.check(self.way, hello.version, hello.build)

    def resume(self, hello: Hello | None) -> bool:
        pids = {self._process.pid} if self._process else set()
        stopped = [pid for pid in pids | ({hello.pid} if hello else set()) if _is_stopped(pid)]
        try:
            if stopped and self._process:
                os.killpg(self._process.pid, signal.SIGCONT)  # it leads a group of its own
        except OSError:
            which = " ".join(map(str, stopped))
            print(f"bpfnb: the tracer is stopped, and its programs stay attached: kill -CONT {which}", file=sys.stderr)
            return False
        return True

    def death(self) -> BpfnbError:
        status = self._status()
        output = self._last_words()
        if output.lstrip().startswith("sudo:"):
            return ways.refused()
        how = "" if status is None else f" (signal {-status})" if status < 0 else f" (exit status {status})"
        message = f"the tracer process ended{how}; what was collected so far is kept"
        hint = "the journal has its last words: journalctl -t bpfnb" if self.way.socket else None
        return TracerDied(message, status=status, output=output, hint=hint)

    def wait(self) -> None:
        if self._process:
            self._process.wait()

    def _status(self) -> int | None:
        """Return the exit status; None where that is not known soon: the kernel may take long to detach its probes."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(_STATUS_TIMEOUT) if self._process else None
        return None

    def _last_words(self) -> str:
        if self._log < 0:
            return ""
        log, self._log = self._log, -1
        text = os.pread(log, _LAST_WORDS, max(os.fstat(log).st_size - _LAST_WORDS, 0)).decode(errors="replace")
        os.close(log)
        return text


def _is_stopped(pid: int) -> bool:
    """Return whether a process is stopped by a signal."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False  # it has ended, or is not shown to us
