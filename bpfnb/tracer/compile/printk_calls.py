"""Calls of bpf_trace_printk: a tag before each format, and newlines that Python's escaping has spoilt."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from bpfnb.language.cell import Cell
from bpfnb.language.tokens import Token, arguments, closing
from bpfnb.tracer.read.lines import SHORT_PRINT
from bpfnb.tracer.source_map import Edit

__all__ = ["printk_edits"]

_MAX_VALUES = 3  # a helper takes five arguments, and the format is two of them: its address and its size
_ESCAPED_NEWLINE = re.compile(r'(?<!\\)\\\\n"$')


def printk_edits(cell: Cell, tag: str, lines: bool) -> list[Edit]:
    """Tags and mended newlines, in functions and in the bodies of macros.

    bcc makes ``char _fmt[] = FIRST;`` of a call, so FIRST is literals and macros giving literals, and a literal put
    before it joins them.
    """
    edits: set[Edit] = set()
    names = _printk_names(cell)
    bodies = [m.tokens for macros in cell.macros.values() for m in macros]
    for tokens in (cell.tokens, *bodies):
        for i, token in enumerate(tokens[:-1]):
            if token.text in names and tokens[i + 1].text == "(":
                edits.update(_call(cell, tokens, i + 1, tag))
                if lines and token.text == "bpf_trace_printk" and _is_short(arguments(tokens, i + 1)[0]):
                    edits.add(Edit(token.start, token.end, SHORT_PRINT))
    return sorted(edits)


def _printk_names(cell: Cell) -> set[str]:
    """bpf_trace_printk, and macros that stand for the bare name."""
    names = {"bpf_trace_printk"}
    while True:
        more = {
            name
            for name, macros in cell.macros.items()
            if any(m.parameters is None and len(m.tokens) == 1 and m.tokens[0].text in names for m in macros)
        }
        if more <= names:
            return names
        names |= more


def _call(cell: Cell, tokens: Sequence[Token], index: int, tag: str) -> Iterator[Edit]:
    first, *values = arguments(tokens, index)
    if not first or closing(tokens, index) == len(tokens):
        return
    if len(values) > _MAX_VALUES:
        # LLVM's BPF backend would end its process over this one, and not say where it stands.
        message = f"bpf_trace_printk takes at most {_MAX_VALUES} values beside its format, here are {len(values)}"
        raise cell.error(message, values[_MAX_VALUES][0].start)
    wanted = _conversions(first)
    if wanted > len(values) and tokens is cell.tokens and not any(t.text in cell.macros for v in values for t in v):
        message = f"this format asks for more values ({wanted}) than the call has ({len(values)})"
        raise cell.error(message, first[0].start)
    if tag:
        start = next((t.start for t in first if t.text != "("), first[0].start)
        yield Edit(start, start, f'"{tag}" ')
    last = [t for t in first if t.text not in "()"][-1:]
    yield from _mend(cell, last, 8)


# What a value can become: at most 22 characters.
_SHORT_CONVERSION = re.compile(r"%(?:%|#?(?:l{0,2}|z)[diuxX]|c)")


def _is_short(format_: Sequence[Token]) -> bool:
    """Return whether a line is little longer than its format: that is all literals, and its values are numbers."""
    if not format_ or any(t.kind != "string" and t.text not in "()" for t in format_):
        return False
    text = "".join(t.text.partition('"')[2].removesuffix('"') for t in format_)
    return "%" not in _SHORT_CONVERSION.sub("", text)


_CONVERSION = re.compile(r"%(%|[-+ #0]*\d*(?:\.\d+)?[hlz]*[a-zA-Z])")


def _conversions(format_: Sequence[Token]) -> int:
    """Return how many values a format wants that is all literals; 0 for one with macros."""
    if any(t.kind != "string" and t.text not in "()" for t in format_):
        return 0
    text = "".join(t.text.partition('"')[2].removesuffix('"') for t in format_)
    return sum(found != "%" for found in _CONVERSION.findall(text))


def _mend(cell: Cell, last: Sequence[Token], depth: int) -> Iterator[Edit]:
    """Make the last literal of a format end in a newline where it ends in a backslash and an n."""
    for token in last:
        if token.kind == "string" and _ESCAPED_NEWLINE.search(token.text):
            at = token.end - len('\\n"') - 1
            yield Edit(at, at + 1)
        for macro in cell.macros.get(token.text, ()) if depth else ():
            if macro.parameters is None:
                yield from _mend(cell, macro.tokens[-1:], depth - 1)
