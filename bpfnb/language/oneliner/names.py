"""The names that expressions use, and the C that has their values: of the task, of the probe, of the call."""

from __future__ import annotations

import itertools
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Literal

from bpfnb.errors import ProgramError, near_or_all
from bpfnb.language.oneliner.expressions import Expression, Member, Name, Node
from bpfnb.language.oneliner.question import identifier
from bpfnb.language.oneliner.sites import Site
from bpfnb.language.oneliner.values import S64, Integer, String, Value, of_type
from bpfnb.language.signature import Argument, Type

__all__ = ["AT_RETURN", "TASK", "Kept", "Names", "unused"]

# What is had without asking the probe: the C that declares it, and its type.
TASK = {
    "pid": ("int pid = bpf_get_current_pid_tgid() >> 32;", "int", 0, (1 << 31) - 1),
    "tid": ("int tid = bpf_get_current_pid_tgid();", "int", 0, (1 << 31) - 1),
    "ppid": ("int ppid = parent();", "int", 0, (1 << 31) - 1),
    "uid": ("u32 uid = bpf_get_current_uid_gid();", "u32", 0, (1 << 32) - 1),
    "gid": ("u32 gid = bpf_get_current_uid_gid() >> 32;", "u32", 0, (1 << 32) - 1),
    "cpu": ("int cpu = bpf_get_smp_processor_id();", "int", 0, (1 << 15) - 1),
    "cgroup": ("u64 cgroup = bpf_get_current_cgroup_id();", "u64", 0, (1 << 64) - 1),
    "time": ("u64 time = bpf_ktime_get_ns();", "s64", 0, S64[1]),
}
AT_RETURN = ("retval", "errno", "latency")


@dataclass
class Kept:
    """A value of a call's entry that its return uses. ``node``: what is evaluated at the entry; ``text``: a string that
    is copied there, else an address or a number."""

    member: str
    node: Node
    text: bool


@dataclass
class Names:
    """The names of one function. ``declared``: C of the local variables that are used, in the order of their use.

    ``kept``: at a return whose entry is probed too, what is kept of the entry; None where arguments are at hand.
    """

    site: Site
    returning: bool
    paths: tuple[tuple[str, ...], ...]
    number: str = "0"  # C that says which probe fired
    kept: dict[Node, Kept] | None = None
    text_size: int = 64
    declared: dict[str, str] = field(default_factory=dict)

    # --- a Scope

    def name(self, expression: Expression, name: str) -> Value:
        if name in TASK:
            line, kind, low, high = TASK[name]
            self.declared[name] = line
            return Integer(name, kind, low, high, meaning=Type(name, "unknown"))  # type: ignore[arg-type]
        if name == "comm":
            self.declared["comm"] = "char comm[TASK_COMM_LEN] = {};\n    bpf_get_current_comm(&comm, sizeof(comm));"
            return String("comm", "local", 16)
        if name == "probe":
            self.declared["probe"] = f"u32 probe = {self.number};"
            return Integer("probe", "u32", 0, (1 << 32) - 1, meaning=Type("probe", "unknown"))
        if name in AT_RETURN:
            return self.at_return(expression, name)
        return self.of_entry(expression, Name(name))

    def member(self, expression: Expression, path: tuple[str, ...]) -> Value:
        if path[0] == "args" and len(path) == 2:
            return self.of_entry(expression, Name(path[1]))
        return self.of_entry(expression, Member(path[1:] if path[0] == "args" else path))

    def string_at(self, expression: Expression, address: Node) -> Value | None:
        if self.kept is None or self.site.kind == "sysret" or not isinstance(address, Name | Member):
            return None
        self.of_entry(expression, address)  # is there such a name?
        return self.keep(address, text=True)

    # --- inside

    def at_return(self, expression: Expression, name: str) -> Value:
        if not self.returning:
            kinds = "syscall, kprobe, fentry and uprobe probes"
            raise expression.error(f"{self.site.probes[0]} does not return: {name} is of {kinds}")
        if name == "latency":
            self.declared["latency"] = "u64 latency = end - call.start;"
            return Integer("latency", "s64", 0, S64[1], meaning=Type("latency", "unknown"))
        value = self.site.retval()
        line = f"{'s64' if value.type == 's64' else value.type} retval = {value.code};"
        self.declared["retval"] = line
        retval = Integer("retval", value.type, value.low, value.high, meaning=Type("retval", "unknown"))
        if name == "retval":
            return retval
        self.declared["errno"] = "int errno = retval < 0 && retval >= -4095 ? -retval : 0;"
        if value.low >= 0:
            self.declared["errno"] = "int errno = (s64)retval < 0 && (s64)retval >= -4095 ? -(s64)retval : 0;"
        return Integer("errno", "int", 0, 4095, meaning=Type("errno", "unknown"))

    def of_entry(self, expression: Expression, node: Name | Member) -> Value:
        """Return an argument, or a member that it leads to; at a return, as it was kept at the entry."""
        value = self.argument(expression, node)
        if self.kept is None:
            return value
        if isinstance(value, String):
            if self.site.kind == "sysret":  # its memory is certainly there by then
                self.keep(node, text=False)
                return String(f"call.{self.kept[node].member}", value.place, value.size)
            return self.keep(node, text=True)
        self.keep(node, text=False)
        return Integer(f"call.{self.kept[node].member}", value.type, value.low, value.high, meaning=value.meaning)

    def keep(self, node: Node, *, text: bool) -> String:
        assert self.kept is not None
        if node not in self.kept or text:
            name = node.name if isinstance(node, Name) else "_".join(node.path) if isinstance(node, Member) else ""
            base = identifier(name) or "value"
            taken = {kept.member for key, kept in self.kept.items() if key != node} | {"start", "probe"}
            self.kept[node] = Kept(unused(base, taken), node, text)
        return String(f"call.{self.kept[node].member}", "local", self.text_size)

    def argument(self, expression: Expression, node: Name | Member) -> Value:
        arguments = self.site.arguments()
        name = node.name if isinstance(node, Name) else node.path[0]
        if name not in arguments:
            raise self.unknown(expression, name, arguments)
        if isinstance(node, Name):
            found = arguments[name]
            if found.type.kind in ("struct", "float", "array", "void") and not _is_text(found.type):
                raise expression.error(f"{name} is {found.type.text}, which is neither a number nor a string")
            return self.site.argument(found)
        return self.through(expression, node, arguments[name])

    def unknown(self, expression: Expression, name: str, arguments: dict[str, Argument]) -> ProgramError:
        probe = self.site.probes[0]
        known = [*arguments, *TASK, "comm", "probe", *(AT_RETURN if self.site.has_entry else ())]
        more = near_or_all(name, known)
        return expression.error(f"{probe} has no {name}{more}")

    def through(self, expression: Expression, node: Member, argument: Argument) -> Value:
        """Return a member: embedded structs are stepped into, pointers are read."""
        signature = self.site.signature
        types = dict(zip(self.paths, signature.members, strict=False)).get(node.path, ())
        if len(types) < len(node.path):
            known = max(len(types), 1)
            of = types[known - 1].text if types else argument.type.text
            near = dict(zip(self.paths, signature.near, strict=False)).get(node.path, ())
            more = f"; did you mean {' or '.join(near[:3])}?" if near else ""
            message = f"{'.'.join(node.path[:known])} is {of}, which has no member {node.path[known]}"
            raise expression.error(message + more)
        first = types[0]
        if first.kind != "pointer":
            raise expression.error(f"{node.path[0]} is {first.text}: members are read through a pointer")
        place: Literal["kernel", "user"] = "user" if first.user else "kernel"
        code = f"(({_pointer(first)}){self.site.code(argument)})"
        self.site.used.add(argument.position)
        path = ""
        for name, type_, is_last in zip(node.path[1:], types[1:], [False] * (len(types) - 2) + [True], strict=True):
            path = f"{path}.{name}" if path else name
            if type_.kind == "pointer" and not is_last:
                code, path = f"({_read(_pointer(type_), f'&{code}->{path}', place)})", ""
        return self.read(expression, node, f"&{code}->{path}", types[-1], place)

    def read(
        self, expression: Expression, node: Member, address: str, type_: Type, place: Literal["kernel", "user"]
    ) -> Value:
        if _is_text(type_) and type_.count:
            return String(f"({address})", place, type_.count)
        if type_.kind == "string":
            return String(f"({_read('char *', address, place)})", place)
        if type_.kind in ("int", "bool", "enum", "pointer"):
            kind = "u64" if type_.kind == "pointer" else _integer(type_)
            return of_type(f"({_read(kind, address, place)})", type_)
        raise expression.error(f"{'.'.join(node.path)} is {type_.text}, which is neither a number nor a string")


def unused(base: str, taken: Container[str]) -> str:
    """Return a name that is not taken: this one, else with the least number behind it."""
    numbered = (f"{base}{n}" for n in itertools.count(2))
    return next(name for name in itertools.chain([base], numbered) if name not in taken)


def _is_text(type_: Type) -> bool:
    return type_.kind == "string" or (type_.kind == "array" and type_.to is not None and type_.to.size == 1)


def _integer(type_: Type) -> str:
    return f"{'s' if type_.signed else 'u'}{8 * (type_.size or 4)}"


def _pointer(type_: Type) -> str:
    """Return the pointer to a struct as C writes it."""
    text = type_.to.text if type_.to else type_.text.rstrip(" *")
    return f"{text.removeprefix('const ')} *"


def _read(kind: str, address: str, place: str) -> str:
    declared = kind if kind.endswith("*") else f"{kind} "
    read = f"bpf_probe_read_{place}(&value, sizeof(value), {address})"
    return f"{{ {declared}value = 0; if ({read}) return skip(); value; }}"
