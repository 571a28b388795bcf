"""A recording that is being written, as its session shows it: starts the recorder's process, and listens to it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from bpfnb.errors import ProgramError
from bpfnb.host.connector import at_end
from bpfnb.interrupts import Flag
from bpfnb.recordings import places, talk
from bpfnb.recordings.format import Manifest

__all__ = ["FINISH_TIMEOUT", "RecordFailed", "RunningRecording"]

RecordFailed = Literal["continue", "stop"]  # what becomes of a session whose recording cannot go on

FINISH_TIMEOUT = 60.0  # seconds without progress, while the recorder finishes a file whose session has ended
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from bpfnb.terminal.recorder import main; sys.exit(main(sys.argv[1:]))"
)
_LAST_WORDS = 4096  # bytes


class RunningRecording:
    """A session's recording, ``Session.recording``, by a process of its own.

    ``path``     where it is written: a folder, or a zip that is made at its end
    ``rows``     how many rows are in it
    ``bytes``    what it takes on the disk
    ``finished`` whether the file is whole, and nothing more comes
    ``failed``   why rows that came are not in it, such as that the disk is full; "" while all is well
    ``note``     what else is missing in it, once it is finished; or ""
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """ProgramError where there is something at ``path``, or nothing can be written there. Nothing is started."""
        self.path = Path(os.path.abspath(os.fspath(path)))  # noqa: PTH100 (links stay as they are)
        self.rows = self.bytes = 0
        self.finished = False
        self.failed = self.note = ""
        self._folder = places.begin(self.path, overwrite=False)
        self._process: subprocess.Popen[bytes] | None = None
        self._notebook: socket.socket | None = None
        self._sending = threading.Lock()
        self._ended = Flag()
        self._progress = time.monotonic()
        self._log = -1
        self._on_failure: Callable[[str], None] = lambda why: None

    @property
    def over(self) -> bool:
        """Return whether the recorder has ended."""
        return self._ended.is_set()

    def start(self, manifest: Manifest, units: Mapping[str, str], on_failure: Callable[[str], None]) -> socket.socket:
        """Start the recorder. Return the socket that the tracer is to get (Tracer.load), which is the caller's.

        ``on_failure``: called once, on another thread, with why nothing more is recorded.
        """
        self._on_failure = on_failure
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        tracer, follower = socket.socketpair()
        begin = talk.write(talk.Begin(str(self.path), str(self._folder), manifest, dict(units)))
        self._log = os.memfd_create("bpfnb-recorder-log", os.MFD_CLOEXEC)
        fds = (follower.fileno(), theirs.fileno(), begin)
        package = Path(__file__).parents[2]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, str(package), *map(str, fds)],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=fds,
                start_new_session=True,
            )
        except OSError as error:
            for sock in (ours, tracer):
                sock.close()
            os.close(self._log)
            self._log = -1
            self.abandon()
            raise ProgramError(f"the recorder cannot be started: {error.strerror}") from None
        finally:
            for sock in (theirs, follower):
                sock.close()
            os.close(begin)
        self._notebook = ours
        threading.Thread(target=self._hear, name="bpfnb-recording", daemon=True).start()
        at_end(self.wait)
        return tracer

    def tell(self, update: talk.Update) -> None:
        """Tell the recorder what the notebook alone knows."""
        with self._sending, suppress(OSError):
            if self._notebook:
                talk.send(self._notebook, update)

    def abandon(self) -> None:
        """Its session has not come to be: leave nothing."""
        self.finished = True
        if self._process:
            self._process.kill()
            self._ended.wait()
        places.remove(self._folder)

    def wait(self, seconds: float = FINISH_TIMEOUT) -> bool:
        """Wait until the file is whole, as long as the recorder makes progress; return whether it is."""
        self._progress = time.monotonic()
        while not self._ended.wait(0.2):
            if time.monotonic() > self._progress + seconds:
                return False
        return True

    def __repr__(self) -> str:
        return f"<recording {self}>"

    def __str__(self) -> str:
        """Return the line of a card: "recording to PATH, 12 MB"."""
        rows = f"{self.rows:,} row{'s' if self.rows != 1 else ''}"
        if self.failed:
            return f"not recorded any further ({self.failed}): {self.path} has {rows}"
        if self.finished:
            return f"recorded in {self.path} ({rows}, {_size(self.bytes)}){self.note and f': {self.note}'}"
        return f"recording to {self.path}, {_size(self.bytes)}"

    def _hear(self) -> None:
        """Hear how far the recorder is, until it has ended. A thread's work."""
        assert self._notebook
        assert self._process
        status: talk.Status | None = None
        with suppress(EOFError, msgspec.MsgspecError):
            while True:
                status = talk.receive(self._notebook, talk.Status) or status
                if status:
                    self._take(status)
        code = self._process.wait()
        with self._sending:
            self._notebook.close()
            self._notebook = None
        if not self.finished and not (status and status.over):
            how = f"signal {-code}" if code < 0 else f"exit status {code}: {self._last_words()}"
            self._fail(f"the recorder ended ({how})")
        os.close(self._log)
        self._log = -1
        self._ended.set()

    def _take(self, status: talk.Status) -> None:
        self.rows, self.bytes, self._progress = status.rows, status.bytes, time.monotonic()
        self.note = status.note
        if status.failed:
            self._fail(status.failed)
        self.finished = status.over

    def _fail(self, why: str) -> None:
        if not self.failed:
            self.failed = why
            self._on_failure(why)

    def _last_words(self) -> str:
        size = os.fstat(self._log).st_size
        text = os.pread(self._log, _LAST_WORDS, max(size - _LAST_WORDS, 0)).decode(errors="replace").strip()
        return text.rpartition("\n")[2]


def _size(size: int) -> str:
    """Return bytes as people say them: "12 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000  # type: ignore[assignment]
    return f"{size:.1f} TB"
