"""Lists of probes as HTML and as text. What they say comes from the kernel and from files, and is escaped: see html."""

from __future__ import annotations

from collections.abc import Sequence

from bpfnb.errors import escape, printable
from bpfnb.protocol.messages import ProbesListed
from bpfnb.views import html

__all__ = ["probes_table", "probes_text"]

_HEADS = ("probe", "arguments")
_MAX_NOTES = 3  # beneath a table


def probes_text(found: ProbesListed, pattern: str) -> str:
    """Write ``%bpf probes`` for a terminal: a table, or all that is known of the only probe."""
    if not found.names:
        return _none(pattern)
    if len(found.names) == 1 and not found.more:
        return "\n".join([printable(found.names[0]), *(f"    {printable(line)}" for line in _details(found))])
    rows = [[printable(name), printable(text)] for name, text in _rows(found)]
    return "\n".join([html.columns([_HEADS, *rows]), *map(printable, _notes(found))])


def probes_table(found: ProbesListed, pattern: str) -> str:
    """Write ``%bpf probes`` for a notebook."""
    if not found.names:
        return html.card(html.muted(escape(_none(pattern))))
    if len(found.names) == 1 and not found.more:
        lines = [html.line(html.code(line)) for line in _details(found)]
        return html.card("".join([html.line(html.code(found.names[0])), *lines]))
    rows = [[html.code(name), html.code(text)] for name, text in _rows(found)]
    notes = [html.line(html.muted(escape(note))) for note in _notes(found)]
    return html.card(html.table(_HEADS, rows) + "".join(notes))


def _none(pattern: str) -> str:
    return f"no probe matches {printable(repr(pattern))}"


def _rows(found: ProbesListed) -> list[tuple[str, str]]:
    return [(name, ", ".join(arguments)) for name, arguments in zip(found.names, found.arguments, strict=True)]


def _details(found: ProbesListed) -> list[str]:
    """Return what is known of the first probe: an argument a line."""
    returns, note = found.returns[0], found.notes[0]
    return [*found.arguments[0], *([f"returns {returns}"] if returns else []), *([note] if note else [])]


def _notes(found: ProbesListed) -> list[str]:
    """Return what is said beneath a table: how many probes are left out, and notes, the commonest first."""
    notes = sorted(set(filter(None, found.notes)), key=lambda note: -found.notes.count(note))
    said = [f"{note} ({_how_many(found.notes, note)})" for note in notes[:_MAX_NOTES]]
    more = [f"... and {found.more:,} more: narrow the pattern"] if found.more else []
    return [*more, *said]


def _how_many(notes: Sequence[str], note: str) -> str:
    count = notes.count(note)
    return "all of them" if count == len(notes) > 1 else f"{count} of them"
