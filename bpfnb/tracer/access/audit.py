"""Write the audit log: who traced what, where, and how it ended; to the journal or to a file of root's.

A record has what the kernel says about the user (peer.py), the program's hash, and what became of the session. In a
file it is one line of JSON, in one write, so that nothing in it can begin another line. In the journal it is fields, in
systemd's "Native Journal Protocol", where every value has its length.

    event     session-started, session-refused, session-ended, tracer-died
    tracer, session                        numbers: the tracer's process, and its session
    uid, user, pid, loginuid, loginname    who asked; the login's are not changed by su or sudo. None where unknown
    sha256, functions, attached            of the program: the hash of its text; where its functions were attached
    filters                                whom it is about, where that is not everybody: pids as the notebook's
    reason, seconds                        how it ended or why it was refused, and how long it ran
    source                                 the program's text, where the policy asks for it
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import pwd
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bpfnb.errors import PrivilegeError
from bpfnb.language.program import Program
from bpfnb.protocol.messages import ProbeInfo
from bpfnb.tracer.access.peer import Peer

__all__ = ["JOURNAL", "Audit", "AuditRules", "unwritable"]

JOURNAL = "/run/systemd/journal/socket"
_UNSET = 0xFFFFFFFF  # the loginuid of a process without a login
_PRIORITY = "5"  # notice
# `journalctl MESSAGE_ID=...` finds our records.
_MESSAGE_ID = "c3a4f0b1d5e84d0a9f0cbbf6b1a4d7e2"


@dataclass(frozen=True)
class AuditRules:
    """Where and what to log.

    ``to``: "journal", an absolute path, or "" for nowhere. ``required``: a session that cannot be logged may not run.
    ``source``: log the cell's whole text, not only its hash.
    """

    to: str = ""
    required: bool = False
    source: bool = False


class Audit:
    """Logs the sessions of one tracer. Any thread may call."""

    def __init__(self, rules: AuditRules, peer: Peer, journal: str = JOURNAL) -> None:
        self._rules = rules
        self._journal = journal
        self._who = _who(peer)
        self._started: dict[int, tuple[float, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def started(self, session: int, program: Program, probes: Sequence[ProbeInfo]) -> None:
        """Log a start. Raise PrivilegeError where it cannot be logged but must be: the session may then not run."""
        attached = dict.fromkeys(
            f"{probe.attached}={probe.function}" for probe in probes
        )  # several may be at one place
        what = self._of(session, program) | {"attached": list(attached)}
        self._note("session-started", what)
        with self._lock:
            self._started[session] = time.monotonic(), {**what, "source": None}

    def refused(self, session: int, program: Program, error: Exception) -> None:
        """Log that a session was refused, and why."""
        what = self._of(session, program) | {"attached": [f"{p.requested}={p.function}" for p in program.probes]}
        self._note("session-refused", what | {"reason": f"{type(error).__name__}: {error}"}, refusing=False)

    def ended(self, session: int, reason: str) -> None:
        """Log the end of a session, once. A session that never started or has ended already is ignored."""
        with self._lock:
            since, what = self._started.pop(session, (0.0, None))
        if what:
            ran = {"reason": reason, "seconds": round(time.monotonic() - since, 3)}
            self._note("session-ended", what | ran, refusing=False)

    def died(self, worker: int, status: int) -> None:
        """Log that the tracer ended unexpectedly, and with it all its sessions."""
        self._note("tracer-died", {"tracer": worker, "reason": f"it ended with status {status}"}, refusing=False)

    def _of(self, session: int, program: Program) -> dict[str, Any]:
        return {
            "tracer": os.getpid(),
            "session": session,
            "sha256": hashlib.sha256(program.source.encode(errors="surrogatepass")).hexdigest(),
            "functions": [function.name for function in program.functions],
            "filters": str(program.filters) or None,
            "source": program.source if self._rules.source else None,
        }

    def _note(self, event: str, what: dict[str, Any], *, refusing: bool = True) -> None:
        if not self._rules.to:
            return
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        record = {"time": now, "event": event} | self._who | {k: v for k, v in what.items() if v is not None}
        try:
            if self._rules.to == "journal":
                _send(self._journal, record)
            else:
                _append(Path(self._rules.to), record)
        except OSError as error:
            print(f"the audit log ({self._rules.to}) cannot be written: {error}", file=sys.stderr)
            if refusing and self._rules.required:
                raise PrivilegeError(
                    f"the administrator requires every session in the audit log ({self._rules.to}), which cannot be "
                    f"written: {error.strerror or error}"
                ) from None


def unwritable(to: str, journal: str = JOURNAL) -> str:
    """Return why nothing can be logged there, as far as it shows without logging; "" where it can."""
    try:
        if to == "journal":
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.connect(journal)
        else:
            os.close(_opened(Path(to)))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _who(peer: Peer) -> dict[str, Any]:
    login = None
    with suppress(OSError, ValueError):
        login = int(Path("/proc", str(peer.pid), "loginuid").read_bytes()[:16])
    login = None if login == _UNSET else login
    return {"uid": peer.uid, "user": _name(peer.uid), "pid": peer.pid, "loginuid": login, "loginname": _name(login)}


def _name(uid: int | None) -> str | None:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name if uid is not None else None
    return None


# --- a file -------------------------------------------------------------------------------------------------------


def _append(path: Path, record: dict[str, Any]) -> None:
    """Append a line to a file that only root can write to. Raise OSError. Opened each time, since logs are rotated."""
    line = json.dumps(record).encode() + b"\n"  # ASCII only: no terminal escapes
    fd = _opened(path)
    try:
        if os.write(fd, line) < len(line):
            raise OSError(f"{path}: there was room for only a part of the line")
    finally:
        os.close(fd)


def _opened(path: Path) -> int:
    """Open the file, or create it. Raise OSError where users other than root could write to it."""
    folder = path.parent.stat()
    if folder.st_uid or folder.st_mode & 0o022:
        raise PermissionError(f"users other than root may write to {path.parent}")
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    fd = os.open(path, flags, 0o600)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid or found.st_mode & 0o022 or found.st_nlink > 1:
        os.close(fd)
        raise PermissionError(f"{path} is not a file that only root may write to")
    return fd


# --- the journal --------------------------------------------------------------------------------------------------


def _send(journal: str, record: dict[str, Any]) -> None:
    """Send one entry. Raise OSError where nobody listens."""
    fields = {
        "MESSAGE": _sentence(record),
        "MESSAGE_ID": _MESSAGE_ID,
        "PRIORITY": _PRIORITY,
        "SYSLOG_IDENTIFIER": "bpfnb",
        **{f"BPFNB_{name.upper()}": _text(value) for name, value in record.items() if value is not None},
    }
    data = b"".join(_field(name, value) for name, value in fields.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.sendto(data, journal)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):  # too long for a datagram
                raise
            _send_sealed(sock, data, journal)


def _send_sealed(sock: socket.socket, data: bytes, journal: str) -> None:
    """Send a long entry, as the protocol has it: in a sealed memfd."""
    fd = os.memfd_create("bpfnb-audit", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, data)
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        sock.sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))], 0, journal)
    finally:
        os.close(fd)


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="backslashreplace")
    return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _sentence(record: dict[str, Any]) -> str:
    who = record["user"] or record["uid"]
    where = f" at {_text(record['attached'])}" if record.get("attached") else ""
    why = f": {record['reason']}" if record.get("reason") else ""
    return f"{record['event']} {record.get('session', '')} of {who}{where}{why}".encode("unicode_escape").decode()
