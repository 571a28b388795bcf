"""What Shift-Tab, and the panel beside the completer, say of a word in a %%bpf cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bpfnb.errors import escape, printable
from bpfnb.language.editing.cursor import Spot, spot_at, tracepoint_of, word_at
from bpfnb.language.editing.meanings import Meaning, meaning_of, method
from bpfnb.language.editing.scope import Scope
from bpfnb.language.editing.types import CType
from bpfnb.language.probes import KINDS
from bpfnb.language.signature import Argument, declare
from bpfnb.language.vocabulary import PROBES
from bpfnb.protocol.messages import Member, TypeDescribed

from ..bpf import option_helps
from .asking import asker
from .body import describe, fields, kernel_names
from .matching import cell_of

__all__ = ["Explanation", "explain"]

_MAX_LINES = 60  # members


class Explanation(NamedTuple):
    """``title``: a declaration or signature. ``text``: what it means. ``lines``: members or fields. ``since``: the
    first Linux that has it, or ""."""

    title: str
    text: str = ""
    lines: tuple[str, ...] = ()
    example: str = ""
    since: str = ""

    def bundle(self) -> dict[str, str]:
        """Return it as text and as HTML."""
        since = f"since Linux {self.since}" if self.since else ""
        about = "; ".join(filter(None, (self.text, since)))
        parts = [self.title, about, "\n".join(f"    {line}" for line in self.lines)]
        parts += [f"Example:\n    {self.example.replace(chr(10), chr(10) + '    ')}"] if self.example else []
        markup = f"<p><code><b>{escape(self.title)}</b></code></p>"
        markup += f"<p>{escape(about)}</p>" if about else ""
        markup += f"<pre>{escape(chr(10).join(self.lines))}</pre>" if self.lines else ""
        markup += f"<p>Example:</p><pre>{escape(self.example)}</pre>" if self.example else ""
        return {"text/plain": printable("\n\n".join(filter(None, parts)), keep="\n"), "text/html": markup}


def explain(text: str, at: int) -> Explanation | None:
    """Return what is known of the word at an offset of a %%bpf cell; None where nothing is."""
    parts = cell_of(text)
    if not parts:
        return None
    words, code = parts
    until = asker.deadline()
    asker.turn_to(text[words - 1 : code])
    if at < code or text[code - 1] != "\n":
        return _on_line(text[words:code], at - words, until)
    word, end = word_at(text[code:], at - code)
    return _in_code(spot_at(text[code:], end), until) if word else None


def _on_line(line: str, at: int, until: float) -> Explanation | None:
    start = max(line.rfind(" ", 0, max(at, 0)), line.rfind("\n", 0, max(at, 0))) + 1
    word = line[start:].split()[0] if line[start:].split() else ""
    if word.startswith("-"):
        known = option_helps().get(word)
        return Explanation(known[0], known[1]) if known else None
    probe = word.rpartition("=")[0] or word
    return _of_probe(probe, until) if probe.partition(":")[0] in KINDS and ":" in probe else None


def _of_probe(probe: str, until: float) -> Explanation | None:
    known = asker.ask(("describe", probe), lambda tracer: tracer.describe([probe], [], 1), until)
    if not known:
        return None
    kind = KINDS[probe.partition(":")[0]]
    returns = f"returns {known[0].returns.text}" if known[0].returns else ""
    text = "; ".join(filter(None, (known[0].note, returns)))
    lines = tuple(declare(a.type.text, a.name) for a in known[0].arguments)
    return Explanation(known[0].probe, text or f"a probe of kind {kind.name}", lines, f"%%bpf -a {known[0].probe}=f")


def _in_code(spot: Spot, until: float) -> Explanation | None:
    match spot.kind:
        case "member" | "initializer":
            return _of_member(spot, until)
        case "macro":
            return _of_macro_argument(spot, until)
        case "probe":
            return _of_probe(spot.word, until)
        case "tag":
            return _of_type(CType(f"{spot.given[0]} {spot.word}"), spot.scope, until)
        case "name" if spot.scope:
            return _of_name(spot.word, spot.scope, until)
    return None


def _of_member(spot: Spot, until: float) -> Explanation | None:
    scope, owner = spot.scope, spot.owner
    if not scope:
        return None
    if owner.table:
        table = scope.tables[owner.table]
        known = method(table.macro, table.name, spot.word, table.key, table.value)
        return known and _of_meaning(known)
    own = scope.types.members(owner)
    plain = scope.types.plain(owner)
    if own is not None:
        text = next((field.text for field in own if field.name == spot.word), "")
        of = plain.name if not plain.name.startswith("#") else "a struct without a name"
        return Explanation(declare(text, spot.word), f"a member of {of}, which the cell declares") if text else None
    if probe := tracepoint_of(plain):
        return _of_field(probe, spot.word, until)
    found = describe(plain, until)
    member = next((m for m in found.members if m.name == spot.word), None) if found else None
    if not found or not member:
        return None
    bits = f", {member.bits} bits" if member.bits else ""
    text = f"a member of {found.text.rstrip(' *')}, {member.offset} bytes in{bits}"
    of_member = scope.types.member(plain, spot.word)
    return Explanation(declare(member.type, member.name), text, _lines(describe(of_member, until)))


def _of_field(probe: str, name: str, until: float) -> Explanation | None:
    argument: Argument | None = dict(fields(probe, until)).get(name)
    if not argument:
        return None
    example = ""
    if argument.located:
        example = f"char text[64];\nTP_DATA_LOC_READ_STR(text, {argument.name}, sizeof(text));"
    return Explanation(declare(argument.type.text, name), f"a field of {probe}", example=example)


def _of_macro_argument(spot: Spot, until: float) -> Explanation | None:
    kind = PROBES[spot.macro].kind
    if kind == "tracepoint" and not spot.given:
        return None
    return _of_probe(":".join([kind, *spot.given, spot.word]), until)


def _of_name(word: str, scope: Scope, until: float) -> Explanation | None:
    if found := scope.variables.get(word):
        described = _of_type(found.type, scope, until)
        return Explanation(declare(found.text, word), "a variable", described.lines if described else ())
    if table := scope.tables.get(word):
        known = meaning_of(table.macro)
        values = f"{table.key}: {table.value}" if table.key else ""
        text = "; ".join(filter(None, (known.text if known else "", values)))
        return Explanation(f"{table.macro}({word})", text, example=known.example if known else "")
    if word in scope.functions:
        return Explanation(f"{scope.functions[word]} {word}(...)", "a function of the cell")
    if word in scope.macros:
        return Explanation(f"#define {word} {scope.macros[word]}", "a macro of the cell")
    if word in scope.types.constants:
        return Explanation(f"{scope.types.constants[word]} {word}", "a constant of the cell")
    known = meaning_of(word)
    return _of_meaning(known) if known else _of_type(CType(word), scope, until) or _of_constant(word, until)


def _of_meaning(known: Meaning) -> Explanation:
    return Explanation(known.signature, known.text, (), known.example, known.since)


def _of_type(type_: CType, scope: Scope | None, until: float) -> Explanation | None:
    plain = scope.types.plain(type_) if scope else type_
    if scope and (own := scope.types.members(plain)) is not None:
        name = plain.name if not plain.name.startswith("#") else type_.name
        return Explanation(name, "a type of the cell", _cut([declare(field.text, field.name) for field in own]))
    found = describe(plain, until)
    if not found:
        return None
    size = f", {found.size} bytes" if found.size else ""
    meaning = f": {found.meaning}" if found.meaning else ""
    return Explanation(found.text, f"a type of this kernel{size}{meaning}", _lines(found))


def _lines(found: TypeDescribed | None) -> tuple[str, ...]:
    return _cut([_line(member) for member in found.members], found.more) if found else ()


def _line(member: Member) -> str:
    return (
        f"{member.offset:>6}  {declare(member.type, member.name)}"
        if member.type
        else f"{member.name} = {member.offset}"
    )


def _cut(lines: Sequence[str], more: int = 0) -> tuple[str, ...]:
    left = len(lines) - _MAX_LINES + more
    return (*lines[:_MAX_LINES], *([f"... {left} more"] if left > 0 else []))


def _of_constant(word: str, until: float) -> Explanation | None:
    found = kernel_names(word, until)
    for name, kind, value in zip(found.names, found.kinds, found.values, strict=True) if found else ():
        if name == word and kind == "constant":
            return Explanation(f"{name} = {value}", "a constant of this kernel")
    return None
