"""USDT probes: where a program's authors put them, and the C that reads their arguments.

A note in the ELF file (.note.stapsdt) gives each place of a probe, its semaphore, which the program looks at before it
prepares arguments, and the arguments as operands of the assembler: "-4@112(%rsp) 8@%rbx". bcc would read them, too, but
not those of probes with a semaphore when no process is named. bpf_usdt_readarg(N, ctx, &x) becomes, in bcc's hands, a
call of _bpf_readarg_FUNCTION_N(ctx, &x, sizeof(x)); here that function is written.

The format: https://sourceware.org/systemtap/wiki/UserSpaceProbeImplementation
"""

from __future__ import annotations

import fnmatch
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from msgspec.structs import replace

from bpfnb.errors import ProgramError
from bpfnb.language.cell import Body, Cell
from bpfnb.language.probes import Probe, split_usdt
from bpfnb.language.tokens import Token, arguments
from bpfnb.tracer.link.errors import near, rejection
from bpfnb.tracer.link.link import Link, Place, on_events
from bpfnb.tracer.link.uprobe import Target, as_pattern, code, open_target, place
from bpfnb.tracer.symbols.elf import Elf, UsdtNote

__all__ = [
    "OPERANDS",
    "Usdt",
    "arguments_in_file",
    "attach",
    "find",
    "names_in_file",
    "parse_arguments",
    "readers",
    "require",
]


_MAX_SPOTS = 1000  # of one probe
_MAX_NAMES = 4  # names in a hint


class Spot(NamedTuple):
    """A place of a probe: its offset in the file, that of its semaphore (0: none), and how its arguments are read."""

    offset: int
    semaphore: int
    arguments: tuple[Argument, ...]


class Argument(NamedTuple):
    """``text``: as in the note. ``c``: statements that set ``value``, a u64; "" where a program cannot read it."""

    text: str
    c: str


class Usdt(NamedTuple):
    """A probe as found in a file. ``version``: which file it was, and in what state."""

    path: str
    label: str
    spots: tuple[Spot, ...]
    version: tuple[int, ...]


def find(probe: Probe, folder: str) -> Usdt:
    """Return the probe PATH:PROVIDER:NAME or PATH:NAME. AttachError, with the names there are, unless it is one."""
    name, provider, wanted = split_usdt(probe.target)
    with open_target(probe, name, folder) as target:
        notes = target.elf.usdt()
        found = [note for note in notes if _matches(note, provider, wanted)]
        labels = sorted({f"{note.provider}:{note.name}" for note in found})
        if not found:
            raise _none(probe, target, name, notes, f"{provider}:{wanted}" if provider else wanted)
        if len(found) > _MAX_SPOTS:
            raise rejection(probe, f"{target.path} has {wanted} at {len(found)} places: more than {_MAX_SPOTS}")
        if len(labels) > 1:
            hint = f"write {' or '.join(f'usdt:{name}:{label}' for label in labels[:_MAX_NAMES])}"
            raise rejection(probe, f"{target.path} has several probes {wanted}", hint=hint)
        return Usdt(target.path, labels[0], tuple(_spot(probe, target.elf, note) for note in found), _version(target))


def require(probe: Probe, folder: str) -> None:
    """AttachError where there is no such probe."""
    find(probe, folder)


def names_in_file(kind: str, target: str, folder: str, requested: str) -> list[str]:
    """Return the USDT probes of a file. ``target``: its path, and a pattern of PROVIDER:NAME or NAME."""
    path, pattern = _pattern(target)
    with open_target(Probe(kind, target, "", requested, 0), path, folder) as file:
        labels = sorted({f"{note.provider}:{note.name}" for note in file.elf.usdt()})
    return [f"{kind}:{path}:{label}" for label in fnmatch.filter(labels, pattern)]


def arguments_in_file(kind: str, target: str, folder: str, requested: str) -> dict[str, list[tuple[Argument, ...]]]:
    """Return the USDT probes of a file with their arguments at each place. For many: the file is read once."""
    path, pattern = _pattern(target)
    found: dict[str, list[tuple[Argument, ...]]] = {}
    with open_target(Probe(kind, target, "", requested, 0), path, folder) as file:
        for note in file.elf.usdt():
            label = f"{note.provider}:{note.name}"
            if fnmatch.fnmatchcase(label, pattern):
                found.setdefault(f"{kind}:{path}:{label}", []).append(parse_arguments(file.elf, note))
    return found


def _pattern(target: str) -> tuple[str, str]:
    """Return the file's path, and the shell pattern of PROVIDER:NAME."""
    path, provider, name = split_usdt(target)
    return path, as_pattern(f"{provider}:{name}") if provider else f"*:{as_pattern(name)}"


def attach(probe: Probe, program: int, folder: str, found: Mapping[Probe, Usdt], pid: int = 0) -> Link:
    """Attach to every place of a probe of those ``found``, whose readers the program was compiled with. ``pid``: in
    this process alone; 0 for all."""
    usdt, ways = found[replace(probe, number=0)], _layouts(found)[probe.function]
    with open_target(probe, usdt.path, folder) as target:
        if _version(target) != usdt.version:
            raise rejection(probe, f"{usdt.path} has changed while the cell was compiled")
        places = [
            Place(
                partial(place, target, spot.offset, spot.semaphore, pid=pid),
                ways.index(spot.arguments),
                code(target, spot.offset),
            )
            for spot in usdt.spots
        ]
        return on_events(probe, program, places, f"usdt:{usdt.path}:{usdt.label}")


def _matches(note: UsdtNote, provider: str, name: str) -> bool:
    """Return whether a note is of a probe. dtrace's compiler makes "__" of a hyphen, and tools show either."""
    return note.name in (name, name.replace("-", "__")) and provider in ("", note.provider)


def _none(probe: Probe, target: Target, name: str, notes: Sequence[UsdtNote], wanted: str) -> Exception:
    if not notes:
        return rejection(probe, f"{target.path} has no probe {wanted}: it was built without USDT probes")
    known = dict.fromkeys(f"{note.provider}:{note.name}" for note in notes)
    if ":" not in wanted:
        known = {label.partition(":")[2]: None for label in known}
    hint = near(wanted, known, f"usdt:{name}:") or f"%bpf probes 'usdt:{name}:*' lists them"
    return rejection(probe, f"{target.path} has no probe {wanted}", hint=hint)


def _spot(probe: Probe, elf: Elf, note: UsdtNote) -> Spot:
    offset, semaphore = elf.offset(note.address), elf.data_offset(note.semaphore) if note.semaphore else 0
    if offset is None or semaphore is None:
        raise rejection(probe, f"its note gives an address that is not in the file: {note.address:#x}")
    return Spot(offset, semaphore, parse_arguments(elf, note))


def _version(target: Target) -> tuple[int, ...]:
    found = target.file.stat
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


# --- arguments ----------------------------------------------------------------------------------------------------

_ARGUMENT = re.compile(r"(?:([-+]?)(\d+)(f?)@)?(\[[^\]]*\]|\S+)")
_IMMEDIATE = re.compile(r"\$(-?(?:0x[0-9a-fA-F]+|\d+))$")
_MEMORY = re.compile(r"([^()]*)\((%\w+)?(?:,(%\w+)(?:,([1248]))?)?\)$")
_DISPLACEMENT = re.compile(r"(?:([A-Za-z_.$][\w.$]*)|([-+]?(?:0x[0-9a-fA-F]+|\d+)))(?=[-+]|$)\+?")
_ARM_MEMORY = re.compile(r"\[\s*(\w+)\s*(?:,\s*(-?\d+)\s*)?\]$")


def _x86_registers() -> dict[str, tuple[str, int]]:
    """Return, by each name of a register, the member of struct pt_regs it is in, and by how many bits it is shifted."""
    found: dict[str, tuple[str, int]] = {}
    for letter in "abcd":
        member = f"{letter}x"
        found |= dict.fromkeys((f"r{member}", f"e{member}", member, f"{letter}l"), (member, 0))
        found[f"{letter}h"] = member, 8
    for member in ("si", "di", "bp", "sp"):
        found |= dict.fromkeys((f"r{member}", f"e{member}", member, f"{member}l"), (member, 0))
    for number in range(8, 16):
        found |= dict.fromkeys((f"r{number}{width}" for width in ("", "d", "w", "b")), (f"r{number}", 0))
    return found | {"rip": ("ip", 0)}


_X86 = _x86_registers()


def parse_arguments(elf: Elf, note: UsdtNote, machine: str = "") -> tuple[Argument, ...]:
    """Return the arguments of a probe, with the C that reads each; "" for the C of those that cannot be read.

    ``machine``: the architecture of the file, by default this one's.
    """
    found = []
    for sign, size, real, operand in _ARGUMENT.findall(note.arguments):
        width = {"1": 8, "2": 16, "4": 32, "": 64, "8": 64}.get(size, 0)
        read = OPERANDS.get(machine or platform.machine())
        c = read(elf, note, operand) if read and width and not real else ""
        found.append(Argument(f"{sign}{size}{real}@{operand}", _widened(c, "s" if sign == "-" else "u", width)))
    return tuple(found)


def _widened(c: str, sign: str, width: int) -> str:
    """Return the C that sets ``value``. ``c`` is an expression, or, after a "*", an address in the process's memory."""
    kind = f"{sign}{width}"
    if c.startswith("*"):
        read = f"bpf_probe_read_user(&bpfnb_read, sizeof(bpfnb_read), (void *)({c[1:]}))"
        return f"{kind} bpfnb_read = 0; if ({read}) return -1; value = ({sign}64)bpfnb_read;"
    return f"value = ({sign}64)({kind})({c});" if c else ""


def _x86(elf: Elf, note: UsdtNote, operand: str) -> str:
    if number := _IMMEDIATE.match(operand):
        return f"{int(number[1], 0)}LL"
    if operand[1:] in _X86 and operand[0] == "%":
        member, shift = _X86[operand[1:]]
        return f"ctx->{member} >> {shift}" if shift else f"ctx->{member}"
    memory = _MEMORY.match(operand)
    if not memory:
        return ""
    displacement, base, index, scale = memory.groups()
    away = _displacement(elf, note, displacement, base)
    registers = [register[1:] for register in (base, index) if register]
    if away is None or not all(register in _X86 for register in registers):
        return ""
    parts = [f"ctx->{_X86[register][0]}" for register in registers]
    if index:
        parts[-1] += f" * {scale or 1}"
    return f"*{' + '.join([*parts, f'({away}LL)'])}"


def _displacement(elf: Elf, note: UsdtNote, text: str, base: str | None) -> int | None:
    """Return what is added to the registers; a variable's distance from the probe where it is found from there."""
    total, at = 0, 0
    while at < len(text):
        part = _DISPLACEMENT.match(text, at)
        if not part:
            return None
        if part[1]:
            address = elf.value(part[1]) if base == "%rip" else None
            if address is None:
                return None
            total += address - note.address
        else:
            total += int(part[2], 0)
        at = part.end()
    return total


def _arm(elf: Elf, note: UsdtNote, operand: str) -> str:
    if re.fullmatch(r"-?\d+", operand):
        return f"{operand}LL"
    if memory := _ARM_MEMORY.match(operand):
        base = _arm_register(memory[1])
        return f"*{base} + ({memory[2] or 0}LL)" if base else ""
    return _arm_register(operand)


def _arm_register(name: str) -> str:
    if re.fullmatch(r"[xw]([12]?[0-9]|30)", name):
        return f"ctx->regs[{name[1:]}]"
    return "ctx->sp" if name == "sp" else ""


OPERANDS: dict[str, Callable[[Elf, UsdtNote, str], str]] = {"x86_64": _x86, "aarch64": _arm}


# --- the C --------------------------------------------------------------------------------------------------------

_PRELUDE = """\
#include <uapi/linux/ptrace.h>
static u64 (*bpfnb_cookie)(void *ctx) = (void *)BPF_FUNC_get_attach_cookie;
"""
_STORE = (
    "if (len == 8) *(u64 *)dest = value; else if (len == 4) *(u32 *)dest = value; "
    "else if (len == 2) *(u16 *)dest = value; else if (len == 1) *(u8 *)dest = value; else return -1; return 0;"
)
_BARRIER = 'asm volatile("" ::: "memory");'
_READS = ("bpf_usdt_readarg", "bpf_usdt_readarg_p")


def _layouts(found: Mapping[Probe, Usdt]) -> dict[str, list[tuple[Argument, ...]]]:
    """Return, for each function, the different layouts of its probes' arguments. The index is the place's cookie."""
    ways: dict[str, list[tuple[Argument, ...]]] = {}
    for probe, usdt in found.items():
        known = ways.setdefault(probe.function, [])
        known += [way for way in dict.fromkeys(spot.arguments for spot in usdt.spots) if way not in known]
    return ways


def readers(cell: Cell, found: Mapping[Probe, Usdt]) -> str:
    """Return the C functions that read arguments. ProgramError, at its place, for a call that reads one too many."""
    if not found or not any(name in cell.source for name in _READS):
        return ""
    ways = _layouts(found)
    for function in cell.functions:
        for index, token in enumerate(function.tokens[:-1]):
            if token.text in _READS and function.tokens[index + 1].text == "(" and not function.conditional:
                _check(cell, function, token, arguments(function.tokens, index + 1)[0], ways)
    written = [
        _reader(name, number, of_function)
        for name, of_function in ways.items()
        for number in range(1, 1 + max(map(len, of_function)))
        if not _unreadable(number, of_function)
    ]
    return "\n".join([_PRELUDE, *written, ""])


def _check(
    cell: Cell, function: Body, call: Token, first: Sequence[Token], ways: Mapping[str, Sequence[tuple[Argument, ...]]]
) -> None:
    if function.name not in ways:
        raise _not_attached(cell, function, call.start)
    if len(first) == 1 and first[0].text.isdecimal() and (why := _unreadable(int(first[0].text), ways[function.name])):
        raise cell.error(why, first[0].start)


def _not_attached(cell: Cell, function: Body, at: int) -> ProgramError:
    hint = f"read it in the function that is attached to usdt:PATH:PROVIDER:NAME, and pass it on to {function.name}"
    return cell.error(f"{function.name} is attached to no USDT probe, so it has no arguments to read", at, hint=hint)


def _unreadable(number: int, ways: Sequence[tuple[Argument, ...]]) -> str:
    most = max(len(way) for way in ways)
    if not 1 <= number <= most:
        count = f"{most or 'no'} argument{'s' * (most != 1)}"
        return f"this USDT probe has {count}, counted from 1; here is number {number}"
    unread = [way[number - 1].text for way in ways if len(way) >= number and not way[number - 1].c]
    return f"argument {number} lies where a program cannot read it: {unread[0]}" if unread else ""


def _reader(function: str, number: int, ways: Sequence[tuple[Argument, ...]]) -> str:
    bodies = [way[number - 1].c if len(way) >= number else "return -1;" for way in ways]
    if len(bodies) == 1:
        body = bodies[0]
    else:
        # The barrier keeps LLVM from reading several cases' registers by one load through a computed pointer.
        cases = "".join(f"case {i}: {{ {c} {_BARRIER} break; }} " for i, c in enumerate(bodies))
        body = f"switch ((u32)bpfnb_cookie(ctx)) {{ {cases}default: return -1; }}"
    head = f"static __always_inline int _bpf_readarg_{function}_{number}(struct pt_regs *ctx, void *dest, size_t len)"
    return f"{head} {{ u64 value = 0; {body} {_STORE} }}"
