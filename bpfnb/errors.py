"""Errors bpfnb raises.

    BpfnbError
     +- ProgramError      (also ValueError)       the cell or a call asks for something that cannot be
     |   +- MapError                              a map whose entries were not read before its session was gone
     |   +- UnknownName   (also KeyError)         an output or a map that a session does not have
     +- CompileError                              clang refused the C
     +- VerifierError                             the kernel's verifier refused the program
     +- AttachError                               the program is fine, the probe is not
     +- PrivilegeError    (also PermissionError)  no rights to trace
     +- SetupError                                something the tracer needs is not installed or mounted
     +- UnsupportedError                          this kernel, or this bpfnb, cannot do it
     +- TracerDied                                the tracer process is gone
     +- InternalError                             a bug of ours; carries the tracer's traceback

``str(error)`` is one line. ``error.report()`` is the picture shown in a notebook instead of a Python
traceback, which would show our frames for a mistake in the user's cell. ``InternalError`` keeps its
traceback: there the frames are what matters.
"""

from __future__ import annotations

import difflib
import errno
import html
import re
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Literal

import msgspec

with suppress(ImportError):  # where recordings are read, on other systems
    import resource  # now: once there are no descriptors left, nothing can be imported

__all__ = [
    "AttachError",
    "BpfnbError",
    "CompileError",
    "Diagnostic",
    "InternalError",
    "MapError",
    "PrivilegeError",
    "ProgramError",
    "SetupError",
    "TracerDied",
    "UnknownName",
    "UnsupportedError",
    "VerifierError",
    "did_you_mean",
    "few_descriptors",
    "log_lines",
    "near_names",
    "near_or_all",
    "printable",
]


Severity = Literal["error", "warning", "note"]


class Diagnostic(msgspec.Struct, frozen=True):
    """One message of the compiler. ``line`` and ``column`` count from 1, in the cell's own text; 0 is unknown.

    A "note" belongs to the message before it. ``fix``: what clang would put at the column, or "".
    """

    line: int
    column: int
    severity: Severity
    message: str
    fix: str = ""


class BpfnbError(Exception):
    """Base of every error bpfnb raises.

    ``message``: what happened, one line. ``line``, ``column``: where in the cell, counted from 1, or None.
    ``hint``: what to do, only where the cause is certain. ``source``: the cell's text, where there is one.
    """

    def __init__(
        self,
        message: str,
        *,
        line: int | None = None,
        column: int | None = None,
        hint: str | None = None,
        source: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column
        self.hint = hint
        self.source = source

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return where + printable(self.message)

    def report(self) -> list[str]:
        """The lines shown to a person: the message, the place in the cell, the hint."""
        lines = [f"{type(self).__name__}: {self}"]
        lines += excerpt(self.source, self.line, self.column)
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return lines

    def _render_traceback_(self) -> list[str]:
        # IPython calls this on any exception, more than once; it must be pure and return a list. Names and messages
        # come from other people's files: nothing in them may act on a terminal.
        return [printable(line, keep="\t") for line in self.report()]


class ProgramError(BpfnbError, ValueError):
    """The cell, or a call's arguments, asks for something that cannot be."""


class MapError(ProgramError):
    """The entries of a map are not there: it was too large to be read when its session ended. Says how large."""


class UnknownName(ProgramError, KeyError):
    """A session has no output or map of this name. Says which there are."""


class CompileError(BpfnbError):
    """clang refused the C. ``diagnostics``: its messages. ``log``: its whole text, about the text bcc compiled."""

    def __init__(self, message: str, *, diagnostics: Sequence[Diagnostic] = (), log: str = "", **place: Any) -> None:
        super().__init__(message, **place)
        self.diagnostics = tuple(diagnostics)
        self.log = log

    def report(self) -> list[str]:
        """The first error, its notes and the hint, then all else the compiler said."""
        if not self.diagnostics:
            return super().report() + self.log.splitlines()
        groups = _with_notes(self.diagnostics)
        main = next((g for g in groups if (g[0].line, g[0].message) == (self.line or 0, self.message)), [])
        lines = [f"{type(self).__name__}: {self}"]
        lines += _picture(self.source, main)[1:] if main else excerpt(self.source, self.line, self.column)
        lines += [f"hint: {self.hint}"] if self.hint else []
        return lines + [text for group in groups if group is not main for text in _picture(self.source, group)]


class VerifierError(BpfnbError):
    """The kernel's verifier refused the program.

    ``kind``: the class of the mistake, such as "unchecked map lookup", where known, else "". ``summary``: the
    verifier's reason, one line. ``explanation``: what that means here, and what the register at fault holds, where
    known, else "". ``log``: all the verifier said. ``diagnostics``: what clang had warned of.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str = "",
        summary: str = "",
        log: str = "",
        explanation: str = "",
        diagnostics: Sequence[Diagnostic] = (),
        **place: Any,
    ) -> None:
        super().__init__(message, **place)
        self.kind = kind
        self.summary = summary
        self.log = log
        self.explanation = explanation
        self.diagnostics = tuple(diagnostics)

    def report(self) -> list[str]:
        lines = [f"{type(self).__name__}: {self}", *excerpt(self.source, self.line, self.column)]
        lines += [self.explanation] if self.explanation else []
        lines += [f"hint: {self.hint}"] if self.hint else []
        for group in _with_notes(self.diagnostics):
            lines += _picture(self.source, group)
        log = log_lines(self.log)
        if len(log) > _TAIL:
            lines.append(f"the end of the verifier's log; all {len(log):,} lines are in error.log:")
        return lines + ["  " + text for text in log[-_TAIL:]]


class AttachError(BpfnbError):
    """A probe could not be attached. ``probe``: as asked for. ``errno``: the kernel's answer, or 0."""

    def __init__(self, message: str, *, probe: str = "", errno: int = 0, **place: Any) -> None:
        super().__init__(message, **place)
        self.probe = probe
        self.errno = errno


class PrivilegeError(BpfnbError, PermissionError):
    """No rights to trace, and how to get them."""


class SetupError(BpfnbError):
    """Something the tracer needs (bcc, tracefs, BTF) is missing on this machine."""


class UnsupportedError(BpfnbError):
    """This kernel, or this version of bpfnb, cannot do what was asked."""


class TracerDied(BpfnbError):
    """The tracer process is gone. ``status``: its exit status. ``output``: the last it said."""

    def __init__(self, message: str, *, status: int | None = None, output: str = "", **place: Any) -> None:
        super().__init__(message, **place)
        self.status = status
        self.output = output

    def report(self) -> list[str]:
        return super().report() + ["  " + text for text in self.output.splitlines()[-8:]]


class InternalError(BpfnbError):
    """A bug of bpfnb's own. ``remote_traceback``: where it happened in the tracer process."""

    def __init__(self, message: str, *, remote_traceback: str = "", **place: Any) -> None:
        super().__init__(message, **place)
        self.remote_traceback = remote_traceback

    def report(self) -> list[str]:
        return super().report() + self.remote_traceback.splitlines()


# --- pictures -----------------------------------------------------------------------------------------------------


def log_lines(log: str) -> list[str]:
    """Return the lines of a log, without bcc's advice at its end: what is counted and shown, wherever that is."""
    log = log.partition("\nHINT:")[0].rstrip()
    return log.split("\n") if log else []


_NEWLINE = re.compile(r"\r\n|\r|\n")  # what ends a line for clang; for str.splitlines() much more does
_TAIL = 12  # lines of a verifier's log
_WIDEST = 120  # characters of a line in a picture


def few_descriptors(error: BaseException) -> SetupError | None:
    """What to say where an error came of too many open files; None where it did not."""
    if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
        return None
    if error.errno == errno.ENFILE:
        return SetupError("the system's open files are all in use (fs.file-max)")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return SetupError(
        f"too many open files: a process may have {limit}, and all are in use",
        hint="stop other sessions, or raise the limit (ulimit -n) before Jupyter starts",
    )


def excerpt(source: str | None, line: int | None, column: int | None) -> list[str]:
    """The cell's line with its number and a caret under the column; [] when the place is unknown."""
    if not source or not line:
        return []
    lines = _NEWLINE.split(source)
    if line > len(lines):
        return []
    text, column = _cut(lines[line - 1], column or 0)
    picture = [f"{line:5d} | " + printable(text, keep="\t")]
    if column:
        picture.append(" " * 5 + " | " + "".join(_blank(c) for c in text[: column - 1]) + "^")
    return picture


def _cut(text: str, column: int) -> tuple[str, int]:
    """A part of a long line that has the column in it, and the column there."""
    if len(text) <= _WIDEST:
        return text, column
    start = min(max(column - _WIDEST // 2, 0), len(text) - _WIDEST)
    part = text[start : start + _WIDEST]
    before, after = "..." if start else "", "..." if start + _WIDEST < len(text) else ""
    return before + part + after, column and column - start + len(before)


def printable(text: str, keep: str = "") -> str:
    """Text as a terminal or a page may have it: what would act there, or is seen by nobody, as its escape.

    Control characters (``\\x1b``), marks of direction (``\\u202e``), separators of lines, spaces of no width, bytes
    that are no text: whatever str.isprintable() says no to, but for what is to be kept.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)


def escape(text: str) -> str:
    """Return foreign text for HTML, in content and in quoted attributes."""
    return html.escape(printable(text), quote=True)


def _blank(c: str) -> str:
    """As much room as a character takes. A tab stays a tab: so the caret is right whatever a tab's width is."""
    if c == "\t":
        return c
    if not c.isprintable():
        return " " * len(printable(c))
    return "" if unicodedata.combining(c) else "  " if unicodedata.east_asian_width(c) in "WF" else " "


def _with_notes(diagnostics: Sequence[Diagnostic]) -> list[list[Diagnostic]]:
    """Each message with the notes that belong to it."""
    groups: list[list[Diagnostic]] = []
    for d in diagnostics:
        if d.severity == "note" and groups:
            groups[-1].append(d)
        else:
            groups.append([d])
    return groups


def _picture(source: str | None, group: Sequence[Diagnostic]) -> list[str]:
    """A message and its place in the cell; its notes step in, under what they are about."""
    lines: list[str] = []
    for d in group:
        place = f"line {d.line}:{d.column}: " if d.line and d.column else f"line {d.line}: " if d.line else ""
        picture = [f"{place}{d.severity}: {d.message}", *excerpt(source, d.line, d.column)]
        if d.fix and "did you mean" not in d.message:
            picture.append(" " * 5 + f" | clang would put here: {d.fix}")
        lines += [f"    {text}" for text in picture] if d.severity == "note" else picture
    return lines


# --- near names ---------------------------------------------------------------------------------------------------

_AS_GOOD = 0.05  # how much less alike than the best name another may be


def near_names(word: str, names: Iterable[str], least: float = 0.6) -> list[str]:
    """The names that look most like a mistyped one, at most three."""
    known = {name.lower(): name for name in sorted(names, reverse=True) if name != word}
    matcher = difflib.SequenceMatcher(b=word.lower())
    alike: dict[str, float] = {}
    for lower in difflib.get_close_matches(word.lower(), known, n=3, cutoff=least):
        matcher.set_seq1(lower)
        alike[known[lower]] = matcher.ratio()
    return [name for name, ratio in alike.items() if ratio >= max(alike.values()) - _AS_GOOD]


def did_you_mean(word: str, names: Iterable[str], least: float = 0.6) -> str:
    """``did you mean openat or openat2?``: the names that look most like a mistyped one, at most three; else ""."""
    near = near_names(word, names, least)
    return f"did you mean {' or '.join(near)}?" if near else ""


def near_or_all(word: str, names: Iterable[str]) -> str:
    """The tail of a message about a name that is not there: those that look like it, else all there are."""
    known = [str(name) for name in names]
    listed = f"there are {', '.join(known)}" if known else "there is none"
    return f"; {did_you_mean(word, known) or listed}"
