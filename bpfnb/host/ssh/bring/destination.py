"""An ssh destination, and a command run there over the person's own OpenSSH: what it answers, or why it could not."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from bpfnb.errors import BpfnbError, ProgramError, SetupError, TracerDied, printable
from bpfnb.interrupts import caller_left

__all__ = ["PYTHON", "Destination", "ask", "check", "configured", "ssh_command"]

PYTHON = "/usr/bin/python3"  # the distribution's
# All else is as the person has it: configuration, keys, agent, jump hosts, known hosts, a connection that is shared.
# ssh takes the first of several values: these come before theirs. Their RemoteCommand would take the place of ours, and
# their forwardings may be in use by another connection of theirs.
_OURS = (
    *("BatchMode=yes", "ServerAliveInterval=5", "ServerAliveCountMax=3"),
    *("RemoteCommand=none", "ClearAllForwardings=yes"),
)
_PLAIN = re.compile(r"/[A-Za-z0-9_./+-]+", re.ASCII)  # a path that no shell changes
_MAX_ANSWER = 1 << 20  # bytes
_MAX_SAID = 1 << 14
_POLL = 0.25  # seconds
_MAX_LINES = 10_000
_MAX_DEPTH = 4


class Destination(NamedTuple):
    """Where: as ssh takes it, with further options for ssh. ``cache``: a folder there, "" for the user's own cache."""

    host: str
    options: tuple[str, ...] = ()
    python: str = PYTHON
    sudo: bool = True
    cache: str = ""

    def __str__(self) -> str:
        return printable(self.host)


def check(destination: Destination) -> None:
    """ProgramError for what cannot be meant, or would be something else to ssh or to a shell."""
    host, options, python, sudo, cache = destination
    if not isinstance(host, str) or not host or host.startswith("-") or not host.isprintable() or " " in host:
        raise ProgramError(
            f"not a destination for ssh: {host!r}", hint="write user@host, or a Host of your ~/.ssh/config"
        )
    for option in options:
        if not isinstance(option, str) or not option or "\0" in option:
            raise ProgramError(f"options are words of ssh's command line, not {option!r}")
    if options and not options[0].startswith("-"):
        raise ProgramError(f"not an option of ssh: {options[0]!r}", hint='write options=["-p", "2222"]')
    if not isinstance(python, str) or not _PLAIN.fullmatch(python):
        raise ProgramError(f"python must be a Python's whole path on that host, not {python!r}")
    if not isinstance(sudo, bool):
        raise ProgramError(f"sudo must be True or False, not {sudo!r}")
    if not isinstance(cache, str) or (cache and not cache.startswith("/")) or "\0" in cache:
        raise ProgramError(f"cache must be a folder's whole path on that host, not {cache!r}")


def ssh_command(destination: Destination, command: str) -> list[str]:
    """Return the words that run a command there. ``command``: as any login shell takes it."""
    ours = [word for option in _OURS for word in ("-o", option)]
    return ["ssh", "-T", *ours, *destination.options, "--", destination.host, command]


def ask(destination: Destination, call: str, tick: Callable[[], None], payload: Iterable[bytes] = ()) -> dict[str, Any]:
    """Run a call of there.py on the host, which gets ``payload`` as its input; return its answer. ``tick``: is called
    every now and then meanwhile.

    SetupError where there is none: one line with what ssh or the host said.
    """
    from bpfnb.host.ssh.bring import there  # here: it needs Unix

    text = f"{Path(there.__file__).read_text()}\n{call}\n".encode()
    # No shell finds anything to change in this. The text itself follows through the pipe.
    code = (
        f'import sys; print("{there.MARK}[%d,%d]" % sys.version_info[:2]) if sys.version_info < (3, 10) '
        f"else exec(sys.stdin.buffer.read({len(text)}))"
    )
    words = ssh_command(destination, f"exec {destination.python} -I -B -c '{code}'")
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, start_new_session=True
            )
        except FileNotFoundError:
            raise SetupError("ssh is not installed on this machine", hint="install OpenSSH's client") from None
        try:
            assert process.stdin
            with suppress(BrokenPipeError), process.stdin as pipe:
                _send(pipe, text, payload)
            output = _received(process, tick)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            assert process.stdout
            process.stdout.close()
        found = _answer(output, there.MARK, destination)
        if found is None:
            said.seek(0, os.SEEK_END)
            said.seek(max(said.tell() - _MAX_SAID, 0))
            raise failure(destination, process.returncode, said.read().decode(errors="replace"))
        return found


def _send(pipe: IO[bytes], text: bytes, payload: Iterable[bytes]) -> None:
    pipe.write(text)
    pipe.flush()
    for chunk in payload:
        _stay()
        pipe.write(chunk)


def _received(process: subprocess.Popen[bytes], tick: Callable[[], None]) -> bytes:
    assert process.stdout
    output = b""
    while True:
        _stay()
        tick()
        try:
            process.wait(_POLL)
        except subprocess.TimeoutExpired:
            continue
        return output + process.stdout.read(_MAX_ANSWER)


def _stay() -> None:
    """Leave where nobody waits any longer: the main thread was interrupted."""
    if caller_left():
        raise TracerDied("interrupted before the host was reached")


def _answer(output: bytes, mark: str, destination: Destination) -> dict[str, Any] | None:
    for line in reversed(output.decode(errors="replace").splitlines()):
        if line.startswith(mark):
            found = json.loads(line.removeprefix(mark))
            if isinstance(found, list):
                version = ".".join(map(str, found))
                raise SetupError(
                    f"{destination}: {destination.python} is Python {version}: bpfnb needs 3.10 or newer",
                    hint='name a newer one that is there: Host.ssh(..., python="/usr/bin/python3.11")',
                )
            assert isinstance(found, dict)
            return found
    return None


# --- the person's own hosts ---------------------------------------------------------------------------------------


def configured(file: Path | None = None, depth: int = 0) -> list[str]:
    """Return the names of Host lines in ~/.ssh/config, or another file, and those it includes; no patterns."""
    path = file or Path.home() / ".ssh" / "config"
    names: list[str] = []
    with suppress(OSError, UnicodeDecodeError):
        for line in path.read_text().splitlines()[:_MAX_LINES]:
            word, rest = _words(line)
            if word == "host":
                names += [name for name in rest if not re.search(r"[*?!]", name)]
            elif word == "include" and depth < _MAX_DEPTH:
                names += [name for pattern in rest for name in _included(pattern, depth + 1)]
    return list(dict.fromkeys(names))


def _words(line: str) -> tuple[str, list[str]]:
    """Return a line's keyword, in small letters, and its arguments: ssh_config(5)."""
    try:
        word, *rest = shlex.split(line.replace("=", " ", 1), comments=True)
    except ValueError:  # empty, or a quote that is not closed
        return "", []
    return word.lower(), rest


def _included(pattern: str, depth: int) -> Iterator[str]:
    where = Path.home() / ".ssh" / Path(pattern).expanduser()
    for found in sorted(Path("/").glob(str(where.relative_to("/")))):
        yield from configured(found, depth)


# --- why not ------------------------------------------------------------------------------------------------------


def failure(destination: Destination, status: int, said: str) -> BpfnbError:
    """Return the error for a command that gave no answer: what ssh said, or what the host did."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = printable(lines[-1]) if lines else ""
    host, shown = str(destination), shlex.quote(destination.host)
    command = shlex.join(["ssh", *destination.options, destination.host])
    if status in (126, 127):
        return SetupError(
            f"{host}: there is no {destination.python} that runs" + (f" ({last})" if last else ""),
            hint='install that distribution\'s Python 3, or name another: Host.ssh(..., python="/usr/bin/python3.11")',
        )
    if status != 255:
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return SetupError(f"{host}: the command to look at it failed ({how}){': ' if last else ''}{last}")
    for pattern, hint in _SAID:
        if found := next((line for line in lines if re.search(pattern, line)), ""):
            return SetupError(f"ssh {host}: {printable(found)}", hint=hint.format(command=command, host=shown))
    return SetupError(f"ssh {host}: {last or 'the connection failed, and it does not say why'}")


# What ssh says, and what helps.
_SAID = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its key is not the one in known_hosts: another machine, or one made anew; if you know why: "
        "ssh-keygen -R with that name, then {command} true in a terminal, and compare the key",
    ),
    (
        r"No \S+ host key is known|Host key verification failed",
        "its key is not known yet: run {command} true once in a terminal, and compare the key it shows",
    ),
    (
        r"[Pp]ermission denied",
        "bpfnb asks for no password and no passphrase: ssh-add your key, or ssh-copy-id {host}; "
        "then {command} -o BatchMode=yes true works, and this does",
    ),
    (r"Could not resolve hostname", "write a host's name or address, or a Host of your ~/.ssh/config"),
    (
        r"Connection (refused|timed out)|No route to host|Network is unreachable|Operation timed out",
        "look whether {command} true works in a terminal: is the host up, and the port the one of its ssh server?",
    ),
)
