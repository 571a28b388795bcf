"""Read and enforce the administrator's policy, /etc/bpfnb/policy.conf: who may trace what.

The path is fixed: no environment variable and no option of the notebook's changes it. The file and its folder must
belong to root and be writable by nobody else. Lines are ``key = value``, in sections; ``#`` begins a comment line::

    # for users in no other section
    [default]
    trace = no

    # or [user NAME]; numbers work too
    [group students]
    trace = yes
    probes = syscall sysret uprobe uretprobe usdt
    processes = own

The first section that names the user or one of the user's groups applies. Keys that it lacks are taken from [default],
and keys that this lacks are as without a file. [default] does not apply to root; [user root] does. A file with any
mistake lets nobody trace, root included, since it is not known what was meant.

The file is INI, read here. Not TOML: Python 3.10 has no reader for it. Not configparser: it does not report the line of
a mistake, and it has interpolation and continued lines, which are not wanted here.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bpfnb.errors import PrivilegeError, SetupError, did_you_mean
from bpfnb.language.probes import KINDS
from bpfnb.language.program import Program
from bpfnb.language.vocabulary import PINS
from bpfnb.protocol.messages import Check, Limits
from bpfnb.tracer.access.audit import AuditRules, unwritable
from bpfnb.tracer.access.confine import Confinement, guard_for
from bpfnb.tracer.access.peer import Peer

__all__ = ["AUDIT_KEYS", "KEYS", "PATH", "AuditRules", "Policy", "Rules", "read_owned", "spoken_time"]

PATH = Path("/etc/bpfnb/policy.conf")
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Rules:
    """What one user may do.

    ``probes``: kinds of probes; None for all. ``own_files``: uprobes and USDT probes only in files that belong to the
    user. ``own_processes``: programs do nothing outside the user's processes (confine.py). ``kernel_memory``: programs
    may read the kernel's memory, which has everybody's data. ``interfere``: programs may send signals, change what
    functions return, and decide as a security module. ``pinned``: maps may be pinned, and pinned maps opened.

    The rest are limits of a session, None for no limit: ``max_time`` in seconds, and the guard's limits, whatever the
    notebook asks (``capped``): ``max_memory`` in bytes, ``max_rate`` in events a second, ``max_cost`` as a share of all
    CPUs.
    """

    trace: bool = True
    probes: frozenset[str] | None = None
    own_files: bool = False
    own_processes: bool = False
    kernel_memory: bool = True
    stacks: bool = True
    interfere: bool = True
    pinned: bool = True
    max_time: float | None = None
    max_memory: float | None = None
    max_rate: float | None = None
    max_cost: float | None = None


# Users of the service may observe, not interfere. Tracers that root or sudo starts may do what root may.
_SERVICE = Rules(interfere=False, pinned=False)
_SERVICE_AUDIT = AuditRules("journal")


class Policy:
    """The rules for the user at the other end of the socket.

    ``service``: the tracer was started for any user who may connect, not by one who may become root. Raises SetupError
    for a file with a mistake.
    """

    def __init__(self, peer: Peer, *, service: bool = False, path: Path = PATH) -> None:
        self.peer = peer
        self.path = path
        rules, audit = (_SERVICE, _SERVICE_AUDIT) if service else (Rules(), AuditRules())
        sections = _parse(text, path) if (text := read_owned(path)) is not None else []
        self.exists = text is not None
        self._section, given = _chosen(sections, peer)
        self.rules = replace(rules, **given)
        self.audit = replace(audit, **next((s.values for s in sections if s.kind == "audit"), {}))

    @cached_property
    def confinement(self) -> Confinement:
        """The rules for programs' instructions. Raises UnsupportedError where this kernel cannot enforce them."""
        rules = self.rules
        guard = guard_for(self.peer.uid, self.peer.gid) if rules.own_processes else None
        return Confinement(guard, rules.kernel_memory, rules.stacks, rules.interfere)

    def check_load(self, program: Program) -> None:
        """Raise PrivilegeError where a cell's text or probes ask for something that is not allowed."""
        rules = self.rules
        if not rules.trace:
            raise self._refused("tracing")
        for probe in program.probes:
            if rules.probes is not None and probe.kind not in rules.probes:
                raise self._refused(f"{probe.kind} probes ({probe.requested})", probe.line)
            if probe.kind == "lsm" and not rules.interfere:
                raise self._refused(f"lsm probes ({probe.requested}), which can forbid things to others", probe.line)
            if KINDS[probe.kind].reads_kernel and not (rules.kernel_memory and not rules.own_processes):
                why = "which read the kernel's memory" if not rules.kernel_memory else "which cannot be confined"
                raise self._refused(f"{probe.kind} probes ({probe.requested}), {why}", probe.line)
        if not rules.pinned:
            for declared in program.maps:
                if declared.is_pinned:
                    raise self._refused(f"pinned maps ({declared.name})", declared.line)
            if any(PINS.search(text) for text in (program.source, *program.cflags)):
                raise self._refused("pinned maps")

    def capped(self, limits: Limits) -> Limits:
        """Return the guard's limits for a session: the lower of the user's and the policy's."""
        rules = self.rules
        memory = _smaller(limits.memory, rules.max_memory)
        return Limits(
            _smaller(limits.cost, rules.max_cost),
            _smaller(limits.rate, rules.max_rate),
            None if memory is None else int(memory),
            limits.asked or rules.max_cost is not None,
        )

    def check_file(self, owner: int, path: str) -> None:
        """Raise PrivilegeError where a file's probes may not be attached or listed."""
        if self.rules.own_files and owner != self.peer.uid:
            raise self._refused(f"probes in files of others ({path})")

    def refused_instruction(self, what: str, line: int) -> PrivilegeError:
        """Return the error for what confine.forbidden found."""
        return self._refused(f"programs that {what}", line)

    def check_symbols(self, pid: int) -> None:
        """Raise PrivilegeError where the user may not see the names of a process's functions, or the kernel's (0)."""
        if not self.rules.stacks:
            raise self._refused("stacks")
        if pid and self.rules.own_processes and _owner(pid) not in (None, self.peer.uid):
            raise self._refused(f"the names of functions of others' processes ({pid})")

    def check(self) -> Check:
        """Return the doctor's row: the rules for the user who asks."""
        who = f"user {_user_name(self.peer.uid)}"
        audit = f"; {_logged(self.audit)}" if self.audit.to else ""
        if not self.exists:
            found = f"there is no {self.path}: {who} has {_summary(self.rules)}{audit}"
        else:
            source = f"{self._section} of {self.path}" if self._section else f"{self.path} has no section for them"
            found = f"{who}: {_summary(self.rules)} ({source}){audit}"
        return Check("policy", "info", self.rules.trace, found)

    def _refused(self, what: str, line: int = 0) -> PrivilegeError:
        holds = f"{self._section} of {self.path}" if self._section else "the way this tracer was started"
        return PrivilegeError(
            f"the administrator does not allow user {_user_name(self.peer.uid)} {what}: {holds} says so",
            line=line or None,
        )


# --- the file -----------------------------------------------------------------------------------------------------


def read_owned(path: Path) -> str | None:
    """Read a file that only root can have written. Return None where there is none.

    Raise SetupError where other users could have written it.
    """
    try:
        folder = path.parent.stat()
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}; nobody can trace until it can") from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise SetupError(f"{path} is not a file; nobody can trace until it is one")
        for name, status in ((path, found), (path.parent, folder)):
            if status.st_uid or status.st_mode & 0o022:
                hint = f"as root: chown root:root {name}; chmod go-w {name}"
                raise SetupError(
                    f"users other than root may write to {name}; nobody can trace until that is fixed", hint=hint
                )
        data = os.read(fd, _MAX_BYTES)
        if len(data) == _MAX_BYTES:
            raise SetupError(f"{path} is larger than {_MAX_BYTES:,} bytes; nobody can trace until it is smaller")
        return data.decode()
    except UnicodeDecodeError:
        raise SetupError(f"{path} is not UTF-8 text; nobody can trace until that is fixed") from None
    finally:
        os.close(fd)


@dataclass
class _Section:
    """A section. ``kind``: "default", "audit", "user" or "group". ``number``: the user's or group's, else -1."""

    name: str
    kind: str
    number: int = -1
    values: dict[str, Any] = field(default_factory=dict)


def _chosen(sections: list[_Section], peer: Peer) -> tuple[str, Mapping[str, Any]]:
    """Return the name of the section that applies to a user, and its values with those that [default] adds."""
    default = next((s for s in sections if s.kind == "default"), _Section("", "default"))
    if peer.uid == 0:
        default = _Section("", "default")
    for section in sections:
        named = section.kind == "user" and section.number == peer.uid
        if named or (section.kind == "group" and peer.in_group(section.number)):
            more = default.values.keys() - section.values.keys()
            return f"[{section.name}]{' with [default]' if more else ''}", default.values | section.values
    return default.name and f"[{default.name}]", default.values


def _parse(text: str, path: Path) -> list[_Section]:
    sections: list[_Section] = []
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        try:
            if not line or line.startswith("#"):
                continue
            if line.startswith("["):
                sections.append(_section(line, sections))
            else:
                _add(line, sections)
        except ValueError as error:
            raise SetupError(f"{path}, line {number}: {error}; nobody can trace until that is fixed") from None
    return sections


def _section(line: str, before: list[_Section]) -> _Section:
    found = re.fullmatch(r"\[(default|audit|(?P<kind>user|group) (?P<who>\S+))\]", line)
    if not found:
        raise ValueError(f"not a section: {line!r}; there are [default], [user NAME], [group NAME] and [audit]")
    if any(section.name == found[1] for section in before):
        raise ValueError(f"there is a [{found[1]}] before")
    if not found["kind"]:
        return _Section(found[1], found[1])
    return _Section(found[1], found["kind"], _number(found["kind"], found["who"]))


def _number(kind: str, name: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ValueError(f"there is no {kind} {name!r}") from None


def _add(line: str, sections: list[_Section]) -> None:
    key, equals, value = (part.strip() for part in line.partition("="))
    if not equals:
        raise ValueError(f"neither a [section] nor key = value: {line!r}")
    if not sections:
        raise ValueError(f"{key!r} is in no section")
    section = sections[-1]
    keys = AUDIT_KEYS if section.kind == "audit" else KEYS
    if key not in keys:
        close = did_you_mean(key, keys)
        raise ValueError(f"unknown key {key!r} in [{section.name}]; " + (close or f"there are {', '.join(keys)}"))
    name, read = keys[key]
    if name in section.values:
        raise ValueError(f"{key!r} is given twice in [{section.name}]")
    section.values[name] = read(value)


# --- values -------------------------------------------------------------------------------------------------------


def _yes(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError(f"write yes or no, not {text!r}")
    return text == "yes"


def _own(text: str) -> bool:
    if text not in ("own", "any"):
        raise ValueError(f"write own or any, not {text!r}")
    return text == "own"


def _kinds(text: str) -> frozenset[str] | None:
    if text == "all":
        return None
    names = text.replace(",", " ").split()
    for name in names:
        if name not in KINDS:
            raise ValueError(f"{name!r} is not a kind of probe; there are {', '.join(KINDS)}, and all")
    if not names:
        raise ValueError("name kinds of probes, or all; trace = no allows none")
    return frozenset(names)


def _amount(units: Mapping[str, float], example: str, most: float = float("inf")) -> Callable[[str], float | None]:
    def read(text: str) -> float | None:
        if text == "unlimited":
            return None
        found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([A-Za-z%]*)", text, re.ASCII)
        value = float(found[1]) * units[found[2]] if found and found[2] in units else 0.0
        if not 0 < value <= most:
            raise ValueError(f"write {example}, or unlimited, not {text!r}")
        return value

    return read


def _audit_place(text: str) -> str:
    if text == "nowhere":
        return ""
    if text != "journal" and not text.startswith("/"):
        raise ValueError(f"write journal, nowhere, or a file from the root, such as /var/log/bpfnb/audit, not {text!r}")
    return text


_size = _amount({"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}, "512M or 2G")
_rate = _amount({"": 1, "k": 1e3, "M": 1e6}, "100000 or 100k, events a second")
_share = _amount({"%": 0.01}, "25%, of all CPUs", most=1)
_time = _amount({"s": 1, "min": 60, "h": 3600}, "10min, 30s or 2h", most=1e7)

# Keys of the file: the name in Rules, and the function that reads the value.
KEYS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "trace": ("trace", _yes),
    "probes": ("probes", _kinds),
    "files": ("own_files", _own),
    "processes": ("own_processes", _own),
    "kernel_memory": ("kernel_memory", _yes),
    "stacks": ("stacks", _yes),
    "interfere": ("interfere", _yes),
    "pinned": ("pinned", _yes),
    "max_time": ("max_time", _time),
    "max_memory": ("max_memory", _size),
    "max_rate": ("max_rate", _rate),
    "max_cost": ("max_cost", _share),
}
AUDIT_KEYS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "to": ("to", _audit_place),
    "required": ("required", _yes),
    "source": ("source", _yes),
}


# --- in words -----------------------------------------------------------------------------------------------------


def _summary(rules: Rules) -> str:
    if not rules.trace:
        return "may not trace"
    return ", ".join(_limits(rules)) or "no limits"


def _limits(rules: Rules) -> Iterator[str]:
    if rules.probes is not None:
        yield f"only {', '.join(kind for kind in KINDS if kind in rules.probes)}"
    words = {
        "own_files": "uprobes in own files only",
        "own_processes": "own processes only",
        "kernel_memory": "no reading of the kernel's memory",
        "stacks": "no stacks",
        "interfere": "no signals, overrides or lsm",
        "pinned": "no pinned maps",
    }
    unlimited = Rules()
    yield from (text for name, text in words.items() if getattr(rules, name) != getattr(unlimited, name))
    if rules.max_time is not None:
        yield f"sessions of at most {spoken_time(rules.max_time)}"
    if rules.max_memory is not None:
        yield f"at most {rules.max_memory / (1 << 20):g} MiB in the kernel"
    if rules.max_rate is not None:
        yield f"at most {rules.max_rate:,g} events a second"
    if rules.max_cost is not None:
        yield f"at most {rules.max_cost * 100:g} % of all CPUs"


def spoken_time(seconds: float) -> str:
    """Return a duration in words: "10 min", "30 s"."""
    return f"{seconds / 60:g} min" if seconds >= 60 and seconds % 60 == 0 else f"{seconds:g} s"


def _logged(audit: AuditRules) -> str:
    place = "the journal" if audit.to == "journal" else audit.to
    if why := unwritable(audit.to):
        return f"sessions cannot be logged in {place}: {why}"
    return f"sessions are logged in {place}"


def _smaller(one: float | None, other: float | None) -> float | None:
    return min((limit for limit in (one, other) if limit is not None), default=None)


def _owner(pid: int) -> int | None:
    """Return a process's user, which is root where it may not be dumped; None where it is gone."""
    try:
        return Path("/proc", str(pid)).stat().st_uid
    except OSError:
        return None


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


assert {name for name, _ in KEYS.values()} == {f.name for f in fields(Rules)}
