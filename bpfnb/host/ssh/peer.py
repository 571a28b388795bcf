"""Reach a tracer on another host: the command that runs far there, and near, the process that speaks to it.

    launch(("ssh", "-T", "-o", "BatchMode=yes", "web1", *far_command("python3", "/home/me/.cache/bpfnb/0.1.0")), "web1")

Nothing above knows the difference: the ``Client`` speaks to near as to a tracer.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

import msgspec
from msgspec import Struct

from bpfnb import release
from bpfnb.errors import BpfnbError, SetupError, TracerDied
from bpfnb.host.client import Client, Peer
from bpfnb.protocol.messages import Hello

__all__ = ["SILENCE", "Report", "SshPeer", "far_command", "launch"]

SILENCE = 15.0  # seconds without a word from a host after which it is taken for lost
_STATUS_TIMEOUT = 0.5  # seconds
_MAX_REPORT = 1 << 20  # bytes
_BOOT = Path(__file__).with_name("boot.py")


class Report(Struct):
    """What near writes to its standard output, each time as a line of JSON: the last one holds.

    ``reached``: how far reached its tracer. ``setup``: it never came up, a SetupError; else the fields are
    TracerDied's.
    """

    reached: str = ""
    setup: bool = False
    message: str = ""
    status: int | None = None
    output: str = ""
    hint: str | None = None


def far_command(python: str, folder: str) -> tuple[str, ...]:
    """Return the command that runs far on its host. ``folder``: the one that has bpfnb (and msgspec and numpy, where
    ``python`` does not have them). A remote shell needs it quoted: shlex.join."""
    return (python, "-I", str(PurePosixPath(folder, "bpfnb/host/ssh/boot.py")), "far")


def launch(command: Sequence[str], name: str, silence: float = SILENCE) -> Client:
    """Run a command that ends in far, and return its tracer; does not wait until it is up.

    ``name``: the host's, for messages. ``silence``: see SILENCE.
    """
    ours, theirs = socket.socketpair()
    report = os.memfd_create("bpfnb-near-report", os.MFD_CLOEXEC)
    near = (sys.executable, "-I", str(_BOOT), "near", name, str(silence), *command)
    try:
        process = subprocess.Popen(near, stdin=theirs.fileno(), stdout=report, start_new_session=True)
    except BaseException:
        ours.close()
        os.close(report)
        raise
    finally:
        theirs.close()
    return Client(ours, SshPeer(name, process, report))


class SshPeer(Peer):
    """near, and the host that it speaks to. ``report``: the file with what it has to say, closed here."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], report: int) -> None:
        self._name = name
        self._process = process
        self._file = report

    @property
    def reached(self) -> str:
        there = self._report().reached
        return f"ssh {self._name}, there: {there}" if there else f"ssh {self._name}"

    def check(self, hello: Hello) -> BpfnbError | None:
        ours = release.version(), release.build()
        if (hello.version, hello.build) == ours:
            return None
        return SetupError(f"the tracer on {self._name} is of another bpfnb ({hello.version}) than this one ({ours[0]})")

    def resume(self, hello: Hello | None) -> bool:
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGCONT)  # near leads a group of its own
        return True

    def death(self) -> BpfnbError:
        status = None
        report = self._report()  # written before near hung up
        if not report.message:
            with suppress(subprocess.TimeoutExpired):
                status = self._process.wait(_STATUS_TIMEOUT)
        os.close(self._file)
        self._file = -1
        if report.setup:
            return SetupError(report.message, hint=report.hint)
        if report.message:
            return TracerDied(report.message, status=report.status, output=report.output, hint=report.hint)
        how = "" if status is None else f" (signal {-status})" if status < 0 else f" (exit status {status})"
        what = f"the process that speaks to {self._name} ended{how}; what was collected so far is kept"
        return TracerDied(what, status=status, output=report.output)

    def wait(self) -> None:
        self._process.wait()

    def _report(self) -> Report:
        """Return the last that near has written; an empty one where there is none."""
        with suppress(OSError, IndexError, msgspec.MsgspecError, UnicodeDecodeError):
            lines = os.pread(self._file, _MAX_REPORT, 0).splitlines()
            return msgspec.json.decode(lines[-1], type=Report)
        return Report()
