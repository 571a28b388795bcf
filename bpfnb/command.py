"""A command that a session is about: started and held, let go once the session is attached, ended with it.

A small Python process takes the command's place first. It waits in a read, until it is told to go on or its pipe
closes, and then becomes the command by exec. While it waits, the kernel's map of followed processes has it as held
(Filters). It tells the kernel the moment from which it counts by letting a blocked signal through, SIGURG, which does
nothing but pass the tracepoint signal_deliver: so the first system call that is seen is the command's execve.

A thread starts the process and waits for it. The kernel kills the process when that thread ends (PR_SET_PDEATHSIG), so
that a notebook that is killed leaves no command behind. The command has a session and process group of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from bpfnb.errors import ProgramError
from bpfnb.interrupts import new_lock, uninterrupted

__all__ = ["Command"]

_TERM_TIMEOUT = 2.0  # seconds from SIGTERM to SIGKILL
_POLL = 0.02  # seconds
_HELD = """
import ctypes, os, signal, sys
go, failed, path, *words = sys.argv[1:]
go, failed = int(go), int(failed)
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
for fd in (go, failed):
    os.set_inheritable(fd, False)
for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(ignored, signal.SIG_DFL)
with open("/proc/self/environ", "rb") as file:
    environ = dict(entry.split(b"=", 1) for entry in file.read().split(b"\\0") if b"=" in entry)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG])
os.kill(os.getpid(), signal.SIGURG)
if not os.read(go, 1):
    os._exit(0)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGURG])
try:
    os.execve(path, words, environ)
except OSError as error:
    os.write(failed, str(error.errno).encode())
os._exit(127)
"""


class Command:
    """A command, of one session. ``pid``: of its process, once it has been started.

    ``on_end`` is called with its exit status when it has ended, negative for a signal, in another thread.
    """

    def __init__(self, words: Sequence[str]) -> None:
        """ProgramError where there is no such command, or it cannot be executed."""
        self.words = list(words)
        self.pid = 0
        self.on_end: Callable[[int], None] = lambda status: None
        self._path = _find(self.words[0])
        self._lock = new_lock()
        self._over = False  # it is to be ended, or has ended
        self._process: subprocess.Popen[bytes] | None = None
        self._go = self._failed = -1
        self._killing: threading.Timer | None = None

    @uninterrupted
    def start(self) -> None:
        """Start it, held. ProgramError where no process can be started."""
        answers: SimpleQueue[OSError | None] = SimpleQueue()
        with self._lock:
            if self._over:
                return
            threading.Thread(target=self._serve, args=(answers,), name="bpfnb-command", daemon=True).start()
            if error := answers.get():
                raise ProgramError(f"the command {self.words[0]!r} does not start: {error.strerror or error}")

    def let_go(self) -> None:
        """Have it run. ProgramError where its file cannot be executed after all."""
        with self._lock:
            if self._over:
                return
            failed = os.dup(self._failed)  # a short command may have ended, and its thread closed this, before the read
            with suppress(OSError):  # it has ended, and says so itself
                os.write(self._go, b"g")
        try:
            number = os.read(failed, 16)
        finally:
            os.close(failed)
        if number:
            why = os.strerror(int(number))
            raise ProgramError(f"the command {self.words[0]!r} does not start: {self._path}: {why}")

    def end(self) -> None:
        """End it, with all of its process group: SIGTERM, and SIGKILL two seconds later. Idempotent."""
        with self._lock:
            if self._over:
                return
            self._over = True
            if self._process:
                self._signal(signal.SIGTERM)
                self._killing = threading.Timer(_TERM_TIMEOUT, self._kill)
                self._killing.daemon = True
                self._killing.start()

    def _kill(self) -> None:
        with self._lock:
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._process and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _serve(self, answers: SimpleQueue[OSError | None]) -> None:
        """Start the process, and wait for its end: one thread, at whose end the kernel kills the process."""
        try:
            self._launch()
        except OSError as error:
            answers.put(error)
            return
        answers.put(None)
        assert self._process
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)  # until it is reaped, its number is nobody else's
        with self._lock:
            killing = self._killing
        while killing and killing.is_alive() and _has_group(self.pid):  # the rest of it has two seconds as well
            time.sleep(_POLL)
        with self._lock:
            self._over = True
            status = self._process.wait()
            if self._killing:
                self._killing.cancel()
            os.close(self._go)
            os.close(self._failed)
        self.on_end(status)

    def _launch(self) -> None:
        go, self._go = os.pipe()
        self._failed, failed = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _HELD, str(go), str(failed), self._path, *self.words],
                stdin=subprocess.DEVNULL,
                pass_fds=(go, failed),
                start_new_session=True,
            )
            self.pid = self._process.pid
        except BaseException:
            os.close(self._go)
            os.close(self._failed)
            raise
        finally:
            os.close(go)
            os.close(failed)


def _has_group(leader: int) -> bool:
    """Return whether anything but its leader runs in a process group."""
    for file in Path("/proc").glob("[1-9]*/stat"):
        with suppress(OSError):
            state, _, group = file.read_bytes().rpartition(b")")[2].split()[:3]
            if int(group) == leader and state not in (b"Z", b"X"):
                return True
    return False


def _find(name: str) -> str:
    """Return the file of a command. ProgramError."""
    if found := shutil.which(name):
        return os.path.abspath(found)  # noqa: PTH100 (Path.absolute keeps "..")
    if "/" in name and os.path.exists(name):  # noqa: PTH110 (PermissionError)
        raise ProgramError(f"the command {name!r} cannot be executed")
    raise ProgramError(f"there is no command {name!r}")
