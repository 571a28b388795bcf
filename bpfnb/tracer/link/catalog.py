"""Which probes this kernel, or a program, offers by name."""

from __future__ import annotations

import fnmatch

from bpfnb.language.probes import KINDS, Probe
from bpfnb.tracer.kernel import capabilities, tracefs
from bpfnb.tracer.link.attach import has_kprobes
from bpfnb.tracer.link.uprobe import open_target
from bpfnb.tracer.link.usdt import split_target
from bpfnb.tracer.symbols.elf import function_names

__all__ = ["find"]

_ENTER = "syscalls:sys_enter_"


def find(pattern: str, limit: int, folder: str = "") -> tuple[tuple[str, ...], int]:
    """Up to ``limit`` probes whose name matches a shell pattern, or contains it where it has no wildcard; and how
    many more there are.

    usdt:PATH:PATTERN, uprobe:PATH:PATTERN and uretprobe:PATH:PATTERN are those of a file, else of the kernel.
    ``folder``: where relative paths begin. AttachError when there is no such file.
    """
    kind, _, rest = pattern.partition(":")
    if kind in ("usdt", "uprobe", "uretprobe") and ":" in rest:
        matching = _in_file(kind, rest, pattern, folder)
    else:
        matching = fnmatch.filter(_names(), _wild(pattern))
    return tuple(matching[:limit]), max(len(matching) - limit, 0)


def _wild(pattern: str) -> str:
    return pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"


def _in_file(kind: str, rest: str, pattern: str, folder: str) -> list[str]:
    path, _, name = rest.rpartition(":")
    if kind == "usdt":
        path, provider, name = split_target(rest)
        name = f"{provider}:{name}" if provider else name
    with open_target(Probe(kind, rest, "", pattern, 0), path, folder) as target:
        if kind != "usdt":
            known = set(function_names(target.elf, target.path.encode(), capabilities.with_sys_ptrace))
            return [f"{kind}:{path}:{found}" for found in sorted(fnmatch.filter(known, _wild(name)))]
        labels = sorted({f"{note.provider}:{note.name}" for note in target.elf.usdt()})
    whole = _wild(name) if ":" in name else f"*:{_wild(name)}"
    return [f"{kind}:{path}:{label}" for label in fnmatch.filter(labels, whole)]


def _names() -> list[str]:
    tracepoints = tracefs.tracepoints()
    names = [f"tracepoint:{name}" for name in tracepoints]
    syscalls = [name.removeprefix(_ENTER) for name in tracepoints if name.startswith(_ENTER)]
    names += [f"{kind}:{name}" for name in syscalls for kind in ("syscall", "sysret")]
    if has_kprobes():
        functions = (tracefs.root() / "available_filter_functions").read_text().splitlines()
        names += [f"kprobe:{line.split()[0]}" for line in functions if line]
    names += [f"software:{event}" for event in KINDS["software"].events]
    return sorted(names)
