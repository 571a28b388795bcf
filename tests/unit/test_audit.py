"""The audit log's records: in a file of root's, one line each whatever they hold; and in the journal's own protocol."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from bpfnb.errors import PrivilegeError, ProgramError
from bpfnb.language.filters import Filters
from bpfnb.language.program import parse
from bpfnb.protocol.messages import ProbeInfo
from bpfnb.tracer.access.audit import Audit
from bpfnb.tracer.access.peer import Peer
from bpfnb.tracer.access.policy import AuditRules

HERE = Peer(os.getpid(), 65534, 65534, frozenset())
SOURCE = "int f(void *ctx) { return 0; } // \u202e\x1b[31m\n"
CELL = parse(SOURCE, {"syscall:clone": "f"})
PROBES = [ProbeInfo("syscall:clone", 'tracepoint:x:y\n{"event": "forged"}', "tracepoint", "", "f")]

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root's file is a log")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@root_only
def test_whom_a_session_was_about(tmp_path: Path) -> None:
    path = tmp_path / "log"
    audit = Audit(AuditRules(str(path)), HERE)
    audit.started(7, replace(CELL, filters=Filters(follow=5, comm="nginx*", uid=0)), PROBES)
    audit.started(8, CELL, PROBES)
    about, everybody = lines(path)
    assert about["filters"] == "follow 5, comm nginx*, uid 0"
    assert "filters" not in everybody


@root_only
def test_a_session_from_start_to_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    audit = Audit(AuditRules(str(path)), HERE)
    audit.started(7, CELL, PROBES)
    audit.ended(7, "stopped by its user")
    audit.ended(7, "again")
    audit.refused(8, CELL, ProgramError("no\nforged line"))
    begun, ended, refused = lines(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert (begun["event"], ended["event"], refused["event"]) == ("session-started", "session-ended", "session-refused")
    assert begun["uid"] == 65534
    assert begun["user"] == "nobody"
    assert begun["pid"] == os.getpid()
    loginuid = int(Path("/proc/self/loginuid").read_text()) if Path("/proc/self/loginuid").exists() else 0xFFFFFFFF
    assert begun["loginuid"] == (None if loginuid == 0xFFFFFFFF else loginuid)
    assert begun["sha256"] == hashlib.sha256(SOURCE.encode()).hexdigest()
    assert begun["functions"] == ["f"]
    assert begun["attached"] == ['tracepoint:x:y\n{"event": "forged"}=f']
    assert "source" not in begun
    assert ended["reason"] == "stopped by its user"
    assert 0 <= ended["seconds"] < 60
    assert refused["reason"] == "ProgramError: no\\nforged line"
    assert path.read_bytes().isascii(), "nothing acts on a terminal"


@root_only
def test_the_source_where_the_policy_asks(tmp_path: Path) -> None:
    path = tmp_path / "log"
    Audit(AuditRules(str(path), source=True), HERE).started(1, CELL, PROBES)
    assert lines(path)[0]["source"] == SOURCE


@root_only
def test_a_log_that_cannot_be_written_refuses_where_it_is_required(tmp_path: Path, capsys: Any) -> None:
    bad = {
        "missing": tmp_path / "nowhere" / "log",
        "link": tmp_path / "link",
        "fifo": tmp_path / "fifo",
        "hard": tmp_path / "hard",
        "others'": tmp_path / "others",
        "open": tmp_path / "open" / "log",
    }
    bad["link"].symlink_to(tmp_path / "target")
    os.mkfifo(bad["fifo"])
    (tmp_path / "twice").touch()
    bad["hard"].hardlink_to(tmp_path / "twice")
    bad["others'"].touch()
    os.chown(bad["others'"], 65534, 0)
    bad["open"].parent.mkdir(mode=0o777)
    bad["open"].parent.chmod(0o777)
    for path in [*bad.values(), Path("/dev/full")]:
        with pytest.raises(PrivilegeError, match="requires every session in the audit log"):
            Audit(AuditRules(str(path), required=True), HERE).started(1, CELL, PROBES)
        Audit(AuditRules(str(path)), HERE).started(1, CELL, PROBES)
        assert "cannot be written" in capsys.readouterr().err
    assert not (tmp_path / "target").exists()


def entry(data: bytes) -> dict[str, str]:
    """A datagram, as systemd's journald reads it: src/journal/journald-native.c."""
    found = {}
    while data:
        name, _, rest = data.partition(b"\n")
        (size,) = struct.unpack_from("<Q", rest)
        found[name.decode()] = rest[8 : 8 + size].decode()
        assert rest[8 + size : 9 + size] == b"\n"
        data = rest[9 + size :]
    return found


@pytest.mark.parametrize("comment", ["short", "long " * 200_000])
def test_the_journal_gets_fields(tmp_path: Path, comment: str) -> None:
    place = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(place)
        cell = parse(f"int f(void *ctx) {{ return 0; }} // {comment}", {"syscall:clone": "f"})
        Audit(AuditRules("journal", source=True), HERE, place).started(3, cell, PROBES)
        data, fds, _, _ = socket.recv_fds(journal, 1 << 20, 4)
        if fds:
            assert not data
            data = os.pread(fds[0], 1 << 22, 0)
            os.close(fds[0])
    assert bool(fds) == (comment != "short")
    fields = entry(data)
    assert fields["BPFNB_EVENT"] == "session-started"
    assert fields["BPFNB_SESSION"] == "3"
    assert fields["BPFNB_SOURCE"] == cell.source
    assert fields["SYSLOG_IDENTIFIER"] == "bpfnb"
    assert fields["MESSAGE"].startswith("session-started 3 of nobody at tracepoint:x:y\\n")
    assert "\n" not in fields["MESSAGE"]


def test_without_a_journal_it_is_said_or_refused(tmp_path: Path, capsys: Any) -> None:
    place = str(tmp_path / "socket")
    Audit(AuditRules("journal"), HERE, place).started(1, CELL, PROBES)
    assert "No such file" in capsys.readouterr().err
    with pytest.raises(PrivilegeError, match="the audit log \\(journal\\), which cannot be written: No such file"):
        Audit(AuditRules("journal", required=True), HERE, place).started(1, CELL, PROBES)
