"""Programs that other people wrote: bcc's own tools, as Debian ships them, see what really happens here.

Each tool is run by itself with a bcc that notes its C and its attachments (recordings.py); bpfnb then runs these,
unmodified and without kernel headers. docs/compatibility.md has how far all the others get.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from recordings import record

import bpfnb
from bpfnb.session import Session

EVERYWHERE = ("execsnoop", "mountsnoop", "opensnoop", "tcplife")  # in emulation too, where recording takes a while
HERE = ("exitsnoop", "killsnoop", "syncsnoop")
OTHERS = ("biopattern", "hardirqs", "profile", "runqlat", "shmsnoop", "tcpstates", "wakeuptime")

recorded = functools.cache(record)


def trace(tool: str) -> Session:
    """The tool's program, running."""
    recording = recorded(*(EVERYWHERE if tool in EVERYWHERE else (*HERE, *OTHERS)))[tool]
    return bpfnb.trace(recording.text, name=tool, attach=recording.probes, cflags=recording.cflags)


def events(tool: str, act: Callable[[], object], output: str = "events") -> pd.DataFrame:
    with trace(tool) as session:
        act()
    return session.outputs[output].df


@pytest.mark.portable
def test_execsnoop(tmp_path: Path) -> None:
    df = events("execsnoop", lambda: subprocess.run(["/bin/ls", "-d", tmp_path], check=True, stdout=subprocess.DEVNULL))
    mine = df[df.ppid == os.getpid()]
    assert mine.argv[mine.type == "EVENT_ARG"].tolist() == ["/bin/ls", "-d", str(tmp_path)]
    assert mine[mine.type == "EVENT_RET"][["comm", "retval"]].to_numpy().tolist() == [["ls", 0]]


@pytest.mark.portable
def test_opensnoop(tmp_path: Path) -> None:
    def act() -> None:
        (tmp_path / "there").touch()
        with pytest.raises(FileNotFoundError):
            (tmp_path / "missing").open()

    df = events("opensnoop", act).set_index("name")
    assert df.ret[str(tmp_path / "there")] >= 0
    assert df.ret[str(tmp_path / "missing")] == -errno.ENOENT


@pytest.mark.portable
def test_mountsnoop() -> None:
    """Its struct and five parameters fill the stack to the last bytes."""

    libc = ctypes.CDLL(None)
    df = events("mountsnoop", lambda: libc.mount(b"the source", b"/no/such/target", b"tmpfs", 8, b"data"))
    mine = df[df.pid == os.getpid()].set_index("type")
    assert mine["enter.flags"]["EVENT_MOUNT"] == 8
    assert mine["enter.ppid"]["EVENT_MOUNT"] == os.getppid()
    strings = [mine.str[f"EVENT_MOUNT_{name}"] for name in ("SOURCE", "TARGET", "TYPE", "DATA")]
    assert strings == ["the source", "/no/such/target", "tmpfs", "data"]
    assert mine.retval["EVENT_MOUNT_RET"] == -errno.ENOENT


@pytest.mark.portable
def test_tcplife() -> None:
    """It reads the kernel's sockets: addresses, ports and counts stand where this kernel's types say."""
    ports = []

    def act() -> None:
        server = socket.create_server(("127.0.0.1", 0))
        with server, socket.create_connection(server.getsockname()) as near, server.accept()[0] as far:
            ports.extend([near.getsockname()[1], near.getpeername()[1]])
            near.sendall(b"x" * 1000)
            assert len(far.recv(1000, socket.MSG_WAITALL)) == 1000
            far.sendall(b"y" * 10)
            assert len(near.recv(10, socket.MSG_WAITALL)) == 10

    df = events("tcplife", act, "ipv4_events")
    loopback = int.from_bytes(socket.inet_aton("127.0.0.1"), sys.byteorder)
    (mine,) = df[df.ports == ports[1] + (ports[0] << 32)].to_dict("records")
    assert (mine["saddr"], mine["daddr"]) == (loopback, loopback)
    # Beginning and end of a connection count a byte each.
    assert 10 <= mine["rx_b"] <= 11
    assert 1000 <= mine["tx_b"] <= 1002


def test_killsnoop() -> None:
    df = events("killsnoop", lambda: os.kill(os.getpid(), signal.SIGCONT))
    mine = df[df.pid == os.getpid()]
    assert mine[["tpid", "sig", "ret"]].to_numpy().tolist() == [[os.getpid(), signal.SIGCONT, 0]]


def test_exitsnoop() -> None:
    pids = []

    def act() -> None:
        with subprocess.Popen(["sh", "-c", "exit 3"]) as process:
            pids.append(process.pid)

    df = events("exitsnoop", act).set_index("pid")
    assert df.exit_code[pids[0]] == 3
    assert df.ppid[pids[0]] == os.getpid()


def test_syncsnoop() -> None:
    assert len(events("syncsnoop", os.sync)) >= 1


@pytest.mark.parametrize(
    "tool", ["runqlat", "hardirqs", "biopattern", "tcpstates", "shmsnoop", "profile", "wakeuptime"]
)
def test_others_run(tool: str) -> None:
    with trace(tool) as session:
        session.wait(0.1)
        assert session.probes
    for table in session.maps.values():
        assert table.df is not None
