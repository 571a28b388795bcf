"""Hosts that are reached through near and far, as by ssh, but the command that runs far is a shell of this machine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from processes import children, command, parent

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


def parts(host: bpfnb.Host, notebook: int | str = "self") -> dict[str, int]:
    """The processes of a host that is up: near, the command (a shell, or ssh), far, and the tracer's worker."""
    return parts_of(host.connect().hello().pid, notebook)


def parts_of(worker: int, notebook: int | str = "self") -> dict[str, int]:
    """The same, by the tracer's worker. The notebook has no other such host."""
    (near,) = (pid for pid in children(notebook) if "boot.py near " in command(pid))
    (started,) = children(near)
    far = parent(parent(worker))
    assert command(far).rstrip().endswith("boot.py far"), command(far)
    return {"near": near, "command": started, "far": far, "worker": worker}
