"""Functions on syscalls: their arguments and result mean the same on a kprobe and on the syscall's tracepoint."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Literal

from bpfnb.errors import BpfnbError, ProgramError, UnsupportedError, did_you_mean
from bpfnb.language.cell import Body, Cell
from bpfnb.language.probes import KINDS, Probe
from bpfnb.language.program import Program
from bpfnb.language.syntax import Node, function_declarator, parse_c, walk
from bpfnb.tracer.source_map import Edit

__all__ = ["SYSCALL_EVENTS", "Mode", "Portable"]

Mode = Literal["kprobe", "tracepoint"]

_TRACEPOINT_PRELUDE = """\
#include <uapi/linux/ptrace.h>
struct bpfnb_sys_enter { u64 bpfnb_hidden; long id; unsigned long args[6]; };
struct bpfnb_sys_exit { u64 bpfnb_hidden; long id; long ret; };
#define BPFNB_ARG(n, ctx) (((struct bpfnb_sys_enter *)(ctx))->args[(n) - 1])
#define BPFNB_FIRST(n, ctx) BPFNB_ARG(n, ctx)
#define BPFNB_READ(n, name, ctx)
#define BPFNB_RET(ctx) ((unsigned long)((struct bpfnb_sys_exit *)(ctx))->ret)
#define BPFNB_REGS(ctx) ((struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf()))
"""

# The entry functions take the caller's registers as their one argument where CONFIG_ARCH_HAS_SYSCALL_WRAPPER is set.
# The version says so too, should the headers at hand lack the configuration.
# Linux kernel commit fa697140f9a2 ("syscalls/x86: Use 'struct pt_regs' based syscall calling convention for 64-bit
# syscalls") (in v4.17); commit 4378a7d4be30 ("arm64: implement syscall wrappers") (in v4.19).
# Why a variable starts as the inner registers and is then overwritten: bcc takes a pointer that comes from a member of
# the context for one of another address space, and turns what is read through it into bpf_probe_read. So members of
# structures a syscall is given can be read as with bcc's own syscall__ parameters.
# A parameter is read into itself, as bcc does it: through bpfnb_argN it would take twice the room of a stack that has
# 512 bytes. Where a number's low bytes come last, a parameter that is narrower than a register is the end of one.
_KPROBE_PRELUDE = """\
#include <uapi/linux/ptrace.h>
#define BPFNB_ARG(n, ctx) ((unsigned long)bpfnb_arg##n)
#if defined(CONFIG_ARCH_HAS_SYSCALL_WRAPPER) || \\
    (defined(bpf_target_x86) && LINUX_VERSION_CODE >= KERNEL_VERSION(4, 17, 0)) || \\
    (defined(bpf_target_arm64) && LINUX_VERSION_CODE >= KERNEL_VERSION(4, 19, 0))
#if defined(bpf_target_s390x)
#define BPFNB_REG1(regs) ((regs)->orig_gpr2)
#else
#define BPFNB_REG1(regs) PT_REGS_PARM1(regs)
#endif
#define BPFNB_REG2(regs) PT_REGS_PARM2(regs)
#define BPFNB_REG3(regs) PT_REGS_PARM3(regs)
#define BPFNB_REG4(regs) PT_REGS_PARM4_SYSCALL(regs)
#define BPFNB_REG5(regs) PT_REGS_PARM5(regs)
#define BPFNB_REG6(regs) PT_REGS_PARM6(regs)
#define BPFNB_GET(n, ctx) \\
    void *bpfnb_arg##n = (void *)PT_REGS_PARM1((struct pt_regs *)(ctx)); \\
    bpf_probe_read_kernel(&bpfnb_arg##n, sizeof(void *), &BPFNB_REG##n((struct pt_regs *)bpfnb_arg##n));
#define BPFNB_FIRST(n, ctx) PT_REGS_PARM1((struct pt_regs *)(ctx))
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define BPFNB_LOW(name) (sizeof(long) - sizeof(name))
#else
#define BPFNB_LOW(name) 0
#endif
#define BPFNB_READ(n, name, ctx) ({ \\
    struct pt_regs *bpfnb_regs = (struct pt_regs *)PT_REGS_PARM1((struct pt_regs *)(ctx)); \\
    bpf_probe_read_kernel((void *)&name, sizeof(name), (void *)&BPFNB_REG##n(bpfnb_regs) + BPFNB_LOW(name)); });
#else
#define BPFNB_GET(n, ctx) void *bpfnb_arg##n = (void *)BPFNB_FIRST(n, ctx);
#define BPFNB_FIRST(n, ctx) PT_REGS_PARM##n((struct pt_regs *)(ctx))
#define BPFNB_READ(n, name, ctx)
#endif
"""

# A new process comes out of these by the exit tracepoint as well, with result 0; a kretprobe does not see it.
_FORKS = ("clone", "clone3", "fork", "vfork")
_ON_SYSCALL = {name for name, kind in KINDS.items() if kind.arguments == "syscall"}
SYSCALL_EVENTS = ("syscalls:", "raw_syscalls:")
_PARM = re.compile(r"PT_REGS_PARM([1-6])(?:_SYSCALL)?")
_REGISTER_MACRO = re.compile(r"PT_REGS_\w+")
# x86-64's names of the argument registers, as PT_REGS_PARMn and PT_REGS_PARM4_SYSCALL use them.
_ARGUMENT_REGISTERS = {"di": 1, "si": 2, "dx": 3, "r10": 4, "cx": 4, "r8": 5, "r9": 6}
_OTHER_ARGUMENT_REGISTERS = ("regs", "gpr", "gprs", "a0", "a1", "a2", "a3", "a4", "a5", "orig_x0", "orig_gpr2")


@dataclasses.dataclass(frozen=True)
class _Parameter:
    """A parameter of a function. ``start`` and ``end`` are offsets into the cell."""

    name: str
    declaration: str  # as a local variable's: an array is a pointer
    start: int
    end: int

    @property
    def is_registers(self) -> bool:
        return bool(re.search(r"\bpt_regs\b", self.declaration)) and "*" in self.declaration


class Portable:
    """The edits that make functions on syscalls mean the same in both modes."""

    def __init__(self, cell: Cell, program: Program, mode: Mode) -> None:
        self.cell = cell
        self.mode = mode
        self.bodies = {f.name: f for f in cell.functions}
        self.parameters = {f.name: _parameters(cell, f) for f in cell.functions}
        self.kinds: dict[str, set[str]] = {}
        self.forks: dict[str, set[str]] = {}
        self._used = False
        for probe in program.probes:
            self.kinds.setdefault(probe.function, set()).add(_kind(probe))
            if probe.kind == "sysret" and probe.way != "raw_syscalls":  # which skips the children by itself
                self.forks.setdefault(probe.function, set()).add(probe.target)
        on_syscalls = {kind for kinds in self.kinds.values() for kind in kinds & _ON_SYSCALL}
        forks = {target for targets in self.forks.values() for target in targets}
        for name in program.tail_calls:  # one that reads registers, and so is not called from other kinds of probes
            if self.parameters.get(name) and self.parameters[name][0].is_registers:
                self.kinds[name], self.forks[name] = set(on_syscalls), set(forks)

    def prelude(self) -> str:
        """Return what the edits need defined; call after ``edits``."""
        if not self._used:
            return ""
        return _TRACEPOINT_PRELUDE if self.mode == "tracepoint" else _KPROBE_PRELUDE

    def edits(self) -> list[Edit]:
        """All of them. Starts from the attached functions and follows ctx into the static ones they call."""
        edits: dict[str, list[Edit]] = {}
        contexts = {name: {0} for name in self.kinds if name in self.bodies}
        attached = set(contexts)
        todo = list(contexts)
        while todo:
            name = todo.pop()
            if not self.bodies[name].open:
                edits[name] = self._unwritten(self.bodies[name])
                continue
            reading = _Reading(self, self.bodies[name], contexts[name], self.kinds[name])
            edits[name] = reading.edits() if self.kinds[name] & _ON_SYSCALL else []
            if self.kinds[name] == {"return"}:
                reading.require_no_arguments()
            for callee, index in reading.passed:
                kinds, indexes = self.kinds.setdefault(callee, set()), contexts.setdefault(callee, set())
                if not (self.kinds[name] <= kinds and index in indexes):
                    kinds |= self.kinds[name]
                    indexes.add(index)
                    todo.append(callee)
        for name, found in edits.items():
            f = self.bodies[name]
            before = self._children(f) + self._signature(f) if name in attached else []
            edits[name] = self._reads(f, contexts[name], before + found) + before + found
        every = [edit for found in edits.values() for edit in found]
        self._used = bool(every)
        return every

    def _reads(self, f: Body, contexts: set[int], edits: list[Edit]) -> list[Edit]:
        """A kprobe reads the arguments it uses when it starts."""
        used = sorted({n for edit in edits for n in re.findall(r"BPFNB_ARG\((\d)", edit.text)})
        if self.mode != "kprobe" or not used:
            return []
        context = self.parameters[f.name][min(contexts)]
        return [Edit(f.open + 1, f.open + 1, "".join(f" BPFNB_GET({n}, {context.name})" for n in used))]

    def _unwritten(self, f: Body) -> list[Edit]:
        """A function all of whose text is a macro's: it may run on a syscall as long as it asks nothing of it."""
        words = {t.text for t in self.cell.expanded(f.tokens)}
        if self.kinds[f.name] & _ON_SYSCALL and any(_REGISTER_MACRO.fullmatch(w) for w in words):
            raise self.unsupported(
                f"{f.name} is written by a macro, so its arguments cannot be made portable", f.name_at
            )
        return []

    def _signature(self, f: Body) -> list[Edit]:
        """Extra parameters of a function on a syscall become variables."""
        kinds = self.kinds[f.name]
        extra = self.parameters[f.name][1:]
        written = len(f.parameters) - 1
        if not kinds & _ON_SYSCALL or written < 1:
            return []
        self.require_one_kind(kinds, f.name_at, f"the parameters of {f.name}")
        gone = "sysret" in kinds
        if gone and f.uses(p.name for p in extra):
            raise self.error(f"{f.name} runs when the syscall returns: its arguments are gone", f.name_at, _SAVE)
        if f.generated or len(extra) != written:
            raise self.unsupported(f"the parameters of {f.name} cannot be read", f.name_at)
        if written > 6:
            raise self.error(f"{f.name} has {written} arguments; a syscall has at most 6", extra[6].start)
        context = self.parameters[f.name][0]
        if gone:
            return [Edit(context.end, extra[-1].end)]
        if not context.name or not all(p.name for p in extra):
            return []  # bcc says that parameters must be named
        locals_ = "".join(
            f" {p.declaration} = (__typeof__({p.name}))BPFNB_FIRST({n}, {context.name});"
            f" BPFNB_READ({n}, {p.name}, {context.name})"
            for n, p in enumerate(extra, 1)
        )
        return [Edit(context.end, extra[-1].end), Edit(f.open + 1, f.open + 1, locals_)]

    def _children(self, f: Body) -> list[Edit]:
        """A kretprobe on clone fires only in the parent; skip the child."""
        forks = self.forks.get(f.name, set()) & set(_FORKS)
        if self.mode != "tracepoint" or not forks:
            return []
        if self.kinds[f.name] != {"sysret"}:
            raise self.unsupported(
                f"without kprobes, a function on sysret:{min(forks)} can be on nothing else: {f.name} is", f.name_at
            )
        if self.forks[f.name] != forks:
            raise self.unsupported(
                f"without kprobes, one function cannot be on sysret:{min(forks)} and on other syscalls: {f.name} is",
                f.name_at,
            )
        if f.generated:
            raise self.unsupported(f"the parameters of {f.name} cannot be read", f.name_at)
        edits = []
        parameters = self.parameters[f.name]
        name = parameters[0].name if parameters else "bpfnb_ctx"
        if not parameters:
            start, end = _parameter_list(self.cell, f)
            edits.append(Edit(start, end, f"void *{name}"))
        if name:
            edits.append(Edit(f.open + 1, f.open + 1, f" if (BPFNB_RET({name}) == 0) return 0;"))
        return edits

    def require_one_kind(self, kinds: set[str], at: int, what: str) -> None:
        """A function on several kinds of probe cannot read a context that differs between them."""
        if kinds == _ON_SYSCALL:
            raise self.error(f"{what}: on syscall: and sysret: at once, this means nothing", at, "write two functions")
        if len(kinds) > 1:
            raise self.error(
                f"{what}: used on a syscall and on another kind of probe, where this means something else",
                at,
                "write two functions",
            )

    def error(self, message: str, at: int, hint: str | None = None) -> ProgramError:
        return self.cell.error(message, at, hint=hint)

    def unsupported(self, message: str, at: int, hint: str | None = None) -> BpfnbError:
        line, column = self.cell.place(at)
        return UnsupportedError(message, line=line, column=column, hint=hint, source=self.cell.source)


def _kind(probe: Probe) -> str:
    kind = KINDS[probe.kind]
    if kind.arguments == "registers" and kind.when == "return":
        return "return"
    return probe.kind if probe.kind in _ON_SYSCALL else "other"


_ARGUMENTS = "write PT_REGS_PARMn(ctx) for the n-th argument, PT_REGS_RC(ctx) for the result"
_KEEP = "save them in a BPF_HASH in a function on the entry, by bpf_get_current_pid_tgid()"
_SAVE = "save them in a BPF_HASH in a function on syscall:, by bpf_get_current_pid_tgid()"


class _Reading:
    """One function read for what it does with its context.

    ``passed``: the static functions it gives the context to, and as which parameter.
    """

    def __init__(self, portable: Portable, f: Body, indexes: set[int], kinds: set[str]) -> None:
        self.portable = portable
        self.cell = portable.cell
        self.f = f
        self.kinds = kinds
        parameters = portable.parameters[f.name]
        contexts = [parameters[i] for i in sorted(indexes) if i < len(parameters)]
        self.context = contexts[0] if contexts else None
        # The body alone, under a signature the grammar knows; positions in it count from ``base``.
        head = "int f()"
        self.root = parse_c(head + self.cell.masked[f.open : f.close + 1])
        self.base = f.open - len(head)
        self.names = {p.name for p in contexts if p.name}
        self.registers = {p.name for p in parameters if p.is_registers} | set(self._declared_registers())
        self._aliases()
        self.passed = set(self._passed())
        self.seen: set[int] = set()

    # What names what.

    def _text(self, node: Node | None) -> str:
        return (node.text or b"").decode() if node else ""

    def _declared_registers(self) -> Iterator[str]:
        """Variables declared as pointers to pt_regs."""
        for node in walk(self.root):
            if node.type == "declaration" and re.search(r"\bpt_regs\b", self._text(node.child_by_field_name("type"))):
                for part in walk(node):
                    if part.type == "pointer_declarator":
                        yield _identifier(part)

    def _aliases(self) -> None:
        """Variables that are given the context are the context too."""
        while True:
            more = {
                name
                for name, value in self._assignments()
                if self.is_context(value) and name not in self.names and name
            }
            if not more:
                return
            self.names |= more

    def _assignments(self) -> Iterator[tuple[str, Node]]:
        for node in walk(self.root):
            if node.type == "init_declarator":
                target, value = node.child_by_field_name("declarator"), node.child_by_field_name("value")
            elif node.type == "assignment_expression":
                target, value = node.child_by_field_name("left"), node.child_by_field_name("right")
            else:
                continue
            if target and value and (target.type != "field_expression"):
                yield _identifier(target), value

    def _passed(self) -> Iterator[tuple[str, int]]:
        for node in walk(self.root):
            callee = self._callee(node)
            if callee in self.portable.bodies and self.portable.bodies[callee].static:
                for index, value in enumerate(_arguments(node)):
                    if self.is_context(value):
                        yield callee, index

    def _callee(self, node: Node) -> str:
        function = node.child_by_field_name("function") if node.type == "call_expression" else None
        return self._text(function) if function and function.type == "identifier" else ""

    def is_context(self, node: Node) -> bool:
        node = _bare(node)
        return node.type == "identifier" and self._text(node) in self.names

    def require_no_arguments(self) -> None:
        """PT_REGS_PARMn when a function returns: the registers hold something else by then.

        Not their members (ctx->dx): who names a register may want what it holds.
        """
        for node in walk(self.root):
            args = _arguments(node)
            if _PARM.fullmatch(self._callee(node)) and len(args) == 1 and self.is_context(args[0]):
                what = f"{self._text(node)}: when the function returns its arguments are gone"
                raise self.portable.error(what, node.start_byte + self.base, _KEEP)

    # The edits.

    def edits(self) -> list[Edit]:
        found: list[Edit] = []
        todo = [self.root]
        while todo:
            node = todo.pop()
            edit = self._edit(node)
            if edit is None:
                todo += reversed(node.children)
            elif edit.text:
                found.append(edit)
        self._require_all_seen()
        self._require_plain_macros()
        return found

    def _edit(self, node: Node) -> Edit | None:
        """Return the edit for a node; one without text where it stays as it is; None to look at what is inside."""
        if node.type == "call_expression":
            return self._on_call(node)
        if node.type == "field_expression":
            value = node.child_by_field_name("argument")
            if value and self.is_context(value):
                return self._on_member(node)
        if node.type == "assignment_expression":
            self._require_no_reuse(node)
        inner = node.child_by_field_name("argument")
        raw = node.type == "subscript_expression" or (node.type == "pointer_expression" and self._operator(node) == "*")
        if raw and inner and self.is_context(inner) and self.portable.mode == "tracepoint":
            raise self._unsupported("the context's memory is not that of registers here", node)
        return None

    def _on_call(self, node: Node) -> Edit | None:
        name, args = self._callee(node), _arguments(node)
        parm = _PARM.fullmatch(name)
        if _REGISTER_MACRO.fullmatch(name):
            self.seen.add(node.start_byte + self.base)
        if parm and len(args) == 1:
            if self.is_context(args[0]):
                unwraps = parm[1] == "1" and self._becomes_registers(node)
                return self._unwrapped(node) if unwraps else self._argument(node, int(parm[1]))
            if self._is_unwrapping(args[0]):
                self._mark(args[0])
                return self._argument(node, int(parm[1]))
        elif len(args) == 1 and self.is_context(args[0]) and _REGISTER_MACRO.fullmatch(name):
            if name == "PT_REGS_SYSCALL_CTX":
                return self._unwrapped(node)
            return self._result(node) if name == "PT_REGS_RC" else self._other_register(node, name)
        if name.startswith("bpf_probe_read") and any(self.is_context(a) for a in args):
            if self.portable.mode == "tracepoint":
                raise self._unsupported("the context's memory is not that of registers here", node)
        elif name in self.cell.macros:
            self._require_plain_macro(node, name, any(self.is_context(a) for a in args))
        return None

    def _on_member(self, node: Node) -> Edit:
        member = self._text(node.child_by_field_name("field"))
        self._require_registers(node)
        if member in _ARGUMENT_REGISTERS and "sysret" not in self.kinds:
            unwraps = member == "di" and self._becomes_registers(node)
            return self._unwrapped(node) if unwraps else self._argument(node, _ARGUMENT_REGISTERS[member])
        if member == "ax" and "syscall" not in self.kinds:
            return self._result(node)
        if member in _ARGUMENT_REGISTERS or member == "ax":
            return self._argument(node, 0) if "sysret" in self.kinds else self._result(node)
        if member in _OTHER_ARGUMENT_REGISTERS:
            raise self._unsupported(f"{self._text(node)} is not the same on every kernel", node, _ARGUMENTS)
        return self._other_register(node, self._text(node))

    def _argument(self, node: Node, number: int) -> Edit:
        self._require_one_kind(node)
        if "sysret" in self.kinds:
            what = f"{self._text(node)}: when the syscall returns its arguments are gone"
            raise self.portable.error(what, node.start_byte + self.base, _SAVE)
        return self._replaced(node, f"BPFNB_ARG({number}, {self._context_name()})")

    def _result(self, node: Node) -> Edit:
        self._require_one_kind(node)
        if "syscall" in self.kinds:
            what = f"{self._text(node)}: the syscall has no result before it returns"
            raise self.portable.error(what, node.start_byte + self.base, "attach the function to sysret: instead")
        if self.portable.mode == "kprobe":
            return Edit(0, 0)
        return self._replaced(node, f"BPFNB_RET({self._context_name()})")

    def _unwrapped(self, node: Node) -> Edit:
        """Return the edit that gives the registers of the syscall's caller to code that unwraps them by itself."""
        self._require_one_kind(node)
        if "sysret" in self.kinds:
            what = f"{self._text(node)}: when the syscall returns its arguments are gone"
            raise self.portable.error(what, node.start_byte + self.base, _SAVE)
        if self.portable.mode == "kprobe":
            return Edit(0, 0)
        return self._replaced(node, f"BPFNB_REGS({self._context_name()})")

    def _other_register(self, node: Node, what: str) -> Edit:
        if self.portable.mode == "tracepoint":
            known = [*(f"PT_REGS_PARM{n}" for n in range(1, 7)), "PT_REGS_RC"]
            near = "" if re.fullmatch(r"PT_REGS_PARM\d", what) else did_you_mean(what, known, 0.8)
            message = f"{what}: without kprobes a syscall is seen by its tracepoint, without registers"
            raise self._unsupported(message, node, near or _ARGUMENTS)
        return Edit(0, 0)

    def _replaced(self, node: Node, text: str) -> Edit:
        parent = node.parent
        while parent and parent.type == "parenthesized_expression":
            parent = parent.parent
        if parent and parent.type == "pointer_expression" and self._operator(parent) == "&":
            # &PT_REGS_PARM1(ctx), for bpf_probe_read: the address of a copy. BPFNB_REGS is a pointer already.
            text = f"(unsigned long){{ {text} }}"
        return Edit(node.start_byte + self.base, node.end_byte + self.base, text)

    def _context_name(self) -> str:
        return self.context.name if self.context else "ctx"

    def _operator(self, node: Node) -> str:
        return self._text(node.child_by_field_name("operator"))

    def _mark(self, node: Node) -> None:
        self.seen |= {n.start_byte + self.base for n in walk(node) if n.type == "call_expression"}

    # Code that unwraps by itself.

    def _is_unwrapping(self, node: Node) -> bool:
        """``PT_REGS_SYSCALL_CTX(ctx)`` or ``(struct pt_regs *)PT_REGS_PARM1(ctx)``: the inner registers."""
        casts = self._cast_to_registers(node)
        node = _bare(node)
        args = _arguments(node)
        if len(args) == 1 and self.is_context(args[0]):
            name = self._callee(node)
            return name == "PT_REGS_SYSCALL_CTX" or (casts and name == "PT_REGS_PARM1")
        value = node.child_by_field_name("argument") if node.type == "field_expression" else None
        return bool(casts and value and self.is_context(value) and self._text(node).endswith("di"))

    def _cast_to_registers(self, node: Node) -> bool:
        while node.type in ("parenthesized_expression", "cast_expression"):
            if re.search(r"\bpt_regs\b", self._text(node.child_by_field_name("type"))):
                return True
            node = node.child_by_field_name("value") or node.named_children[-1]
        return False

    def _becomes_registers(self, node: Node) -> bool:
        """Return whether a value is used as a pointer to registers: cast to one, or stored in one."""
        parent = node.parent
        while parent and parent.type in ("parenthesized_expression", "cast_expression"):
            if re.search(r"\bpt_regs\b", self._text(parent.child_by_field_name("type"))):
                return True
            node, parent = parent, parent.parent
        if not parent:
            return False
        if parent.type in ("init_declarator", "assignment_expression"):
            target = parent.child_by_field_name("declarator") or parent.child_by_field_name("left")
            return bool(target and target != node and _identifier(target) in self.registers)
        if parent.type == "argument_list" and parent.parent:
            parameters = self.portable.parameters.get(self._callee(parent.parent), [])
            index = [n.id for n in _arguments(parent.parent)].index(node.id)
            return index < len(parameters) and parameters[index].is_registers
        return False

    # What cannot be.

    def _require_registers(self, node: Node) -> None:
        """Members of a context that was declared as something else, say a tracepoint's struct."""
        declared = self.context.declaration if self.context else ""
        if re.search(r"\bstruct\b", declared) and not re.search(r"\bpt_regs\b", declared):
            hint = "declare it as struct pt_regs *ctx and write PT_REGS_PARMn(ctx) for the n-th argument"
            raise self._unsupported(f"{self._text(node)}: on a syscall the context is no {declared!r}", node, hint)

    def _require_one_kind(self, node: Node) -> None:
        self.portable.require_one_kind(self.kinds, node.start_byte + self.base, self._text(node))

    def _require_no_reuse(self, node: Node) -> None:
        """``ctx = (struct pt_regs *)PT_REGS_PARM1(ctx)``: from there on the name means something else."""
        left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
        if left and right and self.is_context(left) and not self.is_context(right):
            name = self._text(left)
            hint = "give the other registers a variable of their own"
            raise self._unsupported(f"{name} is the context and is assigned something else", node, hint)

    def _require_all_seen(self) -> None:
        """Every PT_REGS_ in the function must have been understood: what is not would read garbage."""
        for token in self.cell.tokens:
            inside = self.f.open < token.start < self.f.close
            if inside and token.start not in self.seen and _REGISTER_MACRO.fullmatch(token.text):
                line, column = self.cell.place(token.start)
                raise UnsupportedError(
                    f"cannot tell what {token.text} refers to here",
                    line=line,
                    column=column,
                    source=self.cell.source,
                    hint="use it in a plain expression: u64 x = PT_REGS_PARM1(ctx);",
                )

    def _require_plain_macros(self) -> None:
        """Macros used by name alone; those used as calls were looked at in place."""
        for node in walk(self.root):
            if node.type == "identifier" and self._text(node) in self.cell.macros:
                self._require_plain_macro(node, self._text(node), False)

    def _require_plain_macro(self, node: Node, name: str, gets_context: bool) -> None:
        """A macro's body is the same for all who use it, so it cannot be given another meaning here."""
        macros = self.cell.macros[name]
        words = self.cell.expanded(t for m in macros for t in m.tokens)
        hidden = next((t.text for t in words if _REGISTER_MACRO.fullmatch(t.text)), None)
        if gets_context and any(t.text == "->" for m in macros for t in m.tokens):
            hidden = hidden or "->"
        if hidden:
            hint = f"write {hidden} in the function itself" if hidden != "->" else None
            raise self._unsupported(
                f"the macro {name} uses {hidden}, which means something else on a syscall", node, hint
            )

    def _unsupported(self, message: str, node: Node, hint: str | None = None) -> BpfnbError:
        return self.portable.unsupported(message, node.start_byte + self.base, hint)


def _bare(node: Node) -> Node:
    """Without brackets and casts."""
    while node.type in ("parenthesized_expression", "cast_expression") and node.named_children:
        node = node.child_by_field_name("value") or node.named_children[-1]
    return node


def _arguments(node: Node) -> list[Node]:
    arguments_ = node.child_by_field_name("arguments") if node.type == "call_expression" else None
    return arguments_.named_children if arguments_ else []


def _identifier(node: Node) -> str:
    """Return the name a declarator declares, or an assignment's target has."""
    found = next((n for n in walk(node) if n.type == "identifier"), None)
    return (found.text or b"").decode() if found else ""


def _parameter_nodes(cell: Cell, f: Body) -> tuple[int, Node | None]:
    """Return the parameter list of a function, and the offset its positions count from."""
    root = parse_c(cell.masked[f.start : f.open] + "{}")
    declarator = function_declarator(root)
    return f.start, declarator.child_by_field_name("parameters") if declarator else None


def _parameter_list(cell: Cell, f: Body) -> tuple[int, int]:
    """Return where the text between the brackets of a function's parameters starts and ends."""
    base, node = _parameter_nodes(cell, f)
    assert node is not None  # the cell's reader found the function by it
    return base + node.start_byte + 1, base + node.end_byte - 1


def _parameters(cell: Cell, f: Body) -> list[_Parameter]:
    if f.generated:  # a macro wrote the signature: names are all there is
        return [_Parameter(text.rpartition("*")[2].split(" ")[-1], text, 0, 0) for text in f.parameters]
    base, node = _parameter_nodes(cell, f)
    declared = [n for n in node.named_children if n.type == "parameter_declaration"] if node and f.parameters else []
    found = []
    for n in declared:
        declarator = n.child_by_field_name("declarator")
        text = " ".join((n.text or b"").decode().split())
        if declarator and any(part.type == "array_declarator" for part in walk(declarator)):
            text = re.sub(r"(\w+)\s*\[[^\]]*\]", r"*\1", text, count=1)
        name = _identifier(declarator) if declarator else ""
        found.append(_Parameter(name, text, base + n.start_byte, base + n.end_byte))
    return found
