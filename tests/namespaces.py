"""Machines to change: mount namespaces, in which system folders are ours, and other users can reach this checkout."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import pytest

from bpfnb import release
from bpfnb.host import ways

ROOT = Path(__file__).parents[1]
GROUP = "bpfnb-test"
SETUP = (sys.executable, "-m", "bpfnb", "setup")

needs_root_and_systemd = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can set up"),
    pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="systemd-socket-activate is not installed"),
]


def opened(folder: Path, shadow: Path) -> list[str]:
    """Commands that let everybody reach ``folder``, where a parent (root's home, say) is closed to others."""
    closed = [p for p in reversed(folder.parents) if not p.stat().st_mode & stat.S_IXOTH]
    if not closed:
        return []
    place = shadow / folder.relative_to(closed[0])
    return [f"mkdir -p '{place}'", f"mount --bind '{folder}' '{place}'", f"mount --rbind '{shadow}' '{closed[0]}'"]


class Machine:
    """A namespace whose ``changed`` folders are overlays in memory. It ends with the context.

    ``empty``: folders that have nothing in them there.
    """

    def __init__(self, place: Path, changed: Sequence[str], empty: Sequence[str] = ()) -> None:
        self._place = place
        commands = ["umask 022", f"mount -t tmpfs -o mode=755 none '{place}'"]
        for number, folder in enumerate({Path(sys.base_prefix), ROOT, Path(sys.prefix)}):
            commands += opened(folder, place / "open" / str(number))
        for number, name in enumerate(changed):
            upper, work = place / f"{number}-upper", place / f"{number}-work"
            layers = f"lowerdir={name},upperdir={upper},workdir={work}"
            commands += [f"mkdir '{upper}' '{work}'", f"mount -t overlay -o '{layers}' none '{name}'"]
        commands += [f"mount -t tmpfs -o mode=755 none '{name}'" for name in empty]
        commands += ["echo ready", "exec cat"]
        self._process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-ec", "\n".join(commands)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> Machine:
        assert self._process.stdout
        if self._process.stdout.readline() != b"ready\n":
            self.close()
            raise AssertionError(f"no namespace: exit status {self._process.returncode}")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._process.communicate()

    def command(self, *words: str | Path, uid: int = 0, gid: int = 0, groups: Sequence[int] = ()) -> list[str]:
        """A command that runs others in there, as another user."""
        become = ["setpriv", "--reuid", str(uid), "--regid", str(gid)]
        become += ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
        inside = ["nsenter", "--mount", "--target", str(self._process.pid), "--wd=/"]
        return [*inside, *(become if uid else []), *map(str, words)]

    def run(
        self, *words: str | Path, uid: int = 0, gid: int = 0, groups: Sequence[int] = (), check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        command = self.command(*words, uid=uid, gid=gid, groups=groups)
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=dict(os.environ))
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done


@contextmanager
def bare_machine(place: Path) -> Iterator[Machine]:
    """A machine that bpfnb is not set up on: its /etc and /opt are overlays, and it has a /run/bpfnb of its own."""
    ways.SOCKETS.mkdir(exist_ok=True)
    try:
        with Machine(place, ["/etc", "/opt"], [str(ways.SOCKETS)]) as machine:
            yield machine
    finally:
        ways.SOCKETS.rmdir()


def group_of(machine: Machine) -> int:
    return int(machine.run("getent", "group", GROUP).stdout.split(":")[2])


@contextmanager
def listening_on(machine: Machine) -> Iterator[None]:
    """The socket as systemd would make it, once ``bpfnb setup --by systemd`` has written its units.

    Whoever connects gets the tracer, with the capabilities that the unit gives it.
    """
    version = release.version()
    unit = machine.run("cat", f"/etc/systemd/system/{ways.unit_of(version)}@.service").stdout
    names = " ".join(re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.M)).split()
    bounding = ",".join(["-all", *("+" + name.removeprefix("CAP_").lower() for name in names)])
    tracer = f"exec setpriv --bounding-set {bounding} {ways.launcher_of(version)} >&2"
    socket = ways.socket_of(version)
    activate = ["systemd-socket-activate", "-l", socket, "--accept", "--inetd", "sh", "-c", tracer]
    with subprocess.Popen(machine.command(*activate), stderr=subprocess.PIPE) as process:
        assert process.stderr
        assert b"Listening" in process.stderr.readline()
        machine.run("chgrp", GROUP, socket)
        machine.run("chmod", "0660", socket)
        yield
        process.terminate()
