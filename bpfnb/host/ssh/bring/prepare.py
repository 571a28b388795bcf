"""Get a host ready to trace: look at it, bring what it lacks, and say how far is run there.

    prepare(destination)  ->  Ready: the ssh command that runs far, and what the host is
    checks_there(...)     ->  the doctor's rows from there, where no tracer starts

A host needs the distribution's Python and bcc, and somebody who may trace: root, a member of ``bpfnb setup``'s group,
or a user whom ``sudo -n`` lets run that Python. Everything else is brought, into that user's cache. A first connection
asks (a second of its own brings), the last one is far's. Only what lies in the cache is left there.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import msgspec
from msgspec import Struct

from bpfnb import release
from bpfnb.errors import BpfnbError, PrivilegeError, SetupError, UnsupportedError, printable
from bpfnb.host.ssh.bring import brought, bundles
from bpfnb.host.ssh.bring.bundles import Part, Target
from bpfnb.host.ssh.bring.destination import Destination, ask, ssh_command
from bpfnb.progress import Step, step
from bpfnb.protocol.messages import Check

__all__ = ["Facts", "Ready", "checks_there", "prepare"]

_CHUNK = 1 << 17  # bytes between two looks at the clock
_MARGIN = 1.6  # compiled Python takes more room than what is sent
_DOCTOR_TIMEOUT = 60  # seconds
_MIN_KERNEL = (5, 5)


class Facts(Struct):
    """What there.look answers."""

    system: str
    release: str
    machine: str
    distribution: str
    node: str
    user: str
    python: tuple[int, int, int]
    implementation: str
    soabi: str
    bits: int
    libc: tuple[str, str]
    btf: bool
    rights: str
    sudo: str
    folder: str
    stranger: str
    parts: dict[str, str]
    free: int
    noexec: bool
    writable: bool

    @property
    def target(self) -> Target:
        return Target(self.soabi, self.machine, self.python, self.implementation, self.libc)


class Ready(NamedTuple):
    """``command``: runs far, by ssh. ``parts``: their folders there and digests."""

    command: list[str]
    facts: Facts
    parts: list[tuple[str, str]]


def prepare(destination: Destination, packages: Callable[[Target], Part] = bundles.packages_part) -> Ready:
    """Look at a host and bring what it lacks; a step says how far that is.

    SetupError, PrivilegeError or UnsupportedError, one line that names the host, where it cannot be. ``packages``:
    what returns the packages for it.
    """
    with step(f"looking at {destination}") as looking:
        ours = _bpfnb_part()
        facts = _look(destination, ours, looking)
        _refuse(destination, facts)
        if not any(name.startswith("packages/") for name in facts.parts):
            looking.say(f"getting the packages for {facts.target}")
        parts = [ours, _packages_part(facts.target, packages)]
        missing = [part for part in parts if facts.parts.get(part.name) != part.digest]
        if missing:
            _bring(destination, facts, missing, looking)
    there = [(f"{facts.folder}/{part.name}", part.digest) for part in parts]
    return Ready(_python(destination, brought.far_code(there, destination.sudo)), facts, there)


def checks_there(ready: Ready, destination: Destination) -> list[Check]:
    """Return the doctor's rows about a host, from a process there with the most rights there are."""
    code = brought.tracer_code("bpfnb.tracer.doctor.checks")
    sudo = ready.facts.rights == "sudo"
    done = subprocess.run(
        _python(destination, code, json.dumps(ready.parts), sudo=sudo),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_DOCTOR_TIMEOUT,
        start_new_session=True,
    )
    return msgspec.json.decode(done.stdout[done.stdout.find(b"[") :], type=list[Check])


def _python(destination: Destination, code: str, argument: str = "", sudo: bool = False) -> list[str]:
    """Return the ssh command that runs Python there. In hexadecimal no shell finds anything to change."""
    text = f"import sys; sys.argv[1:] = {[argument] if argument else []!r}\n{code}".encode().hex()
    before = "sudo -n -- " if sudo else ""
    command = f"exec {before}{destination.python} -I -B -c 'exec(bytes.fromhex(\"{text}\"))'"
    return ssh_command(destination, command)


@lru_cache(maxsize=1)
def _bpfnb_part() -> Part:
    return bundles.bpfnb_part()


@lru_cache(maxsize=8)
def _packages_part(target: Target, packages: Callable[[Target], Part]) -> Part:
    return packages(target)


def _look(destination: Destination, ours: Part, looking: Step) -> Facts:
    names = (ours.name, "packages/")
    call = f"look({release.version()!r}, {release.build()!r}, {destination.cache!r}, {names!r}, {destination.sudo!r})"
    answer = ask(destination, call, looking.tick)
    try:
        return msgspec.convert(answer, Facts)
    except msgspec.ValidationError as error:
        raise SetupError(f"{destination}: what it answers is not what was asked: {error}") from None


def _refuse(destination: Destination, facts: Facts) -> None:
    """Raise what keeps a host from tracing, where that is seen before anything is brought."""
    error: BpfnbError | None = None
    folder, python = printable(facts.folder), destination.python
    elsewhere = f'name a folder elsewhere: Host.ssh({destination.host!r}, cache="/var/tmp/{facts.user}")'
    if facts.system != "Linux":
        error = UnsupportedError(f"{destination} runs {printable(facts.system)}, and bpfnb traces Linux")
    elif facts.implementation != "cpython" or facts.bits != 64:
        error = UnsupportedError(
            f"{destination}: {python} is {printable(facts.implementation)} of {facts.bits} bits, not CPython of 64",
            hint=f"name another that is there: Host.ssh({destination.host!r}, python=...)",
        )
    elif not facts.rights:
        error = _no_rights(destination, facts)
    elif facts.stranger:
        error = SetupError(f"{destination}: {printable(facts.stranger)}", hint=elsewhere)
    elif facts.noexec:
        error = SetupError(f"{destination}: {folder} is on a file system without execution (noexec)", hint=elsewhere)
    elif not facts.writable:
        error = SetupError(f"{destination}: user {printable(facts.user)} cannot write to {folder}", hint=elsewhere)
    if error:
        raise error


def _no_rights(destination: Destination, facts: Facts) -> PrivilegeError:
    user = printable(facts.user)
    why = f"; {printable(facts.sudo)}" if facts.sudo else "; sudo=False leaves only bpfnb setup's tracer"
    return PrivilegeError(
        f"{destination}: user {user} may not trace there{why}",
        hint=f"allow {user} there to run {destination.python} with sudo -n (a NOPASSWD rule), or connect as root; "
        f"or an administrator runs there: bpfnb setup --group bpfnb, and usermod -aG bpfnb {user}",
    )


def _bring(destination: Destination, facts: Facts, parts: list[Part], bringing: Step) -> None:
    needed = int(sum(part.size for part in parts) * _MARGIN)
    full = f'make room, or name a folder elsewhere: Host.ssh({destination.host!r}, cache="/var/tmp/{facts.user}")'
    if facts.free < needed:
        raise SetupError(
            f"{destination}: {facts.folder} has {_megabytes(facts.free)} free, and bpfnb needs {_megabytes(needed)}",
            hint=full,
        )
    listed = [(part.name, part.digest, len(part.data)) for part in parts]
    call = f"receive({destination.cache!r}, {listed!r})"
    answer = ask(destination, call, bringing.tick, _chunks(destination, parts, bringing))
    if "error" in answer:
        raise SetupError(
            f"{destination}: bpfnb could not be put into {printable(facts.folder)}: {printable(str(answer['error']))}",
            hint=full,
        )


def _chunks(destination: Destination, parts: list[Part], bringing: Step) -> Iterator[bytes]:
    """Yield what is sent, and say how much of it has been."""
    total = sum(len(part.data) for part in parts)
    sent = 0
    for part in parts:
        for begin in range(0, len(part.data), _CHUNK):
            bringing.say(f"bringing bpfnb to {destination}: {sent / 1e6:.0f} of {_megabytes(total)}")
            chunk = part.data[begin : begin + _CHUNK]
            yield chunk
            sent += len(chunk)
    bringing.say(f"setting bpfnb up on {destination}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
