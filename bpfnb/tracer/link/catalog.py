"""Which probes this kernel, or a program, offers by name."""

from __future__ import annotations

import fnmatch

from bpfnb.tracer.link.kinds import KINDS
from bpfnb.tracer.link.uprobe import as_pattern

__all__ = ["find"]


def find(pattern: str, limit: int, folder: str = "") -> tuple[tuple[str, ...], int]:
    """Return up to ``limit`` probes whose name matches a shell pattern, or contains it where it has no wildcard.

    The second is how many more there are.

    usdt:PATH:PATTERN, uprobe:PATH:PATTERN and uretprobe:PATH:PATTERN are those of a file, else of the kernel.
    ``folder``: where relative paths begin. AttachError when there is no such file.
    """
    kind, _, rest = pattern.partition(":")
    in_file = KINDS[kind].names_in_file if kind in KINDS and ":" in rest else None
    matching = in_file(kind, rest, folder, pattern) if in_file else fnmatch.filter(_names(), as_pattern(pattern))
    return tuple(matching[:limit]), max(len(matching) - limit, 0)


def _names() -> list[str]:
    return sorted(f"{name}:{target}" for name, kind in KINDS.items() if kind.names for target in kind.names())
