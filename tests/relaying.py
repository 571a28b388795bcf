"""Hosts that are reached through near and far, as by ssh, but the command that runs far is a shell of this machine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from processes import children, command

import bpfnb
from bpfnb.host.ssh.peer import SILENCE, far_command, launch

ROOT = Path(__file__).parents[1]
FAR = shlex.join(far_command(sys.executable, str(ROOT)))
THROTTLE = f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'tests/throttle.py'))}"


def relayed(name: str = "relay", script: str = FAR, silence: float = SILENCE) -> bpfnb.Host:
    """A host by a shell script that runs far: ``FAR``, or with something before or behind it."""
    return bpfnb.Host(lambda: launch(("sh", "-c", script), name, silence))


def slow(rate: float) -> str:
    """A script whose far is heard at so many bytes a second."""
    return f"{FAR} | {THROTTLE} {rate:g}"


def parts(host: bpfnb.Host) -> dict[str, int]:
    """The processes of a host that is up: near, the command (sh), far, the tracer's worker, and a throttle, if any: the
    link."""
    worker = host.connect().hello().pid
    found = {"worker": worker}
    (near,) = (pid for pid in children() if f"boot.py near {_name(host)} " in command(pid))
    found["near"] = near
    (found["command"],) = children(near)
    todo = [found["command"]]
    while todo:
        pid = todo.pop()
        words = command(pid).split()
        if words[-1:] == ["far"]:
            found.setdefault("far", pid)
        if str(ROOT / "tests/throttle.py") in words[:2]:
            found["link"] = pid
        todo += children(pid)
    return found


def _name(host: bpfnb.Host) -> str:
    return host.connect().reached.split(",")[0].removeprefix("ssh ")
