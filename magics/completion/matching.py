"""The completer of IPython's that a Tab asks."""

from __future__ import annotations

import re

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher
from IPython.core.interactiveshell import InteractiveShell

from . import body, line
from .asking import asker

__all__ = ["cell_of", "install", "remove"]

_CELL = re.compile(r"(\s*)%%bpf\b([^\n]*)(\n|\Z)")
_LINE = re.compile(r"[ \t]*%bpf[ \t]+(.*)")
_MAX_TYPE = 48  # characters of what is shown beside a name
_NO_BREAK = "\N{NO-BREAK SPACE}"


def cell_of(text: str) -> tuple[int, int] | None:
    """Return where the first line's words begin, and where the C does; None where it is no %%bpf cell."""
    found = _CELL.match(text)
    return (found.start(2), found.end()) if found else None


def complete(text: str, at: int) -> tuple[str, list[line.Item]] | None:
    """Return the part of a word before an offset of a cell, and what it may become; None where it is not ours."""
    until = asker.deadline()
    if parts := cell_of(text):
        words, code = parts
        asker.turn_to(text[words - 1 : code])
        body.prefetch()
        if at >= code and text[code - 1] == "\n":
            return body.complete(text[code:], at - code, until)
        if at < words or not text[words:at][:1].isspace():
            return None
        return line.for_cell(text[words:at].lstrip(), text[code:], until)
    found = _LINE.fullmatch(text[text.rfind("\n", 0, at) + 1 : at])
    if not found:
        return None
    asker.turn_to(found[0])
    return line.for_line(found[1], until)


@context_matcher(priority=100)
def _bpf_matcher(context: CompletionContext) -> SimpleMatcherResult:
    lines = context.full_text.split("\n")
    at = sum(len(before) + 1 for before in lines[: context.cursor_line]) + context.cursor_position
    found = complete(context.full_text, at)
    if found is None:
        return {"completions": []}
    word, items = found
    # IPython asks Python's completers where there is nothing: the word itself keeps Python's names out of C.
    offered = [SimpleCompletion(item.text, type=_short(item.type)) for item in items[: context.limit or None]]
    offered = offered or [SimpleCompletion(word, type=_short("nothing known"))]
    return {"completions": offered, "matched_fragment": word, "suppress": True, "ordered": True}


def _short(text: str) -> str:
    """Return what is shown beside a name. JupyterLab breaks it at spaces, into the next line."""
    text = text if len(text) <= _MAX_TYPE else f"{text[: _MAX_TYPE - 3]}..."
    return text.replace(" ", _NO_BREAK)


def install(shell: InteractiveShell) -> None:
    if _bpf_matcher not in shell.Completer.custom_matchers:
        shell.Completer.custom_matchers.append(_bpf_matcher)


def remove(shell: InteractiveShell) -> None:
    if _bpf_matcher in shell.Completer.custom_matchers:
        shell.Completer.custom_matchers.remove(_bpf_matcher)
    asker.forget()
