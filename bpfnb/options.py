"""The options that every session takes: in Python, on the line of a magic, and in a terminal.

SessionOptions          their names and types, as ``Host.run`` takes them
add_options(parser)     the same as options of a command
options_of(parsed)      what was parsed -> SessionOptions
filters_of(options)     those that are filters, checked
parse_size, ...         values as people write them
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, TypedDict

from bpfnb.errors import ProgramError, did_you_mean, near_or_all
from bpfnb.language.filters import Filters
from bpfnb.language.program import Missing
from bpfnb.recordings.running import RecordFailed

__all__ = [
    "SessionOptions",
    "add_options",
    "check_options",
    "command_of",
    "filters_of",
    "missing_of",
    "options_of",
    "parse_duration",
    "parse_rate",
    "parse_share",
    "parse_size",
    "record_of",
    "seconds_of",
]

_RECORD_FAILED: tuple[RecordFailed, ...] = ("continue", "stop")
_MAX_COMM = 15  # bytes of a thread's name (Linux: TASK_COMM_LEN, with a NUL)
_MAX_ID = (1 << 32) - 2  # of a user; the last number means none
_MAX_PID = 1 << 22  # Linux: PID_MAX_LIMIT


class SessionOptions(TypedDict, total=False):
    """What everything that starts a session takes; ``bpfnb.trace`` says what each means."""

    name: str | None
    keep: int | None
    cpu: bool
    max_cost: float | None
    max_rate: float | None
    max_memory: int | None
    guard: bool
    missing: Missing | None
    pid: int | None
    follow: int | None
    comm: str | None
    cgroup: str | os.PathLike[str] | None
    uid: int | str | None
    command: str | Sequence[str] | None
    record: str | os.PathLike[str] | None
    record_failed: RecordFailed


def check_options(options: Mapping[str, object]) -> None:
    """ProgramError for a name that is no option."""
    known = list(SessionOptions.__annotations__)
    for name in options:
        if name not in known:
            raise ProgramError(f"there is no option {name!r}{near_or_all(name, known)}")


def missing_of(options: Mapping[str, object]) -> Missing:
    """Return what becomes of probes that cannot be attached. ProgramError."""
    choices: tuple[Missing, ...] = ("error", "warn", "ignore")
    wanted = options.get("missing")
    if wanted is None:
        return ""
    for choice in choices:
        if wanted == choice:
            return choice
    raise ProgramError(f"missing must be 'error', 'warn' or 'ignore', not {wanted!r}")


def record_of(options: Mapping[str, object]) -> tuple[str | os.PathLike[str] | None, RecordFailed]:
    """Return where a session is to be recorded, and what becomes of it should that fail. ProgramError."""
    path, failed = options.get("record"), options.get("record_failed", "continue")
    if path is not None and (not isinstance(path, (str, os.PathLike)) or not os.fspath(path)):
        raise ProgramError(f"record must be the path of a new folder or zip, not {path!r}")
    for choice in _RECORD_FAILED:
        if failed == choice:
            return path, choice
    raise ProgramError(f"record_failed must be 'continue' or 'stop', not {failed!r}")


# --- filters ------------------------------------------------------------------------------------------------------


def filters_of(options: Mapping[str, Any]) -> Filters:
    """Return the filters among SessionOptions; of ``command`` none, as it has no process yet. ProgramError."""
    which = [name for name in ("pid", "follow", "command") if options.get(name) is not None]
    if len(which) > 1:
        raise ProgramError(f"{which[0]} and {which[1]} cannot be given together", hint="leave out either")
    return Filters(
        pid=_pid("pid", options.get("pid")),
        follow=_pid("follow", options.get("follow")),
        comm=_comm(options.get("comm")),
        cgroup=_cgroup(options.get("cgroup")),
        uid=_uid(options.get("uid")),
    )


def command_of(options: Mapping[str, Any]) -> list[str] | None:
    """Return the words of the option ``command``. ProgramError where they cannot be a command."""
    command = options.get("command")
    if command is None:
        return None
    if isinstance(command, str):
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise ProgramError(f"cannot read the command {command!r}: {error}") from None
    elif isinstance(command, Sequence) and not isinstance(command, (bytes, bytearray)):
        words = [os.fspath(word) if isinstance(word, os.PathLike) else word for word in command]
    else:
        raise ProgramError(f"command must be a str or a list of str, not {command!r}")
    if not all(isinstance(word, str) and "\0" not in word for word in words):
        raise ProgramError(f"command must be a list of str without NUL characters, not {command!r}")
    if not words or not words[0]:
        raise ProgramError("the command is empty")
    return words


def _pid(name: str, value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 < int(value) <= _MAX_PID:
        raise ProgramError(f"{name} must be the number of a process, not {value!r}")
    return int(value)


def _comm(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ProgramError(f"comm must be a thread's name, not {value!r}")
    name = value.removesuffix("*")
    if not name or "*" in name:
        raise ProgramError(f"comm must be a name, or its beginning and a *, not {value!r}", hint="write comm='nginx*'")
    data = os.fsencode(name)
    if len(data) > _MAX_COMM:
        cut = data[:_MAX_COMM].decode(errors="ignore")
        raise ProgramError(f"no thread is called {name!r}: names have 15 bytes at most", hint=f"write comm={cut!r}")
    return value


def _cgroup(value: object) -> str:
    if value is None:
        return ""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path or "\0" in path:
        raise ProgramError(f"cgroup must be the path of a cgroup, not {value!r}")
    return path


def _uid(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, str):
        if value.isdecimal() and value.isascii():
            return _uid(int(value))
        import pwd  # here: recordings are read on systems without it

        try:
            return pwd.getpwnam(value).pw_uid
        except KeyError:
            near = did_you_mean(value, [user.pw_name for user in pwd.getpwall()])
            raise ProgramError(f"there is no user {value!r}", hint=near or None) from None
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) <= _MAX_ID:
        raise ProgramError(f"uid must be a user's name or number, not {value!r}")
    return int(value)


# --- on a command's line ------------------------------------------------------------------------------------------

_Parser = argparse._ActionsContainer  # a parser, or a group of one


def add_options(parser: _Parser, *, name: bool = True, live: bool = False) -> None:
    """Add the options of every session. ``name``: also ``--name``. ``live``: also ``--live``, for a notebook."""
    add = parser.add_argument
    if name:
        add("--name", metavar="NAME", help="the session's name")
    add("--host", metavar="HOST", help="trace that machine: a destination of ssh, or the name given to Host.ssh")
    add("-t", "--time", metavar="DURATION", help="trace for 10s, 500ms, 2m, then stop; Ctrl-C stops earlier")
    if live:
        add("--live", action="store_true", help="show the live panel")
    add("--keep", metavar="SIZE", help="keep at most so many bytes of rows, such as 512M; the oldest go first")
    add("--cpu", action="store_true", help="events have the number of their CPU, as a column cpu")
    add("--missing", metavar="WHAT", help="a probe that cannot be attached: error, warn (leave it out), or ignore")
    add("--pid", metavar="PID", help="only what this process does")
    add("--follow", metavar="PID", help="only what this process does, and all that it has started or starts")
    add("--comm", metavar="NAME", help="only threads of this name; a * at its end: of names that begin so")
    add("--cgroup", metavar="PATH", help="only tasks in this cgroup (v2), or below it")
    add("--uid", metavar="USER", help="only tasks of this user, by name or number")
    add("--record", metavar="PATH", help="write all rows and maps to a new folder, or PATH.zip, while it runs")
    add("--record-failed", metavar="WHAT", help="where that cannot go on (a full disk): continue, or stop the session")
    add("--command", metavar="COMMAND", help="start a command, quoted, follow it, and stop when it ends")
    add(
        "--max-cost",
        metavar="SHARE",
        help="the guard ends a session that takes more than this share of all CPUs over 5 s; without it 25%%",
    )
    add("--max-rate", metavar="N", help="it also ends one with more than N events a second, such as 20000, over 5 s")
    add("--max-memory", metavar="SIZE", help="and one that takes more memory in the kernel, such as 512M")
    add("--no-guard", action="store_true", help="no limits")


def options_of(parsed: argparse.Namespace) -> SessionOptions:
    """Return what a parser with ``add_options`` has parsed; only what was given. ProgramError for no such value."""
    limits = {"--max-cost": parsed.max_cost, "--max-rate": parsed.max_rate, "--max-memory": parsed.max_memory}
    if parsed.no_guard and (limited := [option for option, value in limits.items() if value is not None]):
        raise ProgramError(f"--no-guard sets no limits, and {limited[0]} one: leave out either")
    options = SessionOptions()
    if parsed.cpu:
        options["cpu"] = True
    if parsed.no_guard:
        options["guard"] = False
    if parsed.max_cost is not None:
        options["max_cost"] = parse_share(parsed.max_cost)
    if parsed.max_rate is not None:
        options["max_rate"] = parse_rate(parsed.max_rate)
    if parsed.max_memory is not None:
        options["max_memory"] = parse_size(parsed.max_memory)
    if parsed.keep is not None:
        options["keep"] = parse_size(parsed.keep)
    if parsed.pid is not None:
        options["pid"] = _parse_pid("--pid", parsed.pid)
    if parsed.follow is not None:
        options["follow"] = _parse_pid("--follow", parsed.follow)
    for name in ("name", "missing", "comm", "cgroup", "uid", "command", "record", "record_failed"):
        if getattr(parsed, name, None) is not None:
            options[name] = getattr(parsed, name)
    return options


def seconds_of(parsed: argparse.Namespace) -> float | None:
    """Return the seconds of ``--time``; None where it was not given. ProgramError for anything else."""
    return None if parsed.time is None else parse_duration(parsed.time)


def _parse_pid(option: str, text: str) -> int:
    if not (text.isdecimal() and text.isascii()):
        raise ProgramError(f"{option} takes the number of a process, not {text!r}")
    return int(text)


# --- values -------------------------------------------------------------------------------------------------------

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|min|h)?", re.ASCII)
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "": 1.0}
_SHARE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(%)?", re.ASCII)
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kM])?", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(?:i?b)?|b)?", re.ASCII | re.IGNORECASE)


def parse_duration(text: str) -> float:
    """Return seconds: "10s", "500ms", "2m", "1h", "10". ProgramError for anything else, and for zero."""
    match = _DURATION.fullmatch(text)
    if not match:
        raise ProgramError(f"not a duration: {text!r}", hint="write 10s, 500ms, 2m or 1h")
    seconds = float(match[1]) * _SECONDS[match[2] or ""]
    if seconds <= 0:
        raise ProgramError(f"a duration must be longer than nothing, not {text!r}")
    return seconds


def parse_size(text: str) -> int:
    """Return bytes: "512M", "2G", "100000". ProgramError for anything else, and for zero."""
    match = _SIZE.fullmatch(text)
    size = int(float(match[1]) * 1024 ** " kmgt".index((match[2] or " ").lower())) if match else 0
    if size <= 0:
        raise ProgramError(f"not a size: {text!r}", hint="write 512M or 2G")
    return size


def parse_share(text: str) -> float:
    """Return a share of 1: "25%", "0.25". ProgramError for anything else, for zero, and for more than 1."""
    match = _SHARE.fullmatch(text)
    share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < share <= 1:
        hint = f"write {text}%" if match and not match[2] and 1 < share <= 100 else "write 25% or 0.25"
        raise ProgramError(f"not a share of all CPUs: {text!r}", hint=hint)
    return share


def parse_rate(text: str) -> float:
    """Return events a second: "5000", "20k", "1.5M". ProgramError for anything else, and for zero."""
    match = _RATE.fullmatch(text)
    rate = float(match[1]) * {"k": 1e3, "M": 1e6}.get(match[2], 1.0) if match else 0.0
    if not rate:
        raise ProgramError(f"not a number of events a second: {text!r}", hint="write 5000, 20k or 1M")
    return rate
