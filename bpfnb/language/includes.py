"""Insert the user's own headers where a cell includes them.

The tracer compiles in another folder and as another user, and bcc rewrites only the main text. So headers in the
notebook's folder, or in a folder that -I names, are read here, by the notebook's user, and replace the directive. Their
outputs, maps, functions and probes are then the cell's. Headers that are not found, cannot be read, or are the kernel's
are left to clang.

    expand(source, cflags)  the text, and where its lines come from
    LineMap                 from a line of that text to a line of the cell or of a header

Guards, ``#pragma once`` and repeated includes mean what they do in C.
"""

from __future__ import annotations

import bisect
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

from bpfnb.errors import BpfnbError, CompileError, Diagnostic, ProgramError, VerifierError
from bpfnb.language.tokens import Token, lex
from bpfnb.language.vocabulary import TABLES, declares

__all__ = ["LineMap", "Piece", "expand", "reachable"]

Error = TypeVar("Error", bound=BpfnbError)

MAX_BYTES = 4 << 20  # of one header, and of all that a cell includes
_MAX_DEPTH = 50
_INCLUDE = re.compile(r'#\s*include\s*(?:"([^"\n]+)"|<([^>\n]+)>)')
_FLAG = re.compile(r"-(?:I|iquote|isystem)(.*)", re.S)
# Folders of the kernel's headers, of bcc's and of libbpf's: clang knows them, also where -I names a tree of them.
_CLANGS = re.compile(r"(?:linux|uapi|asm|asm-generic|net|trace|scsi|rdma|crypto|drm|sound|video|xen|bcc|bpf)/")
_SUBMITS = [name for macro in TABLES.values() if macro.output for name in macro.methods]
_OF_BCC = re.compile(rf"\b(?:bpf_trace_printk|{'|'.join(_SUBMITS)})\b")


class Piece(msgspec.Struct, frozen=True):
    """Consecutive lines of the expanded text that come from one file.

    Line ``first`` of the text is ``line`` of ``file``, a header that line ``within`` of the cell includes; "" is the
    cell.
    """

    first: int
    line: int
    file: str = ""
    within: int = 0


def expand(source: str, cflags: Sequence[str] = (), *, max_bytes: int = MAX_BYTES) -> tuple[str, tuple[Piece, ...]]:
    """Return the cell with the user's own headers inserted, and the pieces it consists of; none where it has no such.

    Headers are looked for as in C: in the current folder (a header's own includes: in its folder), and in the folders
    of -I, -iquote and -isystem. Those beyond ``max_bytes`` are left to clang. ProgramError for a FIFO or a device.
    """
    if all(map(_is_clangs, _INCLUDE.finditer(source.replace("\\\n", "  ")))):
        return source, ()
    defined = {found[1] for flag in cflags if (found := re.match(r"(?:-D)?\s*([A-Za-z_]\w*)", flag))}
    try:
        here = Path.cwd()
    except OSError:  # it is gone
        return source, ()
    expansion = _Expansion([here / folder for _, folder in _named(cflags)], defined, here, max_bytes)
    expansion.add(source, here)
    if not any(piece.file for piece in expansion.pieces):
        return source, ()
    return "".join(expansion.text), tuple(expansion.pieces)


def _is_clangs(include: re.Match[str]) -> bool:
    """Return whether a directive, or what looks like one, names a header that is certainly not the user's own."""
    return bool(include[2] and _CLANGS.match(include[2]))


def reachable(cflags: Sequence[str]) -> tuple[str, ...]:
    """Return the flags, and before them the relative folders they name as absolute ones: clang runs elsewhere."""
    named = [Path(folder) for _, folder in _named(cflags)]
    return (*(f"-I{folder.absolute()}" for folder in named if not folder.is_absolute() and folder.is_dir()), *cflags)


def _named(cflags: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield the folders that flags name, each with its index among the flags."""
    alone = False  # the flag before was "-I" without a folder
    for at, flag in enumerate(cflags):
        found = _FLAG.fullmatch(flag)
        if alone or (found and found[1]):
            yield at, flag if alone else found[1] if found else ""
        alone = bool(found and not found[1] and not alone)


class _Header(NamedTuple):
    """A header of the user's own. ``path``: as it was found. ``key``: one for a file with several names."""

    path: Path
    key: str
    text: str


class _Expansion:
    """The expanded text, as it is written."""

    def __init__(self, folders: Sequence[Path], defined: set[str], here: Path, max_bytes: int) -> None:
        self.text: list[str] = []
        self.pieces: list[Piece] = []
        self._line = 1
        self._size = 0
        self._max_bytes = max_bytes
        self._folders = folders
        self._defined = defined  # macros, as far as guards go
        self._once: set[str] = set()  # headers that are inserted and have a guard
        self._conditional: dict[str, int] = {}  # headers inside an #if, and a number for each
        self._read: dict[Path, _Header | None] = {}
        self._here = f"{os.path.realpath(here)}/"

    def add(
        self, text: str, folder: Path, file: str = "", within: int = 0, inside: tuple[str, ...] = (), sure: bool = True
    ) -> None:
        """Add a file's text. ``inside``: the headers that include it. ``sure``: no ``#if`` is around it."""
        at, line, depth = 0, 1, 0
        for directive in _directives(text):
            depth += _nesting(directive)
            found = _included(directive)
            try:
                header = self._header(found[1] or "", found[2] or "", folder) if found else None
            except ProgramError as error:
                error.line = within or line + text.count("\n", at, directive.start)
                raise
            if found and header and self._fits(header, inside):
                line = self._copy(text[at : directive.start], file, line, within)
                name = found[1] or found[2]
                self._include(header, name, within or line, inside, sure and depth == 0)
                at = directive.end + text.startswith("\n", directive.end)
                line += text.count("\n", directive.start, at)
            elif macro := re.match(r"#\s*define\s+(\w+)", directive.text):
                self._defined |= {macro[1]} if sure and depth == 0 else set()
        self._copy(text[at:], file, line, within)

    def _copy(self, text: str, file: str, line: int, within: int) -> int:
        if text:
            self.pieces.append(Piece(self._line, line, file, within))
            self.text.append(text)
            self._line += text.count("\n")
        return line + text.count("\n")

    def _fits(self, header: _Header, inside: tuple[str, ...]) -> bool:
        self._size += len(header.text)
        return self._size <= self._max_bytes and len(inside) < _MAX_DEPTH

    def _include(self, header: _Header, name: str, within: int, inside: tuple[str, ...], sure: bool) -> None:
        guard = _guard(header.text)
        once = any(_ONCE.match(d.text) for d in _directives(header.text))
        if header.key in self._once or (header.key in inside and (guard or once)):
            return
        text = _blanked(header.text, [d for d in _directives(header.text) if _ONCE.match(d.text)])
        before = after = ""
        if sure and header.key not in self._conditional:
            if once or (guard and guard[0] not in self._defined):
                self._once.add(header.key)
                text = _blanked(text, guard[1] if guard else ())
        elif once and not guard:  # only the compiler finds out whether it is there
            macro = f"BPFNB_ONCE_{self._conditional.setdefault(header.key, len(self._conditional))}"
            before, after = f"#ifndef {macro}\n#define {macro}\n", "#endif\n"
        else:
            self._conditional.setdefault(header.key, len(self._conditional))
        self._copy(before, "", within, 0)
        whole = text if text.endswith("\n") else f"{text}\n"
        self.add(whole, header.path.parent, name, within, (*inside, header.key), sure and not before)
        self._copy(after, "", within, 0)

    def _header(self, quoted: str, bracketed: str, folder: Path) -> _Header | None:
        """Return the header that a directive includes; None where it is not the user's own."""
        if quoted and (header := self._file(folder / quoted)):
            return header
        header = self._named(quoted or bracketed)
        return header if header and self._must_be_inserted(header) else None

    def _named(self, name: str) -> _Header | None:
        """Return a header in one of the folders that flags name."""
        if _CLANGS.match(name):
            return None
        return next((header for folder in self._folders if (header := self._file(folder / name))), None)

    def _must_be_inserted(self, header: _Header) -> bool:
        """Return whether a header that clang would find too has to be inserted: it or one that it includes is in the
        notebook's folder, or contains what works only in the cell's text."""
        seen = {header.key}
        todo = [header]
        while todo:
            header = todo.pop()
            words = re.findall(r"\b(\w+)\s*\(", header.text)
            if header.key.startswith(self._here) or _OF_BCC.search(header.text) or any(map(declares, words)):
                return True
            for found in filter(None, map(_included, _directives(header.text))):
                beside = self._file(header.path.parent / found[1]) if found[1] else None
                following = beside or self._named(found[1] or found[2])
                if following and following.key not in seen:
                    seen.add(following.key)
                    todo.append(following)
        return False

    def _file(self, path: Path) -> _Header | None:
        if path not in self._read:
            text = _text(path, self._max_bytes)
            self._read[path] = None if text is None else _Header(path, os.path.realpath(path), text)
        return self._read[path]


def _text(path: Path, max_bytes: int) -> str | None:
    """Return a file's text; None where there is no regular file, or it is no text that could be C.

    ProgramError for a FIFO or a device, which clang would read forever.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise ProgramError(f"{path} is a FIFO or a device: no file that could be included")
        if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
            return None
        text = os.pread(fd, max_bytes, 0).decode()
    except (OSError, UnicodeDecodeError):
        return None
    finally:
        os.close(fd)
    return None if "\0" in text else re.sub(r"\r\n?", "\n", text.removeprefix("\ufeff"))


_ONCE = re.compile(r"#\s*pragma\s+once\b")
_IF = re.compile(r"#\s*(if|ifdef|ifndef|endif|else|elif)\b")
_GUARD = re.compile(r"#\s*(?:ifndef\s+(\w+)|if\s+!\s*defined\s*\(?\s*(\w+)\s*\)?)\s*(?:/\*.*?\*/|//.*)?", re.S)


def _directives(text: str) -> list[Token]:
    return [token for token in lex(text, directives=True) if token.kind == "directive"]


def _included(directive: Token) -> re.Match[str] | None:
    return _INCLUDE.match(directive.text.replace("\\\n", "  "))


def _nesting(directive: Token) -> int:
    found = _IF.match(directive.text)
    return 0 if not found or found[1] in ("else", "elif") else -1 if found[1] == "endif" else 1


def _guard(text: str) -> tuple[str, tuple[Token, Token]] | None:
    """Return the macro of an include guard, and the directives that begin and end the guard; None without one."""
    tokens = [token for token in lex(text, directives=True) if token.kind != "comment" and not _ONCE.match(token.text)]
    first = _GUARD.fullmatch(tokens[0].text) if len(tokens) > 2 and tokens[0].kind == "directive" else None
    macro = first and (first[1] or first[2])
    if not macro or not re.match(rf"#\s*define\s+{macro}\b", tokens[1].text):
        return None
    depth = 0
    for token in tokens:
        found = _IF.match(token.text) if token.kind == "directive" else None
        depth += _nesting(token) if found else 0
        if found and depth == 1 and found[1] in ("else", "elif"):
            return None
        if found and not depth:
            return (macro, (tokens[0], token)) if token is tokens[-1] else None
    return None


def _blanked(text: str, tokens: Iterable[Token]) -> str:
    for token in tokens:
        text = text[: token.start] + re.sub(r"[^\n]", " ", token.text) + text[token.end :]
    return text


# --- the source map -----------------------------------------------------------------------------------------------

_LINE = re.compile(r"\bline (\d+)\b")


class LineMap:
    """Maps lines of the expanded text to lines of the cell and of headers. ``cell``: the text as it was written."""

    def __init__(self, cell: str, pieces: Sequence[Piece]) -> None:
        self._cell = cell
        self._pieces = pieces
        self._firsts = [piece.first for piece in pieces]

    def place(self, line: int) -> Piece:
        """Return where a line comes from, as a piece of one line."""
        if not line or not self._pieces:
            return Piece(line, line)
        piece = self._pieces[max(bisect.bisect_right(self._firsts, line) - 1, 0)]
        return replace(piece, first=line, line=piece.line + line - piece.first)

    def describe(self, line: int) -> str:
        """Return the name of a line: "line 3", or "line 3 of x.h"."""
        place = self.place(line)
        return f"line {place.line} of {place.file}" if place.file else f"line {place.line}"

    def text(self, text: str) -> str:
        """Return a message with the lines it names mapped."""
        return _LINE.sub(lambda found: self.describe(int(found[1])), text)

    def diagnostic(self, d: Diagnostic) -> Diagnostic:
        """Return the same message, about the cell. One about a header is at the line that includes it, and names it."""
        place = self.place(d.line)
        if place.file:
            message = f"{self.text(d.message)} (in {place.file}, line {place.line})"
            return replace(d, line=place.within, column=0, message=message, fix="")
        return replace(d, line=place.line, message=self.text(d.message))

    def error(self, error: Error) -> Error:
        """Change an error to be about the cell, and return it."""
        if not self._pieces:
            return error
        moved = self.diagnostic(Diagnostic(error.line or 0, error.column or 0, "error", error.message))
        error.message, error.line, error.column = moved.message, moved.line or None, moved.column or None
        error.args = (error.message,)
        error.hint = error.hint and self.text(error.hint)
        error.source = self._cell
        if isinstance(error, (CompileError, VerifierError)):
            error.diagnostics = tuple(map(self.diagnostic, error.diagnostics))
        if isinstance(error, VerifierError):
            error.explanation, error.log = self.text(error.explanation), self.text(error.log)
        return error
