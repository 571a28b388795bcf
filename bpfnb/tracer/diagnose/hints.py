"""What to do about an error of clang's: near names, and what people mean who know C, libbpf or Python better than bcc.

A hint is given only where the cause is certain.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence

from bpfnb.errors import Diagnostic, SetupError, did_you_mean, near_names
from bpfnb.language.cell import Body, Cell
from bpfnb.language.program import RAW_STRING_HINT
from bpfnb.language.syntax import struct
from bpfnb.language.tokens import Token, arguments
from bpfnb.language.vocabulary import ATTACH, METHODS, PROBES, REGISTERS, TABLES, declares, helpers, usage
from bpfnb.tracer.kernel import tracefs
from bpfnb.tracer.kernel.btf import KERNEL_BTF, STRUCT, UNION, Types

__all__ = ["BYTE_BY_BYTE", "hint", "method_instead", "misspelt_macro", "taken_for_a_program"]

_MAX_NAMES = 24  # names listed, where none is near


def hint(cell: Cell, d: Diagnostic) -> str | None:
    """What to do about an error; None where that is not certain."""
    place = _Place(cell, d)
    for pattern, answer in _RULES:
        if found := re.search(pattern, d.message):
            text = answer if isinstance(answer, str) else answer(found, place)
            if text:
                return text
    return _idiom(place) or None


def misspelt_macro(cell: Cell, found: Iterable[Diagnostic]) -> Diagnostic | None:
    """The macro of bcc's that one of clang's messages is really about: of an unknown one C makes a function."""
    lines = {d.line for d in found}
    for token, after in zip(cell.tokens, cell.tokens[1:], strict=False):
        line, column = cell.place(token.start)
        if line in lines and after.text == "(" and re.fullmatch(r"[A-Z][A-Z0-9]*_[A-Z0-9_]+", token.text):
            instead = _OTHER_MACROS.get(token.text) or did_you_mean(token.text, _MACROS, 0.8)
            if instead and token.text not in cell.macros and not declares(token.text):
                return Diagnostic(line, column, "error", f"there is no macro {token.text}; {instead}")
    return None


def taken_for_a_program(cell: Cell, d: Diagnostic) -> Diagnostic | None:
    """The helper function that a message is really about: bcc makes registers of the parameters of all functions that
    are not static, and clang sees what bcc wrote."""
    if not re.match(r"member reference type '.*'\)? is not a pointer", d.message):
        return None
    for f in cell.functions:
        used = any(cell.mentions(g.tokens, f.name) for g in cell.functions if g is not f)
        if not f.static and used and len(f.parameters) > 1 and "*" not in f.parameters[0]:
            return Diagnostic(*cell.place(f.name_at), "error", f"{f.name} is not static: bcc takes it for a program")
    return None


# --- where --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Place:
    """A message, and the cell around it."""

    cell: Cell
    d: Diagnostic

    @property
    def text(self) -> str:
        """The line."""
        lines = self.cell.source.split("\n")
        return lines[self.d.line - 1] if 0 < self.d.line <= len(lines) else ""

    @property
    def index(self) -> int:
        """The last token that begins at the place or before it; -1 where there is none."""
        here = (self.d.line, self.d.column)
        return max((i for i, t in enumerate(self.cell.tokens) if self.cell.place(t.start) <= here), default=-1)

    @property
    def function(self) -> Body | None:
        """The function the place is in."""
        at = self.cell.tokens[self.index].start if self.index >= 0 else -1
        return next((f for f in self.cell.functions if f.open and f.open <= at <= f.close), None)

    @property
    def call(self) -> list[Token]:
        """The name before the innermost bracket around the place, or its three tokens ``table.method``."""
        depth = 0
        for i in range(self.index - 1, 0, -1):
            text = self.cell.tokens[i].text
            depth += (text == ")") - (text == "(")
            if depth < 0:
                dotted = i >= 3 and self.cell.tokens[i - 2].text == "."
                return self.cell.tokens[i - 3 : i] if dotted else self.cell.tokens[i - 1 : i]
        return []

    def macro_of(self, table: str) -> str:
        """The macro that declares a map or an output."""
        outputs = {macro.output: macro.name for macro in TABLES.values() if macro.output}
        found = {m.name: m.macro for m in self.cell.maps} | {o.name: outputs[o.kind] for o in self.cell.outputs}
        return found.get(table, "")

    def macro(self) -> str:
        """The macro of bcc's that the place is in, or stands at; "" if it is none."""
        tokens = self.cell.tokens[max(self.index, 0) : self.index + 1] + self.call[-1:]
        return next((t.text for t in tokens if t.text in _MACROS), "")


# --- names --------------------------------------------------------------------------------------------------------

_MACROS = [
    *(name for name, table in TABLES.items() if table.offered),
    *(name for name, probe in PROBES.items() if probe.offered),
    ATTACH,
]
# Macros that other headers for BPF programs have.
_OTHER_MACROS = {
    f"BPF_{name.upper()}": f'write BPF_TABLE("{name}", KEY, VALUE, NAME, SIZE)'
    for name in ("lru_hash", "lru_percpu_hash")
}
_CALLS = {
    "bpf_get_current_comm": "bpf_get_current_comm(&comm, sizeof(comm))",
    **{
        name: f"{name}(&to, sizeof(to), from)"
        for name in (
            "bpf_probe_read", "bpf_probe_read_str", "bpf_probe_read_kernel", "bpf_probe_read_kernel_str",
            "bpf_probe_read_user", "bpf_probe_read_user_str",
        )
    },
}  # fmt: skip
# What people call who know libbpf, the kernel, or the C library.
_PRINT = 'bpf_trace_printk("pid %d\\n", pid) prints'
# Without branches: following those of a loop that ends early, the verifier gives up on texts of fifteen characters.
BYTE_BY_BYTE = (
    'char want[] = "bash", other = 0; for (int i = 0; i < sizeof(want); i++) other |= comm[i] ^ want[i]; '
    "if (other) return 0;"
)
_COMPARE = f"a BPF program has no C library: compare byte by byte, {BYTE_BY_BYTE}"
_SEARCH = "a BPF program has no C library: go byte by byte, in a loop of a fixed number of rounds"
_LENGTH = "a BPF program has no C library: bpf_probe_read_kernel_str() and bpf_probe_read_user_str() return the length"
_OTHER_FUNCTIONS = {
    **dict.fromkeys(("printf", "printk", "bpf_printk", "puts", "fprintf"), _PRINT),
    **dict.fromkeys(("strcmp", "strncmp", "memcmp", "bcmp"), _COMPARE),
    **dict.fromkeys(("strstr", "strchr", "strcasecmp"), _SEARCH),
    **dict.fromkeys(("strlen", "strnlen"), _LENGTH),
    **{name: f"of a size that is a constant: __builtin_{name}()" for name in ("memcpy", "memset", "memmove")},
    **dict.fromkeys(("malloc", "free", "calloc"), "a BPF program has no heap: keep large data in a map"),
}


# What bcc's maps and outputs have instead of the helpers that libbpf's programs give the address of a map.
_HELPER_METHODS = {method.helper: method.usage for method in METHODS.values() if method.helper}


def method_instead(cell: Cell, line: int | None) -> str:
    """The method to call where a line gives a helper a map, as libbpf's programs do; "" where none does. ``line``: None
    looks at all lines."""
    tables = {m.name for m in cell.maps} | {output.name for output in cell.outputs}
    for i, token in enumerate(cell.tokens[:-1]):
        if token.text in _HELPER_METHODS and line in (None, cell.place(token.start)[0]):
            words = [word.text for argument in arguments(cell.tokens, i + 1) for word in argument]
            if table := next((word for word in words if word in tables), ""):
                return f"{table}.{_HELPER_METHODS[token.text]}"
    return ""


def _libbpf(found: re.Match[str], place: _Place) -> str:
    method = method_instead(place.cell, place.d.line)
    return f"write {method}" if method else ""


def _function(found: re.Match[str], place: _Place) -> str:
    if found[1] in _HELPER_METHODS:
        return _libbpf(found, place)
    known = [*helpers(), *REGISTERS, *(f.name for f in place.cell.functions), *place.cell.macros]
    return _OTHER_FUNCTIONS.get(found[1]) or did_you_mean(found[1], known)


def _method(found: re.Match[str], place: _Place) -> str:
    macro = place.macro_of(found[1])
    methods = _methods(macro)
    near = "" if found[2] in METHODS else did_you_mean(found[2], methods)
    return "" if _guessed(found) else near or f"{macro} has {', '.join(METHODS[name].usage for name in methods)}"


def _methods(macro: str) -> Sequence[str]:
    """The methods of what a macro declares; of a map whose kind is an argument, a table's."""
    return TABLES[macro].methods if macro in TABLES else TABLES["BPF_TABLE"].methods


def _field(found: re.Match[str], place: _Place) -> str:
    """A field that is not there: how the one meant is read, or near names, or all there are."""
    if _guessed(found):
        return ""
    wanted, event = found["field"], found["event"].replace(":", "/")
    dynamic = tracefs.dynamic_fields(event)
    plain = [field for field in _fields(event) if field not in dynamic]
    near = [wanted] if wanted in dynamic else near_names(wanted, [*plain, *dynamic])
    if any(name in dynamic for name in near):
        meant = "" if near == [wanted] else f"did you mean {' or '.join(near)}? "
        return meant + " ".join(_read_dynamic(name, dynamic[name]) for name in near if name in dynamic)
    more = f"{', '.join(dynamic)} by TP_DATA_LOC_READ_STR(text, FIELD, sizeof(text))" if dynamic and not near else ""
    return "; and ".join(filter(None, [_near(wanted, plain), more]))


def _read_dynamic(field: str, kind: str) -> str:
    if kind == "char":
        return f"{field} is text of changing length: char text[64]; TP_DATA_LOC_READ_STR(text, {field}, sizeof(text));"
    return f"{field} is an array of changing length: {kind} all[4]; TP_DATA_LOC_READ_CONST(all, {field}, sizeof(all));"


def _member(found: re.Match[str], place: _Place) -> str:
    return "" if _guessed(found) else _near(found[1], struct(place.cell, found[2])[1] or _members(found[2]))


def _identifier(found: re.Match[str], place: _Place) -> str:
    name = found[1]
    function = place.function
    if name == "ctx" and function:
        made = function.requested.startswith("TRACEPOINT_PROBE")
        other = "in TRACEPOINT_PROBE the context is called args"
        return other if made else f"give {function.name} its context: int {function.name}(struct pt_regs *ctx)"
    if name == "args" and function:
        return "args is what TRACEPOINT_PROBE(CATEGORY, EVENT) { ... } hands over: begin the function with that"
    if name == "noinline":
        return "remove the attribute: bcc puts functions into those that call them"
    words = {t.text for t in place.cell.tokens if t.kind == "word"} - {name}
    return "" if _guessed(found) else did_you_mean(name, {*words, "NULL", "true", "false"}, 0.8)


def _struct(found: re.Match[str], place: _Place) -> str:
    name = found[1]
    if name.startswith("tracepoint__"):
        category, _, event = name.removeprefix("tracepoint__").partition("__")
        return f"this kernel has no tracepoint {category}:{event}" if not _fields(f"{category}/{event}") else ""
    later, _ = struct(place.cell, name)
    if later:
        return f"declare struct {name} before it is used: it stands in line {later}"
    return did_you_mean(name, _structs(), 0.8)


def _call(found: re.Match[str], place: _Place) -> str:
    tokens = place.call
    if len(tokens) == 3:
        macro, method = place.macro_of(tokens[0].text), tokens[2].text
        return f"write {tokens[0].text}.{METHODS[method].usage}" if macro and method in _methods(macro) else ""
    name = tokens[0].text if tokens else ""
    if name in _CALLS:
        return f"write {_CALLS[name]}"
    return f"it is {helpers()[name]}" if name in helpers() else ""


def _subscript(found: re.Match[str], place: _Place) -> str:
    before = place.cell.tokens[max(place.index - 1, 0)].text
    return f"a map is read with {before}.lookup(&key)" if place.macro_of(before) else ""


def _unended(found: re.Match[str], place: _Place) -> str:
    """A string that begins on this line and ends on the next: Python has made a new line of its \\n."""
    quote, lines = found[1], place.cell.source.split("\n")
    following = lines[place.d.line] if place.d.line < len(lines) else ""
    return RAW_STRING_HINT if re.sub(r"\\.", "", following).count(quote) % 2 else ""


def _directive(found: re.Match[str], place: _Place) -> str:
    word = re.match(r"\s*#\s*(\w*)", place.text)
    known = ("define", "include", "ifdef", "ifndef", "endif", "elif", "else", "undef", "pragma")
    return (did_you_mean(word[1], known) if word else "") or "a comment begins with // in C"


def _idiom(place: _Place) -> str:
    """What is written as libbpf has it; or a macro of bcc's with other arguments than it takes."""
    if re.search(r"\bSEC\s*\(", place.text):
        return "SEC() is libbpf's: here -a PROBE=FUNCTION names the probe, and bcc says by itself that this is GPL"
    if re.search(r"\b(__uint|__type|__array)\s*\(", place.text):
        return "this is how libbpf declares a map: write BPF_HASH(NAME, KEY, VALUE, SIZE)"
    macro = place.macro()
    if not macro or not re.search(_WRONG_ARGUMENTS, place.d.message):
        return ""
    return f"write {usage(macro)}" + (", without quotes" if '"' in place.text else "")


_WRONG_ARGUMENTS = (
    r"^expected (identifier|expression)|arguments provided to function-like macro|that is no name|"
    r"not a compile-time constant"
)
_LIBRARY = r"'(std\w+|string|strings|math|errno|unistd|ctype|limits|assert|time)\.h' file not found"
_Answer = str | Callable[[re.Match[str], _Place], str]
_RULES: list[tuple[str, _Answer]] = [
    (r"there is no function (\w+)", _function),
    (r"^(\w+) has no method (\w+)", _method),
    (r"^the tracepoint (?P<event>\w+:\w+) has no field (?P<field>\w+)", _field),
    (r"^args has no member (?P<field>\w+): in (?P<event>\w+:\w+)", _field),
    (r"no member named '(\w+)' in '(?:struct |union )?(\w+)'", _member),
    (r"use of undeclared identifier '(\w+)'", _identifier),
    (
        r"unknown type name '(import|from|def)'",
        "this is Python: a cell is the C alone, bcc's BPF(text=...)",
    ),
    (r"incomplete (?:definition of )?(?:result )?type '(?:const )?struct (\w+)'", _struct),
    (r"passing 'map \w+' to parameter of incompatible type", _libbpf),
    (r"too (few|many) arguments to function call", _call),
    (_LIBRARY, "a BPF program has no C library: remove this line"),
    (r"'bpf/[\w.]+' file not found", "this header is libbpf's: remove the line, bcc has all that already"),
    (r"^missing terminating '?(['\"])'? character", _unended),
    (r"<U\+201[89CDEF]>", 'write straight quotes: "'),
    (r"must be a string literal", 'write it in the call itself: bpf_trace_printk("pid %d\\n", pid)'),
    (r"must be given a pointer", "hand over its address: &"),
    (r"is given the size of a pointer", "write sizeof(*POINTER)"),
    (r"non-static helper function", "declare it static inline"),
    (r"subscripted value is not an array", _subscript),
    (r"array type '.*' is not assignable", "copy it: __builtin_memcpy(to, from, size)"),
    (r"cannot stand in a function", "declare it before the function"),
    (r"invalid preprocessing directive", _directive),
]


def _guessed(found: re.Match[str]) -> bool:
    """Whether clang itself suggests what may be meant."""
    return "did you mean" in found.string


def _near(name: str, known: Iterable[str]) -> str:
    """Near names, else all there are, if they are few."""
    names = list(known)
    listed = f"there are {', '.join(names)}" if 0 < len(names) <= _MAX_NAMES else ""
    return did_you_mean(name, names) or listed


def _fields(event: str) -> list[str]:
    try:
        return [field for field in tracefs.fields_of(event)[1] if not field.startswith("common_")]
    except (OSError, SetupError):
        return []


def _types() -> Types | None:
    try:
        return Types(KERNEL_BTF.read_bytes(), "the kernel's")
    except (OSError, SetupError):
        return None


def _members(struct: str) -> list[str]:
    """The members of one of the kernel's structs."""
    types = _types()
    if not types:
        return []
    return [m.name for i in types.named([struct], STRUCT, UNION)[:1] for m in types.members(i) if m.name]


def _structs() -> list[str]:
    types = _types()
    return [t.name for t in types.all if t.kind == STRUCT and t.name] if types else []
