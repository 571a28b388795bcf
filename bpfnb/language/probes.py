"""Kinds of probe: how each is written and parsed, one row a kind.

    KINDS                the rows, by name
    parse_probe(text)    "t:sched:sched_switch" -> ("tracepoint", "sched:sched_switch")
                         "kprobe:tcp_*" -> ("kprobe", "tcp_*"), a pattern: many probes
    split_attach(text)   "syscall:clone=hello" -> ("syscall:clone", "hello")

In a pattern "*" stands for any text, "?" for a letter, "[a-z]" for one of several. The tracer finds what matches.

How a kind is loaded, attached and listed is the tracer's table, in bpfnb/tracer/link; nothing here looks at the kernel.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import msgspec

from bpfnb.errors import ProgramError, did_you_mean

__all__ = [
    "KINDS",
    "SYSCALL_ENTRIES",
    "Kind",
    "Probe",
    "named_by_function",
    "near",
    "parse_probe",
    "split_attach",
    "split_symbol",
    "split_usdt",
]

# How the tracer attaches a probe, where that is not each by itself in its kind's own way (link/many).
Way = Literal["", "apart", "tracepoint", "raw_syscalls", "multi"]


class Probe(msgspec.Struct, frozen=True):
    """One attachment, or a pattern of several. ``requested``: as the user wrote it. ``line``: of the function, 0 where
    it was not found. ``asked``: the line of the PROBE(...) that asks for it, 0 where none does.

    The rest is the tracer's. It makes a probe of each that matches a pattern: a ``member``. ``optional``: where it
    cannot be attached, the others are. ``note``: what to say of it. ``number``: what bpfnb_probe gives, where that is
    told by a cookie, else 0.
    """

    kind: str
    target: str
    function: str
    requested: str
    line: int
    asked: int = 0
    way: Way = ""
    member: bool = False
    optional: bool = False
    note: str = ""
    number: int = 0

    @property
    def is_pattern(self) -> bool:
        """Whether it stands for all probes that match it."""
        return KINDS[self.kind].has_wildcard(self.target)

    @property
    def name(self) -> str:
        """What it is called: its kind in full, and its target."""
        return f"{self.kind}:{self.target}"

    @property
    def label(self) -> str:
        """What errors call it."""
        return f"{self.name} (of {self.requested})" if self.member else self.requested


_TargetParser = Callable[["Kind", str, str], tuple[str, str]]  # the row, what follows the kind, the text as written


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of probe.

    ``shape``, ``examples``: the probe's form and instances of it, for error messages. ``parse_target`` checks what
    follows the kind and returns kind and target in their normal form; it raises ProgramError. ``aliases``: other names
    of the kind. ``takes_offset``: a function's name may be followed by "+OFFSET". ``on_syscall``: the kind that a probe
    on a system call's entry function becomes. ``events``: the names that a target may have, in the order of the
    kernel's enum, and other names for each.

    ``in_file``: the target begins with a file's path. ``in_task``: programs run on behalf of a task, with interrupts
    enabled. ``reads_kernel``: programs read the kernel's memory by its own types, without helpers.

    ``when``: a program runs before or after a function's body, or at another event. ``arguments``: where a program's
    parameters after the context come from: the "registers" that the context holds (bcc reads them), those of a
    "syscall" (rewrite.py reads them), "none" where the context has none; "" where nothing is checked.

    ``name_of``: the part of a target that may have wildcards; "" where none may.

    ``function_prefix``: a function with such a name is attached without being asked for. ``target_of_name`` makes the
    target of the rest of that name; "" where it is none. ``contexts``: words of a context's type that make the first
    example a probe the function can be attached to.
    """

    name: str
    shape: str
    examples: tuple[str, ...]
    parse_target: _TargetParser
    aliases: tuple[str, ...] = ()
    takes_offset: bool = False
    on_syscall: str = ""
    events: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    in_file: bool = False
    in_task: bool = False
    reads_kernel: bool = False
    when: Literal["entry", "return", "event"] = "event"
    arguments: Literal["registers", "syscall", "none", ""] = ""
    function_prefix: str = ""
    target_of_name: Callable[[str], str] = str
    contexts: tuple[str, ...] = ()
    name_of: Callable[[str], str] = lambda target: ""

    def has_wildcard(self, target: str) -> bool:
        return _is_pattern(self.name_of(target))

    @property
    def usage(self) -> str:
        return f"{self.shape}, such as {' or '.join(self.examples)}"


def split_attach(text: str) -> tuple[str, str]:
    """Split ``syscall:clone=hello`` into ``syscall:clone`` and ``hello``, at the last "=": a path may contain others.

    Raises ProgramError where the text is no such pair.
    """
    probe, equals, function = text.rpartition("=")
    probe, function = probe.strip(), function.strip()
    if not equals or not probe or not _IDENTIFIER.fullmatch(function):
        raise ProgramError(f"not an attachment: {text!r}", hint="write PROBE=FUNCTION, such as syscall:clone=hello")
    return probe, function


def parse_probe(text: str) -> tuple[str, str]:
    """Return the kind in full and the target: ``t:sched:sched_switch`` -> (``tracepoint``, ``sched:sched_switch``).

    bcc's names of functions that attach by themselves are understood too: ``kprobe__vfs_read``. Raises ProgramError.
    """
    text = text.strip()
    word, colon, target = text.partition(":")
    if not colon:
        return named_by_function(text) or _not_a_probe(text)
    kind = KINDS.get(_ALIASES.get(word, word))
    if kind is None:
        names = [*KINDS, *(alias for alias in _ALIASES if len(alias) > 2)]
        raise ProgramError(f"unknown kind of probe {word!r} in {text!r}{near(word, names, 'the kinds are')}")
    if not target or target != target.strip() or any(not c.isprintable() for c in target):
        raise _malformed(kind, text)
    return kind.parse_target(kind, target, text)


def named_by_function(name: str) -> tuple[str, str] | None:
    """Return the probe that a function's name asks for: ``kprobe__vfs_read`` -> (``kprobe``, ``vfs_read``)."""
    for kind in KINDS.values():
        rest = name.removeprefix(kind.function_prefix)
        if rest and rest != name:
            target = kind.target_of_name(rest)
            return kind.parse_target(kind, target, name) if target else None
    return None


def near(word: str, names: Iterable[str], otherwise: str = "") -> str:
    """Return the tail of a message: the names that look like ``word``, else all of them after ``otherwise``."""
    names = sorted(set(names))
    similar = did_you_mean(word, names)
    if similar:
        return f": {similar}"
    return f"; {otherwise} {', '.join(names)}" if otherwise and names else ""


def _not_a_probe(text: str) -> tuple[str, str]:
    hint = "write KIND:TARGET, such as syscall:clone or tracepoint:sched:sched_switch"
    raise ProgramError(f"not a probe: {text!r}", hint=hint)


def _malformed(kind: Kind, text: str) -> ProgramError:
    return ProgramError(f"malformed probe {text!r}", hint=f"write {kind.usage}")


# --- targets ---------------------------------------------------------------------------------------------------------

# Entry functions of syscalls, old (sys_, SyS_) and new. Compat entries (__ia32_compat_sys_) are other functions, called
# by other programs: a probe on one of those stays a kprobe.
_SYSCALL_ENTRY = re.compile(
    r"(?:sys_|SyS_|__x64_sys_|__arm64_sys_|__riscv_sys_|__s390x_sys_|__s390_sys_)([a-z0-9_*?\[\]!-]+)"
)
# System calls whose entry function, and so their tracepoint, is called otherwise than the call: by the kernel's tables
# (arch/x86/entry/syscalls/syscall_64.tbl, scripts/syscall.tbl: "4 common stat sys_newstat"), or by the C library and
# its manual, which leave out the number of the version in use.
SYSCALL_ENTRIES = {
    "stat": "newstat",
    "fstat": "newfstat",
    "lstat": "newlstat",
    "fstatat": "newfstatat",
    "uname": "newuname",
    "umount2": "umount",
    "sendfile": "sendfile64",
    "pread": "pread64",
    "pwrite": "pwrite64",
    "prlimit": "prlimit64",
    "pselect": "pselect6",
    **{f"sig{name}": f"rt_sig{name}" for name in ("action", "pending", "procmask", "return", "suspend", "timedwait")},
}
_SYMBOL = re.compile(r"[A-Za-z_][\w.$]*", re.ASCII)
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_OFFSET = re.compile(r"\+(0[xX][0-9a-fA-F]+|[0-9]+)$")
_POSITIVE = re.compile(r"0*[1-9][0-9]*", re.ASCII)
_USDT_NAME = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)


_PATTERN = re.compile(r"[\w.$*?\[\]!-]+", re.ASCII)


def _is_pattern(name: str) -> bool:
    """Return whether a name is a pattern: "tcp_*". A C++ name may have such characters, too: "app::f(char *)"."""
    return any(c in name for c in "*?[") and "[]" not in name and bool(_PATTERN.fullmatch(name))


def split_usdt(target: str) -> tuple[str, str, str]:
    """Split a USDT probe's target into file, provider or "", and name: a path may have colons of its own."""
    path, _, name = target.rpartition(":")
    shorter, _, provider = path.rpartition(":")
    return (shorter, provider, name) if shorter and "/" not in provider else (path, "", name)


def split_symbol(target: str) -> tuple[str, str, str]:
    """Split a uprobe's target into PATH, SYMBOL and OFFSET ("+0x10", or "").

    A symbol has no colons, except the "::" of C++ and Rust names.
    """
    path, symbol = re.fullmatch(r"(?:(.*[^:]):(?!:(?!:)))?(.*)", target, re.S).groups("")  # type: ignore[union-attr]
    return path, *_split_offset(symbol)


def _split_offset(target: str) -> tuple[str, str]:
    match = _OFFSET.search(target)
    return (target[: match.start()], match.group()) if match else (target, "")


def _kernel_function(kind: Kind, target: str, text: str) -> tuple[str, str]:
    symbol, offset = _split_offset(target)
    name = symbol.removeprefix("vmlinux:")  # bpftrace's name for what is in no module
    if not (_SYMBOL.fullmatch(name) or (_is_pattern(name) and not offset)):
        raise _malformed(kind, text)
    if offset and not kind.takes_offset:
        raise ProgramError(f"{kind.name} takes no offset: {text!r}", hint=f"write {kind.usage}")
    target = name + offset
    entry = _SYSCALL_ENTRY.fullmatch(target)
    if entry and kind.on_syscall:
        return kind.on_syscall, SYSCALL_ENTRIES.get(entry[1], entry[1])
    return kind.name, target


def _syscall(kind: Kind, target: str, text: str) -> tuple[str, str]:
    entry = _SYSCALL_ENTRY.fullmatch(target)
    name = entry[1] if entry else target
    if not (re.fullmatch(r"[a-z_][a-z0-9_]*", name) or (_is_pattern(name) and name == name.lower())):
        raise _malformed(kind, text)
    return kind.name, SYSCALL_ENTRIES.get(name, name)


def _words(count: int) -> _TargetParser:
    def check(kind: Kind, target: str, text: str) -> tuple[str, str]:
        parts = target.split(":")
        wild = kind.has_wildcard(target)
        if len(parts) != count or not all(
            re.fullmatch(r"[\w-]+", part, re.ASCII) or (wild and _PATTERN.fullmatch(part)) for part in parts
        ):
            raise _malformed(kind, text)
        return kind.name, target

    return check


def _user_function(kind: Kind, target: str, text: str) -> tuple[str, str]:
    path, name, offset = split_symbol(target)
    if not path or not name or ("+" in name and "operator+" not in name):
        raise _malformed(kind, text)
    if offset and not kind.takes_offset:
        raise ProgramError(f"{kind.name} takes no offset: {text!r}", hint=f"write {kind.usage}")
    return kind.name, target


def _usdt(kind: Kind, target: str, text: str) -> tuple[str, str]:
    """The provider may be left out; a path may have colons, so which word is what is known where the file is."""
    path, _, name = target.rpartition(":")
    if not path or path.startswith(":") or not (_USDT_NAME.fullmatch(name) or _is_pattern(name)):
        raise _malformed(kind, text)
    return kind.name, target


def _profile(kind: Kind, target: str, text: str) -> tuple[str, str]:
    unit, colon, count = target.rpartition(":")
    if colon and unit not in ("hz", "s", "ms", "us"):
        raise ProgramError(f"unknown unit {unit!r} in {text!r}", hint=f"write {kind.usage}")
    number = _positive(count, kind, text)
    return kind.name, (number if unit in ("", "hz") else f"{unit}:{number}")


def _event(kind: Kind, target: str, text: str) -> tuple[str, str]:
    name, colon, count = target.partition(":")
    full = {alias: event for event, aliases in kind.events.items() for alias in (event, *aliases)}
    if name not in full:
        raise ProgramError(f"unknown {kind.name} event {name!r} in {text!r}{near(name, full, 'the events are')}")
    return kind.name, (f"{full[name]}:{_positive(count, kind, text)}" if colon else full[name])


def _positive(count: str, kind: Kind, text: str) -> str:
    if not _POSITIVE.fullmatch(count):
        raise ProgramError(f"{count!r} is not a positive number in {text!r}", hint=f"write {kind.usage}")
    return count.lstrip("0")


# --- the kinds -------------------------------------------------------------------------------------------------------


def _whole(target: str) -> str:
    return target


def _joined(target: str) -> str:
    return target.replace(":", ".")


def _of_symbol(target: str) -> str:
    return split_symbol(target)[1]


def _of_usdt(target: str) -> str:
    return ".".join(split_usdt(target)[1:])


def _of_tracepoint(name: str) -> str:
    category, _, event = name.partition("__")
    return f"{category}:{event}" if category and event else ""


def _of_trampoline(name: str) -> str:
    return name.removeprefix("vmlinux__")  # bcc from 0.27 on names the module as well


# Names of include/uapi/linux/perf_event.h (PERF_COUNT_SW_*, PERF_COUNT_HW_*) as perf(1) spells them, and bpftrace's
# other names for them. A probe's target always has the former.
_SOFTWARE_EVENTS: dict[str, tuple[str, ...]] = {
    "cpu-clock": ("cpu",),
    "task-clock": (),
    "page-faults": ("faults",),
    "context-switches": ("cs",),
    "cpu-migrations": ("migrations",),
    "minor-faults": (),
    "major-faults": (),
    "alignment-faults": (),
    "emulation-faults": (),
    "dummy": (),
    "bpf-output": (),
    "cgroup-switches": (),
}
_HARDWARE_EVENTS: dict[str, tuple[str, ...]] = {
    "cpu-cycles": ("cycles",),
    "instructions": (),
    "cache-references": (),
    "cache-misses": (),
    "branch-instructions": ("branches",),
    "branch-misses": (),
    "bus-cycles": (),
    "stalled-cycles-frontend": ("frontend-stalls",),
    "stalled-cycles-backend": ("backend-stalls",),
    "ref-cycles": (),
}

# bcc's prefixes of functions' names are those of BPF._trace_autoload; syscall__ is bpfnb's.
_ROWS = (
    Kind(
        "syscall",
        "syscall:NAME",
        ("syscall:clone",),
        _syscall,
        in_task=True,
        when="entry",
        arguments="syscall",
        function_prefix="syscall__",
        contexts=("pt_regs", "void"),
        name_of=_whole,
    ),
    Kind(
        "sysret",
        "sysret:NAME",
        ("sysret:clone",),
        _syscall,
        in_task=True,
        when="return",
        arguments="syscall",
        name_of=_whole,
    ),
    Kind(
        "kprobe",
        "kprobe:FUNCTION or kprobe:FUNCTION+OFFSET",
        ("kprobe:vfs_read",),
        _kernel_function,
        aliases=("k",),
        takes_offset=True,
        on_syscall="syscall",
        when="entry",
        arguments="registers",
        function_prefix="kprobe__",
        name_of=_whole,
    ),
    Kind(
        "kretprobe",
        "kretprobe:FUNCTION",
        ("kretprobe:vfs_read",),
        _kernel_function,
        aliases=("kr",),
        on_syscall="sysret",
        when="return",
        arguments="registers",
        function_prefix="kretprobe__",
        name_of=_whole,
    ),
    Kind(
        "fentry",
        "fentry:FUNCTION",
        ("fentry:vfs_read",),
        _kernel_function,
        aliases=("kfunc", "f"),
        reads_kernel=True,
        when="entry",
        function_prefix="kfunc__",
        target_of_name=_of_trampoline,
        name_of=_whole,
    ),
    Kind(
        "fexit",
        "fexit:FUNCTION",
        ("fexit:vfs_read",),
        _kernel_function,
        aliases=("kretfunc", "fr"),
        reads_kernel=True,
        when="return",
        function_prefix="kretfunc__",
        target_of_name=_of_trampoline,
        name_of=_whole,
    ),
    Kind(
        "tracepoint",
        "tracepoint:CATEGORY:NAME",
        ("tracepoint:sched:sched_process_fork",),
        _words(2),
        aliases=("t",),
        arguments="none",
        function_prefix="tracepoint__",
        target_of_name=_of_tracepoint,
        name_of=_joined,
    ),
    Kind(
        "rawtracepoint",
        "rawtracepoint:NAME",
        ("rawtracepoint:sched_switch",),
        _words(1),
        aliases=("rt",),
        arguments="none",
        function_prefix="raw_tracepoint__",
        contexts=("bpf_raw_tracepoint_args",),
        name_of=_whole,
    ),
    Kind(
        "uprobe",
        "uprobe:PATH:SYMBOL, uprobe:PATH:SYMBOL+OFFSET or uprobe:PATH:0xADDR",
        ("uprobe:/bin/bash:readline",),
        _user_function,
        aliases=("u",),
        takes_offset=True,
        in_file=True,
        in_task=True,
        when="entry",
        arguments="registers",
        name_of=_of_symbol,
    ),
    Kind(
        "uretprobe",
        "uretprobe:PATH:SYMBOL",
        ("uretprobe:/bin/bash:readline",),
        _user_function,
        aliases=("ur",),
        in_file=True,
        in_task=True,
        when="return",
        arguments="registers",
        name_of=_of_symbol,
    ),
    Kind(
        "usdt",
        "usdt:PATH:PROVIDER:NAME or usdt:PATH:NAME",
        ("usdt:/usr/bin/python3:python:gc__start",),
        _usdt,
        aliases=("U",),
        in_file=True,
        in_task=True,
        name_of=_of_usdt,
    ),
    Kind(
        "profile",
        "profile:HERTZ, or profile:UNIT:N with hz, s, ms or us",
        ("profile:99", "profile:ms:10"),
        _profile,
        aliases=("p",),
        contexts=("bpf_perf_event_data",),
    ),
    Kind(
        "software",
        "software:EVENT or software:EVENT:COUNT",
        ("software:page-faults:100",),
        _event,
        aliases=("s",),
        events=_SOFTWARE_EVENTS,
    ),
    Kind(
        "hardware",
        "hardware:EVENT or hardware:EVENT:COUNT",
        ("hardware:cache-misses:1000000",),
        _event,
        aliases=("h",),
        events=_HARDWARE_EVENTS,
    ),
    Kind("lsm", "lsm:HOOK", ("lsm:file_open",), _words(1), reads_kernel=True, function_prefix="lsm__"),
)
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in _ROWS}
_ALIASES = {alias: kind.name for kind in _ROWS for alias in kind.aliases}
