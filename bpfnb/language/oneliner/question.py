"""What a one-liner asks, parsed: verb, probes, expressions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bpfnb.errors import ProgramError, near_or_all
from bpfnb.language.oneliner.expressions import Expression, parse
from bpfnb.language.probes import parse_probe

__all__ = ["MAX_BINS", "MAX_COLUMNS", "VERBS", "Bins", "Column", "Names", "Question", "Verb", "ask", "identifier"]

Verb = Literal["count", "stats", "hist", "latency", "rows", "stacks"]
VERBS: tuple[Verb, ...] = ("count", "stats", "hist", "latency", "rows", "stacks")
Names = str | Sequence[str] | Mapping[str, str] | None
MAX_BINS = 10_000
MAX_COLUMNS = 16


@dataclass(frozen=True)
class Column:
    """A column of the result. ``name``: an expression without a name is called as it is written."""

    name: str
    expression: Expression


@dataclass(frozen=True)
class Bins:
    """Linear buckets: from ``low`` to below ``high``, each ``step`` wide; one below and one above them all."""

    low: int
    high: int
    step: int

    @property
    def count(self) -> int:
        return -(-(self.high - self.low) // self.step)


@dataclass(frozen=True)
class Question:
    """A one-liner. ``columns``: those of ``by``, or the rows'. ``bins``: None where buckets are powers of two."""

    verb: Verb
    probes: tuple[str, ...]
    columns: tuple[Column, ...] = ()
    where: Expression | None = None
    value: Expression | None = None
    bins: Bins | None = None
    kernel: bool = True
    user: bool = True

    def expressions(self) -> tuple[Expression, ...]:
        """Return all expressions."""
        found = (self.where, self.value, *(column.expression for column in self.columns))
        return tuple(expression for expression in found if expression)

    @property
    def paths(self) -> tuple[tuple[str, ...], ...]:
        """Return the paths of members that are used, without "args"."""
        found = (path for expression in self.expressions() for path in expression.paths())
        plain = (path[1:] if path[0] == "args" else path for path in found)
        return tuple(dict.fromkeys(path for path in plain if len(path) > 1))


def ask(
    verb: Verb,
    probe: str | Sequence[str],
    *,
    value: str | None = None,
    columns: Names = None,
    where: str | None = None,
    kind: str = "log2",
    bins: Sequence[int] | None = None,
    kernel: bool = True,
    user: bool = True,
) -> Question:
    """Parse what is asked. ProgramError for what cannot be meant; nothing is looked up."""
    probes = [probe] if isinstance(probe, str) else list(probe)
    if not probes or not all(isinstance(text, str) for text in probes):
        raise ProgramError(f"{verb} takes a probe or several, such as 'syscall:openat', not {probe!r}")
    if verb in ("stats", "hist") and value is None:
        raise ProgramError(f"{verb} takes a value: {verb}({probes[0]!r}, 'retval')")
    if verb == "stacks" and not (kernel or user):
        raise ProgramError("stacks are the kernel's, the process's, or both: kernel and user are both False")
    return Question(
        verb,
        tuple(dict.fromkeys(map(_plain, probes))),
        _columns(columns, "column" if verb == "rows" else "by"),
        parse(where, "where") if where is not None else None,
        parse(value, "value") if value is not None else None,
        _bins(kind, bins),
        bool(kernel),
        bool(user),
    )


def _plain(text: str) -> str:
    """Return a probe in its normal form, "kind:target"."""
    return ":".join(parse_probe(text))


def _columns(names: Names, what: str) -> tuple[Column, ...]:
    if names is None:
        return ()
    if isinstance(names, str):
        pairs = [(names, names)]
    elif isinstance(names, Mapping):
        pairs = list(names.items())
    elif isinstance(names, Sequence):
        pairs = [(text, text) for text in names]
    else:
        raise ProgramError(f"{what} is a name, a list of names, or {{column: expression}}, not {names!r}")
    if len(pairs) > MAX_COLUMNS:
        raise ProgramError(f"{len(pairs)} columns: at most {MAX_COLUMNS} can be told apart by")
    found: dict[str, Column] = {}
    for name, text in pairs:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise ProgramError(f"{what}: not a column's name: {name!r}")
        column = Column(name.strip(), parse(text, what))
        found.setdefault(column.name, column)
    return tuple(found.values())


def _bins(kind: str, bins: Sequence[int] | None) -> Bins | None:
    if kind not in ("log2", "linear"):
        raise ProgramError(f"no histogram is {kind!r}{near_or_all(kind, ['log2', 'linear'])}")
    if kind == "log2":
        if bins is not None:
            raise ProgramError("bins are for kind='linear': powers of two are where they are")
        return None
    hint = "write bins=(0, 1000, 10): from 0 to below 1000 in steps of 10"
    if not isinstance(bins, Sequence) or isinstance(bins, str) or len(bins) != 3:
        raise ProgramError(f"kind='linear' takes bins=(low, high, step), not {bins!r}", hint=hint)
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in bins):
        raise ProgramError(f"bins are whole numbers, not {bins!r}", hint=hint)
    low, high, step = bins
    if not (-(1 << 62) <= low < high <= 1 << 62) or step <= 0:
        raise ProgramError(f"bins rise from low to high in steps above 0, not {tuple(bins)!r}", hint=hint)
    made = Bins(low, high, step)
    if made.count > MAX_BINS:
        raise ProgramError(f"bins={tuple(bins)!r} are {made.count:,} buckets: at most {MAX_BINS:,}")
    return made


def identifier(name: str) -> str:
    """Return a name of C's that looks like this one; "" where none does."""
    slug = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
    return slug if re.fullmatch(r"[A-Za-z_]\w{0,40}", slug, re.ASCII) else ""
