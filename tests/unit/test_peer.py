"""Who is at the other end of a socket, told by the kernel: against processes whose ids are known."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from bpfnb.tracer.access import peer


@contextmanager
def connected(uid: int, gid: int, groups: list[int]) -> Iterator[tuple[socket.socket, int]]:
    """A socket that another process has connected to, and that process, which is still there."""
    name = f"\0bpfnb-test-{os.getpid()}"
    ready, stay = os.pipe()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(name)
        listening.listen()
        child = os.fork()
        if not child:
            os.close(stay)
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            with socket.socket(socket.AF_UNIX) as connecting:
                connecting.connect(name)
                os.read(ready, 1)
            os._exit(0)
        os.close(ready)
        accepted, _ = listening.accept()
    with accepted:
        yield accepted, child
        os.close(stay)
        os.waitpid(child, 0)


def test_of_a_socketpair_it_is_its_maker() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer.of(theirs) == (os.getpid(), os.geteuid(), os.getegid(), frozenset(os.getgroups()))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("groups", [[7, 8], list(range(3000, 3400))])
def test_of_a_connection_it_is_who_connected(groups: list[int]) -> None:
    with connected(12345, 55, groups) as (sock, pid):
        found = peer.of(sock)
        assert found == (pid, 12345, 55, frozenset(groups))
        assert found.in_group(55)
        assert found.in_group(groups[-1])
        assert not found.in_group(9)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_its_end_is_seen() -> None:
    with connected(0, 0, []) as (sock, _):
        pidfd = peer.watch(sock)
        assert pidfd is not None
        assert select.select([pidfd], [], [], 0)[0] == []
        held = sock.dup()
    with held:
        assert select.select([pidfd], [], [], 10)[0] == [pidfd]
        os.close(pidfd)
        with suppress(ProcessLookupError):  # since Linux v6.16 one may ask for the dead as well
            late = peer.watch(held)
            assert late is not None
            assert select.select([late], [], [], 10)[0] == [late]
            os.close(late)
