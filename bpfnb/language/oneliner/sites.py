"""Kinds of probe, as one-liners see them: how a program gets its arguments and what was returned.

A ``Site`` is one function of the generated C: one probe, or several whose arguments are had in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bpfnb.language.oneliner.expressions import Name, parse
from bpfnb.language.oneliner.question import MAX_COLUMNS, Column, Question, identifier
from bpfnb.language.oneliner.values import Integer, String, Value, of_type
from bpfnb.language.probes import KINDS
from bpfnb.language.signature import Argument, Signature, Type

__all__ = ["ENTRY_OF", "RESERVED", "RETURN_OF", "Site", "c_type", "with_columns"]

RETURN_OF = {"syscall": "sysret", "kprobe": "kretprobe", "fentry": "fexit", "uprobe": "uretprobe"}
ENTRY_OF = {returns: entry for entry, returns in RETURN_OF.items()}
LONG = Type("long", "int", 8, signed=True)  # what a register holds, where nothing is known of it
_CALLER_MEMORY = ("syscall", "sysret", "uprobe", "uretprobe", "usdt")
_PARAMETERS = ("syscall", "kprobe", "uprobe")  # the engine reads a function's parameters from registers
_MAX_REGISTERS = 6
_CONTEXTS = {
    "tracepoint": "void *ctx",
    "rawtracepoint": "struct bpf_raw_tracepoint_args *ctx",
    "fentry": "unsigned long long *ctx",
    "fexit": "unsigned long long *ctx",
    **dict.fromkeys(("profile", "software", "hardware"), "struct bpf_perf_event_data *ctx"),
}
# Names of the generated C; an argument of such a name has "_" behind it there.
RESERVED = frozenset(
    [
        "auto",
        "break",
        "case",
        "char",
        "const",
        "continue",
        "default",
        "do",
        "double",
        "else",
        "enum",
        "extern",
        "float",
        "for",
        "goto",
        "if",
        "inline",
        "int",
        "long",
        "register",
        "restrict",
        "return",
        "short",
        "signed",
        "sizeof",
        "static",
        "struct",
        "switch",
        "typedef",
        "union",
        "unsigned",
        "void",
        "volatile",
        "while",
        "bool",
        "true",
        "false",
        "args",
        "by",
        "call",
        "calls",
        "comm",
        "count",
        "counts",
        "cpu",
        "ctx",
        "current",
        "errno",
        "event",
        "events",
        "found",
        "frame",
        "hist",
        "key",
        "latency",
        "length",
        "other",
        "pid",
        "ppid",
        "probe",
        "retval",
        "same",
        "skip",
        "slot",
        "start",
        "stats",
        "text",
        "thread",
        "tid",
        "time",
        "traces",
        "uid",
        "gid",
        "cgroup",
        "unread",
        "value",
        "values",
        "end",
    ]
)
_PLAIN = frozenset(
    ("char", "int", "unsigned int", "long", "unsigned long", "size_t", "short", "unsigned short", "unsigned char")
)


def c_type(type_: Type) -> str:
    """Return a type of C that any header has and that holds such a value."""
    if type_.kind == "string":
        return "const char *"
    if type_.kind in ("pointer", "array"):
        return "void *"
    if type_.text in _PLAIN:
        return type_.text
    size = type_.size if type_.size in (1, 2, 4, 8) else 8
    return f"{'s' if type_.signed else 'u'}{8 * size}"


@dataclass
class Site:
    """One function. ``signature``: of its probes, or of the first. ``used``: positions of arguments that it uses."""

    kind: str
    signature: Signature
    probes: Sequence[str]
    function: str
    used: set[int]

    @property
    def returns(self) -> bool:
        return self.kind in ENTRY_OF

    @property
    def has_entry(self) -> bool:
        """Return whether the probe is a function's, so that it has an entry and a return."""
        return self.kind in RETURN_OF or self.kind in ENTRY_OF

    def arguments(self) -> dict[str, Argument]:
        """Return the arguments by name, and by position as arg0 ... arg5."""
        known = {argument.name: argument for argument in self.given() if argument.name}
        for argument in self.given():
            known.setdefault(f"arg{argument.position}", argument)
        return known

    def given(self) -> Sequence[Argument]:
        """Return the arguments. Nothing is known of those of a program's functions: registers, with a sign."""
        if ENTRY_OF.get(self.kind, self.kind) == "uprobe":
            return [Argument(f"arg{position}", LONG, position) for position in range(_MAX_REGISTERS)]
        if ENTRY_OF.get(self.kind, self.kind) in _PARAMETERS:
            return [argument for argument in self.signature.arguments if 0 <= argument.position < _MAX_REGISTERS]
        return self.signature.arguments

    def argument(self, argument: Argument) -> Value:
        """Return an argument as the site's function has it."""
        self.used.add(argument.position)
        type_ = argument.type
        user = type_.user or self.kind in _CALLER_MEMORY
        place: Literal["user", "kernel"] = "user" if user else "kernel"
        code = self.code(argument)
        if argument.located:
            offset = f"(*(u32 *)&args->data_loc_{argument.name} & 0xffff)"
            return String(f"((char *)args + {offset})", "kernel")
        if type_.kind == "string":
            return String(code if type_.count else f"({code})", place, type_.count)
        if type_.kind == "array" and type_.to and type_.to.size == 1:
            return String(code, place, type_.count)
        if type_.kind == "pointer":
            return of_type(f"(u64){code}", type_)
        return of_type(code, type_)

    def code(self, argument: Argument) -> str:
        """Return the C of an argument."""
        if self.kind in _PARAMETERS:
            return self.parameter(argument)
        if self.kind == "tracepoint":
            return f"args->{argument.name}"
        if self.kind == "usdt":
            return self.parameter(argument)
        index = f"ctx->args[{argument.position}]" if self.kind == "rawtracepoint" else f"ctx[{argument.position}]"
        return f"(({c_type(argument.type)}){index})"

    def parameter(self, argument: Argument) -> str:
        name = identifier(argument.name) or f"arg{argument.position}"
        return f"{name}_" if name in RESERVED else name

    def retval(self) -> Integer:
        """Return what was returned."""
        type_ = self.signature.returns or LONG
        if self.kind in ("sysret", "uretprobe") or type_.kind in ("void", "unknown", "struct", "float", "array"):
            type_ = LONG
        register = f"ctx[{len(self.signature.arguments)}]" if self.kind == "fexit" else "PT_REGS_RC(ctx)"
        return of_type(f"({c_type(type_)}){register}", type_)

    def head(self) -> str:
        """Return the function's first line, and what it reads its arguments with."""
        if self.kind == "tracepoint" and self.used:
            category, event = self.probes[0].split(":")[1:]
            return f"TRACEPOINT_PROBE({category}, {event}) {{\n"
        context = _CONTEXTS.get(self.kind, "struct pt_regs *ctx")
        parameters = [context]
        if self.kind in _PARAMETERS and self.used:
            arguments = {argument.position: argument for argument in self.arguments().values()}
            for position in range(max(self.used) + 1):
                argument = arguments.get(position) or Argument(f"arg{position}", LONG, position)
                declared = c_type(argument.type)
                parameters.append(f"{declared}{'' if declared.endswith('*') else ' '}{self.parameter(argument)}")
        lines = f"int {self.function}({', '.join(parameters)}) {{\n"
        if self.kind == "usdt":
            by_position = {argument.position: argument for argument in self.arguments().values()}
            for position in sorted(self.used):
                argument = by_position[position]
                declared = c_type(argument.type)
                name = self.parameter(argument)
                lines += f"    {declared}{'' if declared.endswith('*') else ' '}{name} = 0;\n"
                lines += f"    bpf_usdt_readarg({position + 1}, ctx, &{name});\n"
        return lines

    @property
    def attaches_itself(self) -> bool:
        return self.kind == "tracepoint" and bool(self.used)

    @property
    def reads_registers(self) -> bool:
        return KINDS[self.kind].arguments in ("registers", "syscall") or self.kind == "usdt"


def with_columns(question: Question, signatures: Sequence[Signature]) -> Question:
    """Return rows with the columns they have: those asked for, else pid, comm and the first probe's arguments that are
    numbers or strings. ``time`` is the event's own."""
    if question.verb != "rows":
        return question
    columns = question.columns
    if not columns:
        first = signatures[0]
        site = Site(first.probe.partition(":")[0], first, [first.probe], "", set())
        arguments = [argument for argument in site.given() if _is_plain(argument.type) and argument.name.isidentifier()]
        names = dict.fromkeys(["pid", "comm", *(argument.name for argument in arguments)])
        columns = tuple(Column(name, parse(name, "column")) for name in list(names)[:MAX_COLUMNS])
    return replace(question, columns=tuple(column for column in columns if column.expression.root != Name("time")))


def _is_plain(type_: Type) -> bool:
    return type_.kind in ("int", "bool", "enum", "string", "pointer")
