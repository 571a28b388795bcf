"""Which probes this kernel, or a program, offers by name."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator

from bpfnb.errors import AttachError
from bpfnb.language.probes import KINDS as WORDS
from bpfnb.language.probes import Probe
from bpfnb.tracer.link.errors import near, rejection
from bpfnb.tracer.link.kinds import KINDS
from bpfnb.tracer.link.uprobe import as_pattern

__all__ = ["find", "in_full", "kinds_of", "none", "wanted"]

# Kinds in the order they are listed in: first what works on every kernel, and has names that stay.
_ORDER = (
    "syscall", "sysret", "tracepoint", "kprobe", "kretprobe", "fentry", "fexit", "rawtracepoint", "lsm",
    "software", "hardware", "profile", "usdt", "uprobe", "uretprobe",
)  # fmt: skip
assert set(_ORDER) == KINDS.keys()
# Other probes at the same places: they are listed where a pattern names their kind.
_TWINS = frozenset(("kretprobe", "fentry", "fexit", "rawtracepoint"))
_WILDCARD = re.compile(r"[*?\[]")


def find(pattern: str, limit: int, folder: str = "") -> tuple[tuple[str, ...], int]:
    """Return up to ``limit`` probes whose name matches a shell pattern, or contains it where it has no wildcard.

    The second is how many more there are. They come by kind, in the order of ``kinds_of``.

    usdt:PATH:PATTERN, uprobe:PATH:PATTERN and uretprobe:PATH:PATTERN are those of a file, else of the kernel.
    ``folder``: where relative paths begin. AttachError when there is no such file.
    """
    pattern = in_full(pattern)
    kind, _, rest = pattern.partition(":")
    in_file = KINDS[kind].names_in_file if kind in KINDS and ":" in rest else None
    if in_file:
        matching = in_file(kind, rest, folder, pattern)
    else:
        matching = [name for kind in kinds_of(pattern) for name in _names(kind, wanted(pattern))]
    return tuple(matching[:limit]), max(len(matching) - limit, 0)


def in_full(pattern: str) -> str:
    """Return a pattern with its kind's name in place of an alias: "k:vfs_*" is "kprobe:vfs_*"."""
    word, colon, rest = pattern.partition(":")
    return next((f"{name}:{rest}" for name, kind in WORDS.items() if colon and word in kind.aliases), pattern)


def wanted(pattern: str) -> str:
    """Return the shell pattern of whole names that is meant: what has no wildcard is a part of the target."""
    kind, colon, target = in_full(pattern).partition(":")
    return f"{kind}:{as_pattern(target)}" if colon and kind in KINDS else as_pattern(pattern)


def kinds_of(pattern: str) -> Iterator[str]:
    """Yield the kinds that a pattern may match, but of those that see the same only one, unless it is asked for."""
    start = _WILDCARD.split(wanted(pattern), maxsplit=1)[0]
    for kind in _ORDER:
        name = f"{kind}:"
        if (start.startswith(name) or name.startswith(start)) and (start or kind not in _TWINS):
            yield kind


def none(pattern: str) -> AttachError:
    """Return the error for a pattern that nothing matches, with names that look like it."""
    kind, _, target = in_full(pattern).partition(":")
    row = KINDS.get(kind)
    probe = Probe(kind, target, "", pattern, 0)
    if row and row.unavailable and (why := row.unavailable()):
        return rejection(probe, why)
    word = target.replace("*", "").replace("?", "")
    names = row.names() if row and row.names else ()
    # A kernel has 100,000 functions and comparing is slow: a name people mistype starts right.
    hint = near(word, (name for name in names if name[:2] == word[:2]), f"{kind}:")
    return rejection(probe, "no probe matches", hint=hint)


def _names(kind: str, pattern: str) -> list[str]:
    names = KINDS[kind].names
    return sorted(fnmatch.filter((f"{kind}:{target}" for target in names()), pattern)) if names else []
