"""Reading a cell's C: its functions, tables, macros and tokens, without a compiler.

bcc's C is full of macros a C grammar cannot parse (``TRACEPOINT_PROBE(a, b) {``, ``BPF_HASH(counts, u32, struct k)``,
``const char __user *p``). So the text is first *masked*: comments, directives, dead code, attribute words and bcc's own
macros are replaced by text of equal length, then tree-sitter parses the signatures. Offsets in the masked text are
offsets in the cell, in characters (non-ASCII becomes ``_``).

Nobody's syntax errors are reported here: clang says it better. A cell with text that could not be read is ``doubtful``.
"""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import tree_sitter
import tree_sitter_c

from bpfnb.errors import ProgramError

__all__ = [
    "Body",
    "Cell",
    "Function",
    "Macro",
    "MapDecl",
    "Output",
    "Token",
    "arguments",
    "closing",
    "declared",
    "declares",
    "floating",
    "function_declarator",
    "lex",
    "parse_c",
    "scan",
    "struct",
    "walk",
]


class Function(msgspec.Struct, frozen=True):
    """One function of the cell. ``name``: as bcc compiles it. ``line``, ``column``: of its name, from 1.

    ``parameters``: each one's text. ``conditional``: stands in an ``#if`` this module could not decide, so it may turn
    out not to be compiled.
    """

    name: str
    line: int
    column: int
    static: bool
    parameters: tuple[str, ...]
    conditional: bool = False


class Output(msgspec.Struct, frozen=True):
    """A stream of events: ``kind`` is "perf" (BPF_PERF_OUTPUT) or "ringbuf" (BPF_RINGBUF_OUTPUT)."""

    name: str
    kind: str
    line: int


class MapDecl(msgspec.Struct, frozen=True):
    """A table that is no output. ``macro``: the macro that declared it, such as "BPF_HASH". ``type``: of BPF_TABLE and
    its like, the kind it names, such as "lru_hash". ``pinned``: the file it is pinned at, or ""."""

    name: str
    macro: str
    line: int
    type: str = ""
    pinned: str = ""

    @property
    def holds_programs(self) -> bool:
        return self.macro == "BPF_PROG_ARRAY" or self.type == "prog"


# --- the text --------------------------------------------------------------------------------------------------------

_WORD = re.compile(r"\w+", re.ASCII)
_SPLICE = r"\\\r?\n"
_LEXER = re.compile(
    rf"""
    (?P<comment> //(?:{_SPLICE}|[^\n])* | /\*.*?(?:\*/|\Z) )
    | (?P<string> (?:u8|[uUL])?"(?:\\.|[^"\\\n])*"? )
    | (?P<char> [uUL]?'(?:\\.|[^'\\\n])*'? )
    | (?P<number> \.?[0-9](?:[eEpP][+-]|[\w.])* )
    | (?P<word> [^\W\d]\w* )
    | (?P<space> (?:\s|{_SPLICE})+ )
    | (?P<punct> -> | \#\# | . )
    """,
    re.VERBOSE | re.DOTALL,
)
_DIRECTIVE = re.compile(
    rf"""\#(?: {_SPLICE} | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' | /\*.*?(?:\*/|\Z) | //(?:{_SPLICE}|[^\n])*
         | [^\n] )*""",
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    """A token of C that is no white space: ``kind`` is comment, string, char, number, word, punct or directive."""

    kind: str
    text: str
    start: int
    end: int


_CLOSES = {"(": ")", "[": "]", "{": "}"}


def lex(text: str, start: int = 0, end: int | None = None, *, directives: bool = False) -> Iterator[Token]:
    """The tokens of ``text[start:end]``. A directive is one token, if they are asked for."""
    fresh = True  # nothing but white space and comments so far on this line
    at, end = start, len(text) if end is None else end
    while at < end:
        match = _DIRECTIVE.match(text, at, end) if directives and fresh and text[at] == "#" else None
        kind = "directive" if match else ""
        match = match or _LEXER.match(text, at, end)
        assert match is not None  # the last alternative takes any character
        kind = kind or str(match.lastgroup)
        at = match.end()
        if kind == "space":
            fresh = fresh or "\n" in match.group().replace("\\\n", "").replace("\\\r\n", "")
            continue
        fresh = fresh and kind == "comment"
        yield Token(kind, match.group(), match.start(), at)


def closing(tokens: Sequence[Token], index: int) -> int:
    """The index of the bracket that closes the one at ``index``; len(tokens) where none does, or the wrong one."""
    due: list[str] = []
    for i in range(index, len(tokens)):
        text = tokens[i].text
        if text in _CLOSES:
            due.append(_CLOSES[text])
        elif text in _CLOSES.values():
            if not due or due.pop() != text:
                break
            if not due:
                return i
    return len(tokens)


def arguments(tokens: Sequence[Token], index: int) -> list[list[Token]]:
    """The tokens of each argument in the brackets opened at ``index``; [[]] for ``f()``."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens[index + 1 : closing(tokens, index)]:
        if token.kind == "punct":
            depth += (token.text in "([{") - (token.text in ")]}")
        if token.text == "," and not depth:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _opens(tokens: Sequence[Token], index: int) -> bool:
    return index < len(tokens) and tokens[index].text == "("


@dataclasses.dataclass(frozen=True)
class Macro:
    """A ``#define`` of the cell. ``tokens`` is its body; ``parameters`` is None for an object-like one."""

    name: str
    parameters: tuple[str, ...] | None
    tokens: tuple[Token, ...]

    def expand(self, args: Sequence[str]) -> str:
        """The body with the arguments put in, ``#`` and ``##`` done: enough for macros that define functions."""
        names = self.parameters or ()
        values = dict(zip(names, args, strict=False))
        if names and names[-1] == "__VA_ARGS__":
            values["__VA_ARGS__"] = ", ".join(args[len(names) - 1 :])
        out = ""
        previous = ""
        for token in self.tokens:
            text = values.get(token.text, token.text) if token.kind == "word" else token.text
            if previous == "#" and token.text in values:
                out, text = out[:-1], '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
            if token.text == "##" or previous == "##":
                out = out.rstrip()
            out += "" if token.text == "##" else text if token.text == "#" else text + " "
            previous = token.text
        return out


@dataclasses.dataclass
class Body:
    """A function found in the text. Offsets are into the cell; ``open`` and ``close`` are its braces.

    ``probe``, ``requested``: what its name or macro asks for by itself. ``generated``: a macro of the cell wrote it, so
    the offsets are those of the macro's use and there is no text of its own.
    """

    name: str
    name_at: int
    start: int
    open: int
    close: int
    static: bool
    parameters: tuple[str, ...]
    conditional: bool
    tokens: list[Token]
    requested: str
    probe: tuple[str, str] | None = None
    generated: bool = False

    def uses(self, names: Iterable[str]) -> bool:
        """Whether the function's text, its signature left out, has one of these names."""
        words = {t.text for t in self.tokens if t.start > self.open}
        return not words.isdisjoint(names)

    def public(self, cell: Cell) -> Function:
        line, column = cell.place(self.name_at)
        return Function(self.name, line, column, self.static, self.parameters, self.conditional)


@dataclasses.dataclass
class Cell:
    """The text, read. Offsets count characters of ``source``; so do those into ``masked``, which is ASCII.

    ``tokens``: all that may be compiled, comments and directives left out. ``masked``: the same as text, attribute
    words and the branches that would unbalance braces blanked. ``doubtful``: something here could not be read, so a
    function may exist that is not in ``functions``.
    """

    source: str
    tokens: list[Token] = dataclasses.field(default_factory=list)
    directives: list[Token] = dataclasses.field(default_factory=list)
    macros: dict[str, list[Macro]] = dataclasses.field(default_factory=dict)
    functions: list[Body] = dataclasses.field(default_factory=list)
    outputs: list[Output] = dataclasses.field(default_factory=list)
    maps: list[MapDecl] = dataclasses.field(default_factory=list)
    masked: str = ""
    doubtful: bool = False

    def __post_init__(self) -> None:
        self._starts = [0, *(m.end() for m in re.finditer("\n", self.source))]

    def place(self, at: int) -> tuple[int, int]:
        """Line and column of an offset, from 1."""
        line = bisect.bisect_right(self._starts, at)
        return line, at - self._starts[line - 1] + 1

    def error(self, message: str, at: int, *, hint: str | None = None) -> ProgramError:
        line, column = self.place(at)
        return ProgramError(message, line=line, column=column, hint=hint, source=self.source)

    def mentions(self, tokens: Iterable[Token], name: str) -> bool:
        """Whether the tokens contain the name, by themselves or through the macros they use."""
        return any(t.text == name for t in self.expanded(tokens))

    def expanded(self, tokens: Iterable[Token]) -> Iterator[Token]:
        """The words of the tokens and of the bodies of all macros they use, however deep."""
        seen: set[str] = set()
        todo = list(tokens)
        while todo:
            token = todo.pop()
            if token.kind != "word":
                continue
            yield token
            if token.text not in seen:
                seen.add(token.text)
                todo += [t for macro in self.macros.get(token.text, ()) for t in macro.tokens]


def scan(source: str, cflags: Sequence[str] = ()) -> Cell:
    """Read the text: tokens, macros, functions, tables. The rewriter starts from the same reading."""
    cell = Cell(source)
    conditionals = _Conditionals(_defined(cflags))
    for token in lex(source, directives=True):
        if token.kind == "directive":
            live = conditionals.directive(token)
            if live and (macro := _macro(token)):
                cell.macros.setdefault(macro.name, []).append(macro)
            if live:
                cell.directives.append(token)
        elif token.kind != "comment" and conditionals.state != "dead":
            cell.tokens.append(token)
    conditionals.finish(len(source))
    hidden = conditionals.hidden(cell.tokens)
    visible = [t for t in cell.tokens if not _within(t.start, hidden)]
    _Structure(cell, visible, conditionals.maybe).read()
    cell.functions.sort(key=lambda f: f.name_at)
    return cell


def struct(cell: Cell, name: str) -> tuple[int, list[str]]:
    """The line in which the cell declares a struct or a union, and its members; (0, []) where it does not."""
    for node in walk(parse_c(cell.masked)):
        tag, body = node.child_by_field_name("name"), node.child_by_field_name("body")
        if node.type in ("struct_specifier", "union_specifier") and body and tag and tag.text == name.encode():
            members = [n for n in walk(body) if n.type == "field_identifier"]
            return cell.place(node.start_byte)[0], [(n.text or b"").decode() for n in members]
    return 0, []


def floating(cell: Cell) -> Iterator[tuple[str, str, int]]:
    """The members of structs that are floating-point numbers: name, type, and where the name stands."""
    root = parse_c(cell.masked)
    types = {"float", "double"}
    for node in walk(root):
        kind, name = node.child_by_field_name("type"), node.child_by_field_name("declarator")
        if not (kind and name and types & set(_WORD.findall((kind.text or b"").decode()))):
            continue
        if node.type == "type_definition":
            types.add((name.text or b"").decode())
        elif node.type == "field_declaration" and (
            named := next((n for n in walk(name) if "identifier" in n.type), None)
        ):
            at = named.start_byte
            yield cell.source[at : named.end_byte], cell.source[kind.start_byte : kind.end_byte], at


def declared(cell: Cell) -> set[str]:
    """The names the cell gives: to functions, types, enumerators, variables, parameters and members."""
    names = {f.name for f in cell.functions}
    for node in walk(parse_c(cell.masked)):
        for field in ("declarator", "name"):
            child = node.child_by_field_name(field)
            if child and child.type in ("identifier", "type_identifier", "field_identifier"):
                names.add((child.text or b"").decode())
    return names


def _within(at: int, ranges: Iterable[tuple[int, int]]) -> bool:
    return any(start <= at < end for start, end in ranges)


def _defined(cflags: Sequence[str]) -> set[str]:
    flags = " ".join(cflags)
    return set(re.findall(r"(?:^|\s)-D\s*([A-Za-z_]\w*)", flags))


def _directive(token: Token) -> tuple[str, str, int]:
    """Name, rest and the rest's offset of a directive; comments and splices are blanks."""
    text = re.sub(_SPLICE, lambda m: " " * len(m.group()), token.text)
    clean = "".join(" " * len(t.text) if t.kind == "comment" else t.text for t in _with_space(text))
    match = re.match(r"#\s*(\w*)[ \t]*", clean)
    assert match is not None  # a directive token starts with "#"
    return match[1], clean[match.end() :].rstrip(), token.start + match.end()


def _with_space(text: str) -> Iterator[Token]:
    """All of the text as tokens, white space too."""
    at = 0
    for token in lex(text):
        if token.start > at:
            yield Token("space", text[at : token.start], at, token.start)
        yield token
        at = token.end
    yield Token("space", text[at:], at, len(text))


def _macro(directive: Token) -> Macro | None:
    name, rest, at = _directive(directive)
    match = re.match(r"([A-Za-z_]\w*)(\(([^)]*)\))?", rest) if name == "define" else None
    if not match:
        return None
    parameters = None
    if match[2]:
        parameters = tuple(p.strip().removesuffix("...").strip() or "__VA_ARGS__" for p in match[3].split(","))
        parameters = () if not match[3].strip() else parameters
    body = [Token(t.kind, t.text, t.start + at, t.end + at) for t in lex(rest, match.end())]
    return Macro(match[1], parameters, tuple(body))


@dataclasses.dataclass
class _Branch:
    start: int
    state: str
    end: int = 0


class _Conditionals:
    """Follows #if ... #endif. The state of the text at hand is "live", "maybe" (cannot tell) or "dead" (surely not)."""

    def __init__(self, defined: set[str]) -> None:
        self.state = "live"
        self.maybe: list[tuple[int, int]] = []
        self._defined = defined
        self._open: list[list[_Branch]] = []
        self._closed: list[list[_Branch]] = []

    def directive(self, token: Token) -> bool:
        """Take a directive in; whether it is one that counts (not dead, not about conditions)."""
        name, rest, _ = _directive(token)
        if name in ("if", "ifdef", "ifndef"):
            self._open.append([_Branch(token.end, self._first(name, rest))])
        elif name in ("elif", "else") and self._open:
            self._open[-1][-1].end = token.start
            self._open[-1].append(_Branch(token.end, self._next(self._open[-1], name, rest)))
        elif name == "endif" and self._open:
            self._close(token.start)
        else:
            self._note(name, rest)
            return self.state != "dead"
        states = [group[-1].state for group in self._open]
        self.state = "dead" if "dead" in states else "maybe" if "maybe" in states else "live"
        return False

    def finish(self, end: int) -> None:
        while self._open:
            self._close(end)

    def hidden(self, tokens: Sequence[Token]) -> list[tuple[int, int]]:
        """Alternatives to leave out, so that the braces of what stays in balance: all but the first."""
        ranges = []
        for group in self._closed:
            present = [b for b in group if b.state != "dead"]
            if any(_net(t for t in tokens if b.start <= t.start < b.end) for b in present):
                ranges += [(b.start, b.end) for b in present[1:]]
        return ranges

    def _close(self, end: int) -> None:
        group = self._open.pop()
        group[-1].end = end
        self._closed.append(group)
        self.maybe += [(b.start, b.end) for b in group if b.state == "maybe"]

    def _note(self, name: str, rest: str) -> None:
        macro = re.match(r"\w+", rest)
        if macro and name == "define" and self.state == "live":
            self._defined.add(macro.group())
        elif macro and name == "undef":
            self._defined.discard(macro.group())

    def _first(self, name: str, rest: str) -> str:
        if name == "if":
            return {True: "live", False: "dead", None: "maybe"}[self._truth(rest)]
        if rest.strip() not in self._defined:
            return "maybe"  # a header may define it
        return "live" if name == "ifdef" else "dead"

    def _next(self, group: list[_Branch], name: str, rest: str) -> str:
        if any(b.state == "live" for b in group):
            return "dead"
        truth = True if name == "else" else self._truth(rest)
        undecided = any(b.state == "maybe" for b in group)
        return "dead" if truth is False else "live" if truth and not undecided else "maybe"

    def _truth(self, expression: str) -> bool | None:
        words = "".join(t.text for t in lex(expression) if t.text not in "()")
        negated, words = words.startswith("!"), words.removeprefix("!")
        if re.fullmatch(r"[0-9]+", words):
            return (int(words) != 0) is not negated
        known = re.fullmatch(r"defined([A-Za-z_]\w*)", words)
        return not negated if known and known[1] in self._defined else None


def _net(tokens: Iterable[Token]) -> int:
    """How many brackets stay open."""
    marks = [t.text for t in tokens if t.kind == "punct"]
    return sum((m in "([{") - (m in ")]}") for m in marks)


# --- the structure ---------------------------------------------------------------------------------------------------

# Words the kernel's and bcc's headers define away or into attributes; a C grammar takes them for types.
_ATTRIBUTES = frozenset(
    _WORD.findall("""
    __user __kernel __rcu __iomem __percpu __force __safe __nocast __bitwise __private __always_inline __always_unused
    __maybe_unused __unused __used __must_check __noinline noinline noinline_for_stack __weak __hidden __packed __cold
    __hot __pure __attribute_const__ __init __exit __ro_after_init __read_mostly __noreturn __inline __inline__
    __restrict __restrict__ __extension__ notrace asmlinkage __visible __randomize_layout BCC_SEC_HELPERS
    """)
)
_ATTRIBUTES_WITH_ARGUMENTS = frozenset({"__attribute__", "__attribute", "__aligned", "__section", "BCC_SEC", "SEC"})
_QUALIFIERS = frozenset({"static", "inline", "const", "volatile", "extern", "register"})

# The position of the table's name among the arguments; 0 for all other BPF_ macros of bcc's helpers.h that declare one.
_NAME_AT = {
    **dict.fromkeys(("BPF_TABLE", "BPF_TABLE_PUBLIC", "BPF_TABLE_SHARED", "BPF_F_TABLE"), 3),
    **dict.fromkeys(("BPF_TABLE_PINNED", "BPF_TABLE_PINNED6", "BPF_TABLE_PINNED7"), 3),
    **dict.fromkeys(("BPF_QUEUESTACK", "BPF_QUEUESTACK_PINNED", "BPF_QUEUESTACK_PUBLIC", "BPF_QUEUESTACK_SHARED"), 1),
    **dict.fromkeys(("BPF_QUEUE_STACK3", "BPF_QUEUE_STACK4"), 1),
    "BPF_XDP_REDIRECT_MAP": 2,
}
_PINNED_AT = 5  # the position of the file's name among the arguments of the macros that pin
_TABLE = re.compile(
    r"BPF_(?:HASH|PERCPU_HASH|LRU_HASH|LRU_PERCPU_HASH|ARRAY|PERCPU_ARRAY|HISTOGRAM|HIST|LPM_TRIE|PERF_ARRAY"
    r"|CGROUP_ARRAY|STACK_TRACE|STACK_TRACE_BUILDID|PROG_ARRAY|QUEUE|STACK|DEVMAP|DEVMAP_HASH|CPUMAP|XSKMAP"
    r"|ARRAY_OF_MAPS|HASH_OF_MAPS|SK_STORAGE|INODE_STORAGE|TASK_STORAGE|SOCKMAP|SOCKHASH|SOCKMAP_COMMON|SOCKHASH_COMMON"
    r"|CGROUP_STORAGE|PERCPU_CGROUP_STORAGE|CGROUP_STORAGE_COMMON)[0-9]?"
)
_OUTPUTS = {"BPF_PERF_OUTPUT": "perf", "BPF_RINGBUF_OUTPUT": "ringbuf"}


class _Maker(NamedTuple):
    """A macro of bcc's that writes a function's signature: its first arguments make the name, the rest is kept."""

    name: str
    kind: str
    names: int
    context: str


_BPF_PROG = "unsigned long long *ctx"
_MAKERS = {
    "TRACEPOINT_PROBE": _Maker("tracepoint__{}__{}", "tracepoint", 2, "struct tracepoint__{}__{} *args"),
    "RAW_TRACEPOINT_PROBE": _Maker("raw_tracepoint__{}", "rawtracepoint", 1, "struct bpf_raw_tracepoint_args *ctx"),
    "KFUNC_PROBE": _Maker("kfunc__{}", "fentry", 1, _BPF_PROG),
    "KRETFUNC_PROBE": _Maker("kretfunc__{}", "fexit", 1, _BPF_PROG),
    "MODULE_KFUNC_PROBE": _Maker("kfunc__{}__{}", "fentry", 2, _BPF_PROG),
    "MODULE_KRETFUNC_PROBE": _Maker("kretfunc__{}__{}", "fexit", 2, _BPF_PROG),
    "LSM_PROBE": _Maker("lsm__{}", "lsm", 1, _BPF_PROG),
    "KMOD_RET": _Maker("kmod_ret__{}", "", 1, _BPF_PROG),
    "BPF_ITER": _Maker("bpf_iter__{}", "", 1, "struct bpf_iter__{} *ctx"),
    "BPF_PROG": _Maker("{}", "", 1, _BPF_PROG),
}


def declares(word: str) -> bool:
    """Whether bcc has a macro of this name that declares a table, an output or a function."""
    return word in _OUTPUTS or word in _NAME_AT or word in _MAKERS or _TABLE.fullmatch(word) is not None


_PARSER = tree_sitter.Parser(tree_sitter.Language(tree_sitter_c.language()))


def parse_c(text: str) -> tree_sitter.Node:
    """The tree of an ASCII text, whose byte offsets are character offsets."""
    return _PARSER.parse(text.encode("ascii")).root_node


def walk(node: tree_sitter.Node) -> Iterator[tree_sitter.Node]:
    """The node and all below it, in the text's order."""
    todo = [node]
    while todo:
        node = todo.pop()
        yield node
        todo += reversed(node.children)


def function_declarator(node: tree_sitter.Node) -> tree_sitter.Node | None:
    """The declarator that carries the name and the parameters: the innermost, since a function may return a pointer."""
    found = [n for n in walk(node) if n.type == "function_declarator" and _named(n)]
    return found[0] if found else None


def _named(node: tree_sitter.Node) -> bool:
    name = node.child_by_field_name("declarator")
    return name is not None and name.type == "identifier"


class _Made(NamedTuple):
    """A function whose signature a macro wrote."""

    name: str
    parameters: tuple[str, ...]
    static: bool
    requested: str
    probe: tuple[str, str] | None
    generated: bool


class _Structure:
    """Finds functions and tables at the top level of the visible tokens, and leaves them in the cell."""

    def __init__(self, cell: Cell, visible: list[Token], maybe: list[tuple[int, int]]) -> None:
        self.cell = cell
        self.tokens = visible
        self.maybe = maybe
        self.text = _blank(cell.source)  # signatures only: what tree-sitter gets
        self.braces: dict[int, int] = {}  # the index of a top-level "{" among the tokens, by offset
        self.made: dict[int, _Made] = {}
        self.statics: list[int] = []

    def read(self) -> None:
        self._mask()
        self._top_level()
        root = parse_c("".join(self.text))
        self.cell.doubtful |= root.has_error
        for node in walk(root):
            if node.type == "function_definition":
                self._function(node)

    def _mask(self) -> None:
        """Drop attribute words, the cell's own names for them too, then keep the result as ``cell.masked``."""
        kept = []
        i = 0
        while i < len(self.tokens):
            token = self.tokens[i]
            if token.text in _ATTRIBUTES_WITH_ARGUMENTS and _opens(self.tokens, i + 1):
                i = closing(self.tokens, i + 1)
            elif self._is_attribute(token.text):
                if any(t.text == "static" for t in self.cell.expanded([token])):
                    self.statics.append(token.start)
            else:
                kept.append(token)
            i += 1
        self.tokens = kept
        masked = _blank(self.cell.source)
        for token in kept:
            _fill(masked, token.start, token.text)
        self.cell.masked = "".join(masked)

    def _is_attribute(self, word: str, depth: int = 8) -> bool:
        if word in _ATTRIBUTES:
            return True
        macros = self.cell.macros.get(word)
        if not macros or macros[0].parameters is not None or not depth:
            return False
        words = [t.text for t in _no_arguments(macros[0].tokens)]
        return all(word in _QUALIFIERS or self._is_attribute(word, depth - 1) for word in words)

    def _top_level(self) -> None:
        i = 0
        while i < len(self.tokens):
            token = self.tokens[i]
            if token.text == "{":
                self.braces[token.start] = i
                end = closing(self.tokens, i)
                _fill(self.text, token.start, "{")
                if end < len(self.tokens):
                    _fill(self.text, self.tokens[end].start, "}")
                i = end + 1
            elif token.kind == "word" and _opens(self.tokens, i + 1):
                i = self._call(i)
            else:
                _fill(self.text, token.start, token.text)
                i += 1

    def _call(self, i: int) -> int:
        """``word(`` at the top level: a table, a macro that makes a function, or a declarator. The next index."""
        token, end = self.tokens[i], closing(self.tokens, i + 1)
        word = token.text
        if word in self.cell.macros:
            self._use(i, end)
        elif word in _OUTPUTS or _TABLE.fullmatch(word) or word in _NAME_AT:
            self._table(token, arguments(self.tokens, i + 1))
        elif word in _MAKERS:
            self._make(i, end)
        elif word != "asm":
            _fill(self.text, token.start, word)
            return i + 1
        return end + 1

    def _table(self, token: Token, args: list[list[Token]]) -> None:
        index = _NAME_AT.get(token.text, 0)
        name = args[index][0].text if index < len(args) and args[index] else ""
        line = self.cell.place(token.start)[0]
        if not name:
            self.cell.doubtful = True
        elif token.text in _OUTPUTS:
            self.cell.outputs.append(Output(name, _OUTPUTS[token.text], line))
        else:
            pinned = self._string(args, _PINNED_AT) if "PINNED" in token.text else ""
            self.cell.maps.append(MapDecl(name, token.text, line, self._string(args, 0), pinned))

    def _string(self, args: list[list[Token]], index: int) -> str:
        """An argument that is a string, also by a macro's name; "" where it is none."""
        tokens = args[index] if index < len(args) else []
        macro = self.cell.macros.get(tokens[0].text) if len(tokens) == 1 else None
        strings = macro[0].tokens if macro else tokens
        return "".join(t.text[1:-1] for t in strings) if all(t.kind == "string" for t in strings) else ""

    def _make(self, i: int, end: int) -> None:
        token, maker, args = self.tokens[i], _MAKERS[self.tokens[i].text], arguments(self.tokens, i + 1)
        names = [_text(self.cell, arg) for arg in args[: maker.names]]
        if len(names) < maker.names or not all(names):
            self.cell.doubtful = True
            return
        target = ":".join(names).removeprefix("vmlinux:")
        made = _Made(
            name=maker.name.format(*names),
            parameters=(maker.context.format(*names), *(_text(self.cell, arg) for arg in args[maker.names :])),
            static=False,
            requested=f"{token.text}({', '.join(names)})" if maker.kind else names[0],
            probe=(maker.kind, target) if maker.kind else None,
            generated=False,
        )
        self._signature(token, end, made)

    def _signature(self, token: Token, end: int, made: _Made) -> None:
        """Put a signature a C grammar knows, ``int xxx()``, where a macro's use stands."""
        stop = self.tokens[end].end if end < len(self.tokens) else token.end
        if "\n" in self.cell.source[token.start : stop]:
            stop = self.cell.source.index("\n", token.start)
        if stop - token.start < len("a b()"):
            self.cell.doubtful = True
            return
        _fill(self.text, token.start, f"a {'b' * (stop - token.start - 4)}()")
        self.made[token.start + 2] = made

    def _use(self, i: int, end: int) -> None:
        """A macro of the cell's own, used at the top level: read what it expands to."""
        token, macro = self.tokens[i], self.cell.macros[self.tokens[i].text][0]
        if macro.parameters is None:
            self.cell.doubtful = True
            return
        args = [_text(self.cell, arg) for arg in arguments(self.tokens, i + 1)]
        body_follows = end + 1 < len(self.tokens) and self.tokens[end + 1].text == "{"
        written = Cell(macro.expand(args) + ("{}" if body_follows else ""))
        written.macros = {k: v for k, v in self.cell.macros.items() if k != macro.name}
        written.tokens = [t for t in lex(written.source) if t.kind != "comment"]
        _Structure(written, written.tokens, []).read()
        self.cell.doubtful |= written.doubtful
        line = self.cell.place(token.start)[0]
        self.cell.outputs += [msgspec.structs.replace(o, line=line) for o in written.outputs]
        self.cell.maps += [msgspec.structs.replace(m, line=line) for m in written.maps]
        if body_follows and written.functions:
            f = written.functions.pop()
            self._signature(token, end, _Made(f.name, f.parameters, f.static, f.requested, f.probe, True))
        self.cell.functions += [self._generated(f, token) for f in written.functions]

    def _generated(self, f: Body, use: Token) -> Body:
        maybe = _within(use.start, self.maybe)
        at = use.start
        return dataclasses.replace(f, name_at=at, start=at, open=0, close=0, conditional=maybe, generated=True)

    def _function(self, node: tree_sitter.Node) -> None:
        declarator, body = function_declarator(node), node.child_by_field_name("body")
        index = self.braces.get(body.start_byte) if body else None
        if declarator is None or body is None or index is None:
            self.cell.doubtful = True
            return
        name = declarator.child_by_field_name("declarator")
        assert name is not None  # function_declarator() returns no other
        end = closing(self.tokens, index)
        made = self.made.get(name.start_byte)
        found = Body(
            name=made.name if made else self.cell.source[name.start_byte : name.end_byte],
            name_at=node.start_byte if made else name.start_byte,
            start=node.start_byte,
            open=body.start_byte,
            close=self.tokens[end].start if end < len(self.tokens) else len(self.cell.source),
            static=made.static if made else self._static(node, declarator),
            parameters=made.parameters if made else self._parameters(declarator),
            conditional=_within(name.start_byte, self.maybe),
            tokens=self.tokens[index + 1 : end],
            requested="",
            probe=made.probe if made else None,
            generated=bool(made),
        )
        found.requested = made.requested if made and made.requested else found.name
        if all(f.name != found.name for f in self.cell.functions):  # the other half of an #if / #else
            self.cell.functions.append(found)

    def _static(self, node: tree_sitter.Node, declarator: tree_sitter.Node) -> bool:
        words = {t.text for t in lex("".join(self.text[node.start_byte : declarator.start_byte]))}
        since = max((end for end in self._ends() if end <= node.start_byte), default=0)
        return "static" in words or any(since <= at < declarator.start_byte for at in self.statics)

    def _ends(self) -> Iterator[int]:
        """Where top-level items end: after a closing brace or a semicolon."""
        return (m.end() for m in re.finditer(r"[;}]", "".join(self.text)))

    def _parameters(self, declarator: tree_sitter.Node) -> tuple[str, ...]:
        parameters = declarator.child_by_field_name("parameters")
        assert parameters is not None  # the grammar gives every function_declarator one
        inside = [t for t in self.cell.tokens if parameters.start_byte <= t.start < parameters.end_byte]
        texts = [_text(self.cell, arg) for arg in arguments(inside, 0)]
        return () if texts in ([""], ["void"]) else tuple(texts)


def _no_arguments(tokens: Sequence[Token]) -> Iterator[Token]:
    """The tokens without what stands in brackets, and without the words that take such."""
    i = 0
    while i < len(tokens):
        if tokens[i].text in _ATTRIBUTES_WITH_ARGUMENTS and _opens(tokens, i + 1):
            i = closing(tokens, i + 1)
        else:
            yield tokens[i]
        i += 1


def _text(cell: Cell, tokens: Sequence[Token]) -> str:
    """The source of some tokens on one line, comments dropped."""
    out = ""
    for before, token in zip([None, *tokens], tokens, strict=False):
        out += (" " if before and before.end < token.start else "") + token.text
    return out


def _blank(source: str) -> list[str]:
    return ["\n" if c == "\n" else " " for c in source]


def _fill(text: list[str], at: int, word: str) -> None:
    text[at : at + len(word)] = ["\n" if c == "\n" else c if c.isascii() else "_" for c in word]
