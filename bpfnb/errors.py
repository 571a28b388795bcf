"""Errors bpfnb raises.

    BpfnbError
     +- ProgramError      (also ValueError)       the cell or a call asks for something that cannot be
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

from collections.abc import Sequence
from typing import Any

import msgspec

__all__ = [
    "AttachError",
    "BpfnbError",
    "CompileError",
    "Diagnostic",
    "InternalError",
    "PrivilegeError",
    "ProgramError",
    "SetupError",
    "TracerDied",
    "UnsupportedError",
    "VerifierError",
]


class Diagnostic(msgspec.Struct, frozen=True):
    """One message of the compiler. ``line`` and ``column`` count from 1, in the cell's own text; 0 is unknown.

    A "note" belongs to the message before it. ``fix``: what clang would put at the column, or "".
    """

    line: int
    column: int
    severity: str  # "error" | "warning" | "note"
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
        return where + self.message

    def report(self) -> list[str]:
        """The lines shown to a person: the message, the place in the cell, the hint."""
        lines = [f"{type(self).__name__}: {self}"]
        lines += excerpt(self.source, self.line, self.column)
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return lines

    def _render_traceback_(self) -> list[str]:
        # IPython calls this on any exception, more than once; it must be pure and return a list.
        return self.report()


class ProgramError(BpfnbError, ValueError):
    """The cell, or a call's arguments, asks for something that cannot be."""


class CompileError(BpfnbError):
    """clang refused the C. ``diagnostics`` has its messages; ``log`` is its whole text, about the text bcc compiled."""

    def __init__(self, message: str, *, diagnostics: Sequence[Diagnostic] = (), log: str = "", **place: Any) -> None:
        super().__init__(message, **place)
        self.diagnostics = tuple(diagnostics)
        self.log = log

    def report(self) -> list[str]:
        if not self.diagnostics:
            return super().report() + self.log.splitlines()
        lines = [f"{type(self).__name__}: {self}"]
        for d in self.diagnostics:
            place = f"line {d.line}:{d.column}: " if d.line else ""
            picture = [f"{place}{d.severity}: {d.message}", *excerpt(self.source, d.line, d.column)]
            if d.fix:
                picture.append(" " * 5 + f" | clang would put here: {d.fix}")
            # A note steps in, under what it is about.
            lines += [f"    {text}" for text in picture] if d.severity == "note" else picture
        return lines + ([f"hint: {self.hint}"] if self.hint else [])


class VerifierError(BpfnbError):
    """The kernel's verifier refused the program.

    ``kind``: the class of the mistake, such as "unchecked map lookup", where known, else "". ``summary``: the
    verifier's reason, one line. ``explanation``: what that means here, and what the register at fault holds, where
    known, else "". ``log``: all the verifier said.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str = "",
        summary: str = "",
        log: str = "",
        explanation: str = "",
        **place: Any,
    ) -> None:
        super().__init__(message, **place)
        self.kind = kind
        self.summary = summary
        self.log = log
        self.explanation = explanation

    def report(self) -> list[str]:
        lines = super().report()
        if self.explanation:
            lines.append(self.explanation)
        tail = self.log.splitlines()
        if tail:
            omitted = len(tail) - 12
            if omitted > 0:
                lines.append(f"({omitted} lines of the verifier's log omitted; all of it is in error.log)")
            lines += ["  " + text for text in tail[-12:]]
        return lines


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


def excerpt(source: str | None, line: int | None, column: int | None) -> list[str]:
    """The cell's line with its number and a caret under the column; [] when the place is unknown."""
    if not source or not line:
        return []
    lines = source.splitlines()
    if line > len(lines):
        return []
    text = lines[line - 1]
    gutter = f"{line:5d} | "
    picture = [gutter + text]
    if column:
        # Tabs stay tabs, so that the caret stands under the column whatever a tab's width is.
        pad = "".join("\t" if c == "\t" else " " for c in text[: column - 1])
        picture.append(" " * 5 + " | " + pad + "^")
    return picture
