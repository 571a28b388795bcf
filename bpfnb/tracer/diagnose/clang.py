"""Read clang's messages from its log: each once, at its place in the cell, in words that name no generated text.

bcc compiles in passes, and puts text of its own between them: a struct for a tracepoint, a line that reads a parameter,
a struct of function pointers for a map. Messages about such text, or about ours, are shown only where there
are none about the cell's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import PurePath
from typing import NamedTuple, cast

from bpfnb.errors import Diagnostic, Severity, did_you_mean
from bpfnb.language.cell import Cell
from bpfnb.language.tokens import arguments
from bpfnb.tracer.kernel import tracefs
from bpfnb.tracer.kernel.btf import KERNEL_BTF, KERNELS
from bpfnb.tracer.source_map import WHOLE_POINTER, Rewritten

__all__ = ["diagnostics"]

_HEAD = re.compile(r"(\S.*?):(\d+):(\d+): (?:fatal )?(error|warning|note): (.*)")
_CELL = re.compile(r"/virtual/main\.c|/proc/self/fd/\d+")
_OPTIONS = ("<command line>", "<built-in>")
_INCLUDED = re.compile(r"In file included from (.*):(\d+):")
_CARETS = re.compile(r"[ \t]*[~^][~^ \t]*")

# clang's words for what the user knows by other names.
_NO_FUNCTION = re.compile(r"implicit(?: declaration of|ly declaring library) function '(\w+)'.*")
_NO_METHOD = re.compile(r"no member named '(\w+)' in 'struct (\w+)_table_t'")
_NO_FIELD = re.compile(r"no member named '(\w+)' in 'struct tracepoint__(\w+?)__(\w+)'")
_GUESS = re.compile(r"((?:use of undeclared identifier|unknown type name) '(\w+)'); did you mean '(\w+)'\?")
_DECLARED = re.compile(r"'(\w+)' declared here")
_OF_BCC = re.compile(r"did you mean 'bcc_\w+|did you mean '\w+_'")  # functions that its macros call
_TABLE = re.compile(r"struct (\w+)_table_t")
_INITIALIZED = re.compile(
    r"initializing '(?:__)?typeof(?:__)? ?\(\w+\.(?:key|leaf)\)' \(aka '([^']*)'\) with an expression of "
    r"(incompatible )?type ('[^']*'(?: \(aka '[^']*'\))?)(.*)"
)
# What follows where the text of a macro of bcc's is no C: structs that nobody knows.
_GENERATED = re.compile(
    r"____btf_map_|'\w+_table_t'|(incomplete type|declaration of) 'struct \w+_table_t'|bpfnb_|BPFNB_"
)


def diagnostics(source: Rewritten, log: str) -> tuple[Diagnostic, ...]:
    """clang's messages, in its order: a note belongs to what stands before it."""
    findings = _Reader(source).findings(log)
    sure = [finding for finding in findings if finding.sure]
    if not any(finding.head.severity == "error" for finding in sure):
        sure = [finding for finding in findings if finding.sure or finding.head.severity == "error"]
    ours = {finding.place for finding in sure if finding.ours}
    return tuple(d for f in sure if f.ours or f.place not in ours for d in (f.head, *f.notes))


# --- reading ------------------------------------------------------------------------------------------------------


class _Message(NamedTuple):
    """``quote``: the lines below it. ``within``: the line of the cell that includes the file, 0 if none does."""

    file: str
    line: int
    column: int
    severity: Severity
    text: str
    quote: Sequence[str]
    within: int


def _messages(log: str) -> Iterator[_Message]:
    lines = log.splitlines()
    including: dict[str, int] = {}  # reported once for each file
    within = 0
    for at, text in enumerate(lines):
        if included := _INCLUDED.match(text):
            within = int(included[2]) if _CELL.fullmatch(included[1]) else within
        elif head := _HEAD.match(text):
            file, line, column, severity, what = head.groups()
            what = what.replace(KERNELS, "kernel's ")
            line_within = including.setdefault(file, within)
            yield _Message(
                file, int(line), int(column), cast(Severity, severity), what, lines[at + 1 : at + 4], line_within
            )
            within = 0


def _grouped(messages: Iterator[_Message]) -> list[list[_Message]]:
    groups: list[list[_Message]] = []
    for message in messages:
        if message.severity != "note":
            groups.append([message])
        elif groups:
            groups[-1].append(message)
    return groups


def _fix(quote: Sequence[str]) -> str:
    """What clang would put at a message's column: it stands below the carets, which stand below the source line."""
    if len(quote) < 3 or not _CARETS.fullmatch(quote[1]) or not quote[2].startswith(" ") or _HEAD.match(quote[2]):
        return ""
    return quote[2].strip()


# --- placing and wording ------------------------------------------------------------------------------------------


class _Finding(NamedTuple):
    """``sure``: it is about the cell's text, and at its place. ``ours``: in our words, in place of clang's."""

    head: Diagnostic
    notes: Sequence[Diagnostic] = ()
    sure: bool = True
    ours: bool = False

    @property
    def place(self) -> tuple[int, int]:
        return self.head.line, self.head.column


class _Reader:
    """What a log says of one compiled text."""

    def __init__(self, source: Rewritten) -> None:
        self.source = source
        self.cell = source.cell
        self.tables = {m.name for m in self.cell.maps} | {output.name for output in self.cell.outputs}
        self.words = {token.text for token in self.cell.tokens}
        self.formats = dict(_formats(self.cell))

    def findings(self, log: str) -> list[_Finding]:
        """Each message once, and of each header the first: what follows there comes of it."""
        found: dict[Diagnostic, _Finding] = {}
        headers: set[str] = set()
        for message, *notes in _grouped(_messages(log)):
            finding = None if message.file in headers else self._finding(message)
            if finding and not _CELL.fullmatch(message.file):
                headers.add(message.file)
            if finding:
                kept = [] if finding.ours else [note for text in notes if (note := self._note(text))]
                found.setdefault(finding.head, finding._replace(notes=kept))
        return list(found.values())

    def _finding(self, message: _Message) -> _Finding | None:
        if not _CELL.fullmatch(message.file):
            return _Finding(_outside(message)) if message.severity == "error" else None
        if self.source.reaches(message.line) and self.source.is_inserted(message.line, message.column):
            return self._about_increment(message) or self._about_submit(message)
        place = self.source.to_cell(message.line, message.column)
        ours = self._in_our_words(message, place)
        if ours:
            return _Finding(Diagnostic(*place, "error", ours), ours=True)
        if message.text == _SHORT_LIST and (before := [at for at in self.formats if at <= place]):
            warning = _format_warning(self.formats[max(before)])
            return _Finding(Diagnostic(*max(before), "warning", warning)) if warning else None
        worded, fix = self._worded(message.text, _fix(message.quote))
        sure = self._is_right(message) and not _GENERATED.search(message.text)
        if not sure and message.severity != "error":
            return None
        return _Finding(Diagnostic(*place, message.severity, worded, fix), sure=sure)

    def _in_our_words(self, message: _Message, place: tuple[int, int]) -> str:
        """A message for what clang says of text the user does not see; "" for the others."""
        if message.text == "expected ')'" and place in self.formats:  # the literal before it is our tag
            return "the format of bpf_trace_printk must be a string literal"
        macro = re.match(r"BPF_\w+|\w+_PROBE\b", self.source.written(message.line, message.column))
        if macro and message.text.startswith("'section' attribute only applies"):
            return f"{macro[0]} cannot stand in a function"
        if macro and message.text.startswith("pasting formed"):
            return f"{macro[0]} is given something that is no name"
        return ""

    def _about_increment(self, message: _Message) -> _Finding | None:
        """A key or a number of an increment initializes a variable of ours; the user passes it."""
        found = _INITIALIZED.search(message.text)
        if not found:
            return None
        passed = f"passing {found[3]} to parameter of {found[2] or ''}type '{found[1]}'{found[4]}"
        place = self.source.to_cell(message.line, message.column)
        worded = self._worded(message.text[: found.start()] + passed, "")[0]
        return _Finding(Diagnostic(*place, message.severity, worded))

    def _about_submit(self, message: _Message) -> _Finding | None:
        """Turn a message about our text around a submit into one about its argument."""
        place = self.source.to_cell(message.line, message.column)
        call = next((c for c in reversed(self.source.submits) if (c.line, c.column) <= place), None)
        pointed = re.match(r"indirection requires pointer operand \((.*) invalid\)", message.text)
        asserted = re.match(rf"static\w* ?\w* failed.*({WHOLE_POINTER})", message.text)
        if call and (pointed or asserted):
            what = f"must be given a pointer, not {pointed[1]}" if pointed else WHOLE_POINTER
            return _Finding(Diagnostic(call.line, call.column, "error", f"{call.output} {what}"), ours=True)
        return _Finding(Diagnostic(*place, "error", message.text), sure=False) if message.severity == "error" else None

    def _note(self, message: _Message) -> Diagnostic | None:
        declared = _DECLARED.match(message.text)
        if (
            not _CELL.fullmatch(message.file)
            or not self._is_right(message)
            or _GENERATED.search(message.text)
            or message.text.startswith("include the header <")
            or _OF_BCC.match(message.text)
            # A method is declared where the macro makes the map.
            or (declared and not self._begins(message, declared[1]))
        ):
            return None
        return Diagnostic(*self.source.to_cell(message.line, message.column), "note", message.text, _fix(message.quote))

    def _is_right(self, message: _Message) -> bool:
        """Whether what clang quotes stands in the cell at that place: bcc may have put lines between."""
        if not self.source.reaches(message.line):
            return False
        if len(message.quote) < 2 or not _CARETS.fullmatch(message.quote[1]):
            return True
        quoted, at = message.quote[0], message.quote[1].find("^")
        if quoted[at:].startswith("<U+"):  # a character that clang names
            return True
        word = re.match(r"\w+|[^\w\s]", quoted[at:], re.ASCII) if quoted[: at + 1].isascii() else None
        return not word or self._begins(message, word[0])

    def _begins(self, message: _Message, word: str) -> bool:
        """Whether the cell has the word at a message's place."""
        return self.source.written(message.line, message.column).startswith(word)

    def _worded(self, message: str, fix: str) -> tuple[str, str]:
        """A message in the user's words. clang knows all names of all headers: what it guesses has to be near."""
        message = _NO_FUNCTION.sub(r"there is no function \1", message)
        message = _NO_FIELD.sub(_no_field, message)
        method = _NO_METHOD.match(message)
        if method and method[2] in self.tables:
            message = _NO_METHOD.sub(r"\2 has no method \1", message)
        message = _TABLE.sub(lambda found: f"map {found[1]}" if found[1] in self.tables else found[0], message)
        guess = _GUESS.fullmatch(message)
        near = not guess or guess[3] in self.words or did_you_mean(guess[2], [guess[3]], 0.7)
        return (message, fix) if near or not guess else (guess[1], "")


def _no_field(found: re.Match[str]) -> str:
    field, category, event = found.groups()
    if field in tracefs.dynamic_fields(f"{category}/{event}"):
        return f"args has no member {field}: in {category}:{event} it is a field of changing length (__data_loc)"
    return f"the tracepoint {category}:{event} has no field {field}"


def _outside(message: _Message) -> Diagnostic:
    """An error in a header, or in the options for clang: the line of the cell that includes it, if one does."""
    if message.file in _OPTIONS:
        culprit = message.quote[0].strip() if message.quote else ""
        return Diagnostic(message.within, 0, "error", f"{message.text}: {culprit}" if culprit else message.text)
    where = f"{PurePath(message.file).name}, line {message.line}"
    return Diagnostic(message.within, 0, "error", f"{message.text} (in {where})")


def _formats(cell: Cell) -> Iterator[tuple[tuple[int, int], str]]:
    """Where the formats of bpf_trace_printk begin, and what is in their quotes."""
    for i, token in enumerate(cell.tokens[:-1]):
        if token.text == "bpf_trace_printk" and cell.tokens[i + 1].text == "(":
            first = [t for t in arguments(cell.tokens, i + 1)[0] if t.text != "("]
            if first:
                yield cell.place(first[0].start), "".join(t.text.strip('"') for t in first if t.kind == "string")


# What bpf_bprintf_prepare takes (Linux: kernel/bpf/helpers.c). bcc's own list is that of Linux before v5.13.
_CONVERSION = re.compile(r"%%|%[0 +-]*\d*(?:p\w*|s|c|l{0,2}[iduxX])|(%[^%\w]*\d*(?:\.\d*)?\w{0,3})")
_SHORT_LIST = "only %d %u %x %ld %lu %lx %lld %llu %llx %p %s conversion specifiers allowed"


def _format_warning(format_: str) -> str:
    """What to say of a format that bcc warns of; "" where the kernel takes it."""
    unknown = [found[1].strip() for found in _CONVERSION.finditer(format_) if found[1]]
    if unknown:
        return f"this prints nothing: bpf_trace_printk knows no {', no '.join(dict.fromkeys(unknown))}"
    return "" if _prints_like_printf() else _SHORT_LIST


@cache
def _prints_like_printf() -> bool:
    """Linux kernel commit d9c9e4db186a ("bpf: Factorize bpf_trace_printk and bpf_seq_printf") (in v5.13, as is
    bpf_snprintf)."""
    try:
        return b"\0bpf_snprintf\0" in KERNEL_BTF.read_bytes()
    except OSError:
        return False
