"""Tools about TCP, held against what the processes at both ends know of their connections."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from waiting import until

from bpfnb import tools
from bpfnb.errors import UnsupportedError

SENT, ANSWERED = 3_000, 70_001
SYN_SENT = 2  # of TCP's states
PAUSE = 0.02  # of the client, in each connection
KPROBES = Path("/sys/bus/event_source/devices/kprobe/type").exists()

# Of the four connections, two of IPv4 and two of IPv6, the client closes the first two and the server the others.
_SERVER = f"""
import json, socket
listeners = [socket.create_server(("127.0.0.1", 0)), socket.create_server(("::1", 0), family=socket.AF_INET6)]
print(json.dumps([listener.getsockname()[1] for listener in listeners]), flush=True)
seen = []
for first in ("client", "server"):
    for listener in listeners:
        connection, _ = listener.accept()
        got = len(connection.recv(10, socket.MSG_PEEK)) - 10
        while got < {SENT}:
            got += len(connection.recv(1 << 16))
        connection.sendall(bytes({ANSWERED}))
        if first == "client":
            assert not connection.recv(1)
        seen.append([*connection.getsockname()[:2], *connection.getpeername()[:2]])
        connection.close()
print(json.dumps(seen), flush=True)
"""
_CLIENT = f"""
import json, socket, sys, time
ports = json.loads(input())
seen = []
for first in ("client", "server"):
    for host, port in zip(("127.0.0.1", "::1"), ports):
        connection = socket.create_connection((host, port))
        time.sleep({PAUSE})
        connection.sendall(bytes({SENT}))
        got = 0
        while got < {ANSWERED}:
            got += len(connection.recv(1 << 16))
        if first == "server":
            assert not connection.recv(1)
        seen.append([*connection.getsockname()[:2], *connection.getpeername()[:2]])
        connection.close()
print(json.dumps(seen), flush=True)
"""


class Ends(NamedTuple):
    """Two processes, and what each says of its ends of the connections: [[own address, port, other's address, port]]"""

    client: int
    server: int
    of_client: list[list[Any]]
    of_server: list[list[Any]]

    def all(self) -> list[tuple[Any, ...]]:
        """(pid, own address, own port, other's address, other's port) of every end, sorted."""
        ends = [(self.client, *end) for end in self.of_client] + [(self.server, *end) for end in self.of_server]
        return sorted(ends)


@contextmanager
def processes() -> Iterator[tuple[subprocess.Popen[str], subprocess.Popen[str]]]:
    """A client and a server, which begin with ``talk``."""
    pair = [
        subprocess.Popen([sys.executable, "-ISc", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for code in (_CLIENT, _SERVER)
    ]
    try:
        yield pair[0], pair[1]
    finally:
        for process in pair:
            process.kill()
            process.communicate()


def talk(client: subprocess.Popen[str], server: subprocess.Popen[str]) -> Ends:
    assert client.stdin
    assert client.stdout
    assert server.stdout
    client.stdin.write(server.stdout.readline())
    client.stdin.flush()
    ends = Ends(client.pid, server.pid, json.loads(client.stdout.readline()), json.loads(server.stdout.readline()))
    assert client.wait() == server.wait() == 0
    return ends


@contextmanager
def crowded() -> Iterator[tuple[socket.socket, list[socket.socket]]]:
    """A listener whose queue is full, and four that connect to it, of which at most one or two succeed."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        clients = [stack.enter_context(socket.socket()) for _ in range(4)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener, clients


def rows(df: pd.DataFrame, ends: Ends, *columns: str) -> list[tuple[Any, ...]]:
    """These columns of the rows of both processes, sorted."""
    mine = df[df["pid"].isin([ends.client, ends.server])]
    return sorted(mine[list(columns)].itertuples(index=False, name=None))


def versions(df: pd.DataFrame, address: str) -> bool:
    """Whether ip says of each row what the address is."""
    return bool((df["ip"] == df[address].astype(str).str.contains(":").map({True: 6, False: 4})).all())


@pytest.mark.portable
def test_tcpconnect_has_every_connection_with_its_port() -> None:
    with tools.tcpconnect() as session, processes() as pair:
        ends = talk(*pair)
        with socket.socket() as refused, pytest.raises(ConnectionRefusedError):
            refused.connect(("127.0.0.1", 1))
        with socket.socket() as bound, socket.create_server(("127.0.0.1", 0)) as listener:
            bound.bind(("127.0.0.1", 0))
            bound.connect(listener.getsockname())
            own = bound.getsockname()[1], listener.getsockname()[1]
        # A socket of IPv6 that connects to an address of IPv4.
        with socket.socket(socket.AF_INET6) as dual, socket.create_server(("127.0.0.1", 0)) as listener:
            dual.connect(("::ffff:127.0.0.1", listener.getsockname()[1]))
            mapped = dual.getsockname()[1], listener.getsockname()[1]
        with crowded() as (listener, clients):  # the last is not answered: it is there all the same
            pending = clients[-1].getsockname()[1]
            until(lambda: pending in set(session.df["lport"]), 5)
            assert clients[-1].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == SYN_SENT
            crowd = [client.getsockname()[1] for client in clients]
    df = session.df
    df = df[~df["lport"].isin(crowd)]
    assert rows(df, ends, "pid", "saddr", "lport", "daddr", "dport") == [
        end for end in ends.all() if end[0] == pair[0].pid
    ]
    assert versions(df, "daddr")
    mine = df[df["pid"] == os.getpid()]
    assert mine["dport"].tolist() == [1, own[1], mapped[1]]
    assert mine["lport"].tolist()[1:] == [own[0], mapped[0]]
    assert mine["lport"].iloc[0] > 0
    assert mine["ip"].tolist() == [4, 4, 4]
    assert (mine["uid"] == os.getuid()).all()
    assert session.lost == 0


@pytest.mark.portable
def test_tcpaccept_has_the_process_that_accepts() -> None:
    with tools.tcpaccept() as session, processes() as pair:
        ends = talk(*pair)
        # accept4() that finds none, and an accept() that is no TCP's
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()
        with socket.socket(socket.AF_UNIX) as unix, socket.socket(socket.AF_UNIX) as other:
            unix.bind("\0bpfnb-net-tools")
            unix.listen()
            other.connect("\0bpfnb-net-tools")
            unix.accept()[0].close()
    df = session.df
    assert rows(df, ends, "pid", "laddr", "lport", "raddr", "rport") == [
        end for end in ends.all() if end[0] == pair[1].pid
    ]
    assert versions(df, "raddr")
    assert not (df["pid"] == os.getpid()).any()


@pytest.mark.portable
def test_tcplife_has_both_ends_with_their_processes_and_bytes() -> None:
    with tools.tcplife() as session, processes() as pair:
        ends = talk(*pair)
        until(lambda: len(rows(session.df, ends, "pid")) == 8)
    df = session.df
    assert rows(df, ends, "pid", "laddr", "lport", "raddr", "rport") == ends.all()
    assert versions(df, "laddr")
    client, server = df[df["pid"] == ends.client], df[df["pid"] == ends.server]
    assert set(client["tx"]) == set(server["rx"]) == {SENT}
    assert set(client["rx"]) == set(server["tx"]) == {ANSWERED}
    assert client["duration"].between(pd.Timedelta(PAUSE, "s"), pd.Timedelta("20s")).all()
    assert server["duration"].between(pd.Timedelta(PAUSE, "s"), pd.Timedelta("20s")).all()


def test_tcplife_of_one_process_has_its_ends_alone() -> None:
    with processes() as pair, tools.tcplife(pid=pair[1].pid) as session:
        ends = talk(*pair)
        until(lambda: len(session.df) == 4)
    assert rows(session.df, ends, "pid", "laddr", "lport", "raddr", "rport") == [
        end for end in ends.all() if end[0] == ends.server
    ]


def test_tcplife_knows_whose_a_connection_is_that_the_other_side_resets() -> None:
    code = (
        "import socket, struct, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); "
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); input(); s.close()"
    )
    with tools.tcplife() as session, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = [sys.executable, "-ISc", code, str(port)]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as client, listener.accept()[0]:
            client.communicate(b"\n")
        until(lambda: {port} <= set(session.df["lport"]) & set(session.df["rport"]))
    df = session.df
    assert df[df["lport"] == port]["pid"].tolist() == [os.getpid()]
    assert df[df["rport"] == port]["pid"].tolist() == [client.pid]


def test_tcplife_does_not_guess_whose_a_connection_is() -> None:
    """It is reset before it is accepted."""
    with tools.tcplife() as session, socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as client:
            port = client.getsockname()[1]
        listener.close()
        until(lambda: {port} <= set(session.df["rport"]))
    (row,) = session.df[session.df["rport"] == port].itertuples()
    assert (row.pid, row.comm) == (0, "")


@pytest.mark.portable
def test_tcpstates_are_those_of_the_protocol_with_the_sockets_process() -> None:
    with tools.tcpstates() as session, processes() as pair:
        ends = talk(*pair)
        until(lambda: ((session.df["newstate"] == "CLOSE") & (session.df["rport"] > 0)).sum() >= 8)  # less listeners
    df = session.df
    closes_first = ["ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "CLOSE"]
    closes_last = ["ESTABLISHED", "CLOSE_WAIT", "LAST_ACK", "CLOSE"]
    for number, (_, port, _, other) in enumerate(ends.of_client):
        of_client, of_server = (closes_first, closes_last) if number < 2 else (closes_last, closes_first)
        client = df[(df["lport"] == port) & (df["rport"] == other)]
        assert client["newstate"].tolist() == of_client
        assert client["oldstate"].tolist() == ["SYN_SENT", *of_client[:-1]]
        assert set(client["pid"]) == {ends.client}
        begins = df[(df["newstate"] == "SYN_SENT") & (df["skaddr"] == client["skaddr"].iloc[0])]
        assert set(begins["rport"]) == {other}
        assert pd.Timedelta(PAUSE, "s") <= client["duration"].iloc[1] <= pd.Timedelta("20s")
        server = df[(df["rport"] == port) & (df["lport"] == other)]
        assert server["newstate"].tolist()[-4:] == of_server  # SYN_RECV before has no ends on some kernels
        assert set(server["pid"].iloc[-3:]) == {ends.server}


@pytest.mark.portable
def test_tcpretrans_has_each_segment_that_is_sent_again() -> None:
    """A listener whose queue is full does not answer: the others ask again after a second."""
    before = _sent_again()
    with tools.tcpretrans() as session, crowded() as (listener, clients):
        ports, port = [client.getsockname()[1] for client in clients], listener.getsockname()[1]
        until(lambda: session.df["lport"].isin(ports).sum() >= 3, 20)
        df, counted = session.df, _sent_again() - before
    mine = df[df["lport"].isin(ports)]
    assert 3 <= len(mine) <= len(df) <= counted + 1
    assert set(mine["lport"]) <= set(ports[1:])
    assert set(mine["type"]) == {"R"}
    assert set(mine["state"]) == {"SYN_SENT"}
    assert set(mine["rport"]) == {port}
    assert set(mine["raddr"]) == {"127.0.0.1"}


def _sent_again() -> int:
    """RetransSegs, as the kernel counts them."""
    names, numbers = (line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line[:4] == "Tcp:")
    return int(numbers[names.index("RetransSegs")])


@pytest.mark.skipif(KPROBES, reason="needs a kernel without kprobes")
def test_tcpretrans_says_what_loss_probes_need() -> None:
    with pytest.raises(UnsupportedError, match="lossprobe needs kprobes"):
        tools.tcpretrans(lossprobe=True)


@pytest.mark.portable
def test_tcpdrop_has_the_reason_and_the_path() -> None:
    with tools.tcpdrop() as session:
        ports = {}
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family) as refused:
                refused.bind((address, 0))
                ports[refused.getsockname()[1]] = address
                with pytest.raises(ConnectionRefusedError):
                    refused.connect((address, 1))
            with socket.socket(family, socket.SOCK_DGRAM) as udp:  # nobody is there; that is no TCP
                udp.sendto(b"x", (address, 1))
        until(lambda: set(ports) <= set(session.df["sport"]))
        stacks = session.maps["stacks"].folded(session.df, kernel="stack")
    df = session.df[session.df["dport"] == 1]
    assert dict(zip(df["sport"], df["saddr"], strict=True)) == ports
    assert df["daddr"].astype(str).tolist() == df["saddr"].astype(str).tolist() == ["127.0.0.1", "::1"]
    assert df["ip"].tolist() == [4, 6]
    assert set(df["reason"]) == {"NO_SOCKET"}
    assert set(df["flags"]) == {"SYN"}
    assert df["state"].isna().all()
    assert (df["pid"] == os.getpid()).all()
    assert stacks["stack"].str.contains("tcp_v4_connect").any()
    assert stacks["stack"].str.contains("tcp_v6_connect").any()
    assert not stacks["stack"].str.contains("bpf_prog_").any()


@pytest.mark.portable
def test_tcptop_has_the_bytes_that_each_process_sent_and_received() -> None:
    with tools.tcptop() as session, processes() as pair:
        ends = talk(*pair)
        running = session.df
    df = session.df
    assert rows(df, ends, "pid", "laddr", "lport", "raddr", "rport") == ends.all()
    assert rows(running, ends, "pid", "lport", "rx", "tx") == rows(df, ends, "pid", "lport", "rx", "tx")
    client, server = df[df["pid"] == ends.client], df[df["pid"] == ends.server]
    assert set(client["tx"]) == set(server["rx"]) == {SENT}
    assert set(client["rx"]) == set(server["tx"]) == {ANSWERED}
    sizes = df["rx"] + df["tx"]
    assert sizes.is_monotonic_decreasing


def test_tcptop_sees_what_a_file_is_sent_with(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(100_000))
    with (
        tools.tcptop() as session,
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as server,
        file.open("rb") as data,
    ):
        port = client.getsockname()[1]
        assert client.sendfile(data) == 100_000
        got = 0
        while got < 100_000:
            got += len(server.recv(1 << 16))
    df = session.df
    assert df[df["lport"] == port]["tx"].sum() == df[df["rport"] == port]["rx"].sum() == 100_000


def test_a_tool_that_stops_at_once_leaves_an_empty_frame() -> None:
    for start in (tools.tcpconnect, tools.tcpaccept, tools.tcplife, tools.tcpstates, tools.tcpretrans, tools.tcptop):
        with start(comm="no-such-name") as session:
            time.sleep(0)
        assert len(session.df) == 0
        assert {"pid", "ip"} <= set(session.df.columns)
