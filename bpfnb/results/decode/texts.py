"""Numbers as text, one at a time: (number, machine) -> text, or None where there is no value.

Numbers without a name are their digits; flags without a name are one hexadecimal number behind the others.
"""

from __future__ import annotations

import ipaddress
import re
import stat
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

from bpfnb.language import syscalls
from bpfnb.results.decode import constants

__all__ = [
    "Text",
    "clone",
    "device",
    "errno",
    "flags",
    "io_priority",
    "ip",
    "low_byte",
    "mac",
    "mode",
    "named",
    "raw_state",
    "rwbs",
    "signal",
    "st_dev",
    "syscall",
    "task_state",
    "wait_status",
]

Text: TypeAlias = Callable[[Any, str], "str | None"]

_SIGRTMIN, _SIGRTMAX = 34, 64  # as the C library counts them, and kill -l: it keeps 32 and 33 for itself
_CSIGNAL = 0x7F  # of clone's flags: the signal at the child's end
_MINOR_BITS = 20  # include/linux/kdev_t.h
_IO_CLASSES = ("none", "realtime", "best-effort", "idle")  # include/uapi/linux/ioprio.h
_IO_CLASS_SHIFT, _IO_LEVEL, _IO_HINT_SHIFT, _IO_HINT = 13, 0x7, 3, 0x3FF
_PREEMPTED = 0x100  # of sched_switch's prev_state: TASK_REPORT_MAX
_STATES = "SDTtXZPI"  # of its bits, in the kernel's words for it (its print fmt)
_TASK_IDLE = 0x402  # TASK_UNINTERRUPTIBLE | TASK_NOLOAD
_SLEEPS = 0x1000 | 0x8000  # TASK_RTLOCK_WAIT, TASK_FROZEN: reported as uninterruptible

# blk_fill_rwbs() of kernel/trace/blktrace.c
_RWBS = re.compile(r"(F?)(WZ|W|DE|D|F|R|ZRA|Z[AROCF]|N)(F?)(A?)(S?)(M?)(U?)")
_OPERATIONS = {
    "W": "WRITE", "WZ": "WRITE_ZEROES", "D": "DISCARD", "DE": "SECURE_ERASE", "F": "FLUSH", "R": "READ", "N": "OTHER",
    "ZA": "ZONE_APPEND", "ZR": "ZONE_RESET", "ZRA": "ZONE_RESET_ALL", "ZO": "ZONE_OPEN", "ZC": "ZONE_CLOSE",
    "ZF": "ZONE_FINISH",
}  # fmt: skip
_MARKS = ("FUA", "RAHEAD", "SYNC", "META", "ATOMIC")


def named(kind: str) -> Text:
    """Return what names the constants of a kind."""
    return lambda number, machine: constants.names(kind, machine).get(number, str(number))


def low_byte(kind: str) -> Text:
    """Return what names a number's low byte."""
    return lambda number, machine: constants.names(kind, machine).get(number & 0xFF, str(number & 0xFF))


def errno(number: int, machine: str) -> str | None:
    """Error numbers of either sign; 0 is none."""
    return constants.names("errno", machine).get(abs(number), str(number)) if number else None


def signal(number: int, machine: str) -> str:
    if _SIGRTMIN <= number <= _SIGRTMAX:
        return f"SIGRTMIN+{number - _SIGRTMIN}" if number > _SIGRTMIN else "SIGRTMIN"
    return constants.names("signal", machine).get(number, str(number))


def syscall(number: int, machine: str) -> str:
    return syscalls.names(machine).get(number, str(number))


def flags(kind: str, *fields: int) -> Text:
    """Return what shows flags, joined by "|". ``fields``: masks whose bits are a number together: O_ACCMODE."""
    return lambda number, machine: _flags(number, kind, machine, fields)


def _flags(number: int, kind: str, machine: str, fields: tuple[int, ...]) -> str:
    names = constants.names(kind, machine)
    parts, rest = [], number
    for mask in fields:
        if (name := names.get(number & mask)) is not None:
            parts.append(name)
            rest &= ~mask
    bits = [value for value in names if value and not any(value & mask for mask in fields)]
    # O_SYNC has the bit of O_DSYNC in it: what has more bits is taken first, and shown in the order of the bits.
    taken = []
    for value in sorted(bits, key=lambda value: (-value.bit_count(), value)):
        if value & rest == value:
            taken.append(value)
            rest &= ~value
    parts += [names[value] for value in sorted(taken)]
    if rest:
        parts.append(f"{rest:#x}")
    return "|".join(parts) or names.get(0, "0")


def clone(number: int, machine: str) -> str:
    """The low seven bits are a signal; clone3 has it apart."""
    ending = number & _CSIGNAL
    text = _flags(number & ~_CSIGNAL, "clone", machine, ()) if number & ~_CSIGNAL else ""
    return "|".join(filter(None, [text, signal(ending, machine) if ending else ""])) or "0"


def mode(number: int, machine: str) -> str:
    """As ls shows it: "-rw-r--r--". Without a file's type, as chmod's: "rw-r--r--"."""
    if not 0 <= number <= 0xFFFF:
        return str(number)
    text = stat.filemode(number)
    return text if stat.S_IFMT(number) else text[1:]


def device(number: int, machine: str) -> str:
    return f"{number >> _MINOR_BITS}:{number & ((1 << _MINOR_BITS) - 1)}"


def st_dev(number: int, machine: str) -> str:
    # As the C library of Linux takes them apart; os.major() does so as the system does that this runs on.
    major = (number >> 8 & 0xFFF) | (number >> 32 & 0xFFFFF000)
    return f"{major}:{(number & 0xFF) | (number >> 12 & 0xFFFFFF00)}"


def wait_status(number: int, machine: str) -> str:
    """As wait(2) and a task's exit_code have it."""
    ending, above = number & 0x7F, (number >> 8) & 0xFF
    if number == 0xFFFF:
        return "continued"
    if number & 0xFF == 0x7F:
        event = number >> 16
        return f"stopped by {signal(above, machine)}" + (f" (event {event})" if event else "")
    if ending == 0:
        return f"exited {above}"
    return f"killed by {signal(ending, machine)}" + (" (core)" if number & 0x80 else "")


def io_priority(number: int, machine: str) -> str:
    group, level, hint = number >> _IO_CLASS_SHIFT, number & _IO_LEVEL, (number >> _IO_HINT_SHIFT) & _IO_HINT
    text = _IO_CLASSES[group] if group < len(_IO_CLASSES) else str(group)
    return text + (f" {level}" if level or group in (1, 2) else "") + (f" (hint {hint})" if hint else "")


def task_state(number: int, machine: str) -> str:
    """The field prev_state of sched_switch, in ps's letters; R+ was preempted: it could go on running."""
    if not 0 <= number < 2 * _PREEMPTED:
        return str(number)
    letters = "|".join(letter for bit, letter in enumerate(_STATES) if number >> bit & 1)
    return (letters or "R") + ("+" if number & _PREEMPTED else "")


def raw_state(number: int, machine: str) -> str:
    """A task's __state, in ps's letters, as the kernel's task_state_index() has them."""
    if number & _TASK_IDLE == _TASK_IDLE:
        return "I"
    if number & _SLEEPS:
        return "D"
    if number & 0x80:  # TASK_DEAD: its last switch
        return "X"
    return f"R{_STATES}"[(number & 0x7F).bit_length()]


def ip(address: int | bytes, machine: str) -> str:
    """An IPv4 address mapped into IPv6 is shown as what it is; a u32 is as it lies in memory."""
    data = address if isinstance(address, bytes) else address.to_bytes(4, sys.byteorder)
    if len(data) == 4:
        return str(ipaddress.IPv4Address(data))
    whole = ipaddress.IPv6Address(data)
    return str(whole.ipv4_mapped or whole)


def mac(address: bytes, machine: str) -> str:
    return address.hex(":")


def rwbs(letters: str, machine: str) -> str:
    """The field rwbs of the block tracepoints: "WS" is WRITE|SYNC."""
    if not (found := _RWBS.fullmatch(letters)):
        return letters
    flush, operation, *marks = found.groups()
    words = ["PREFLUSH"] if flush else []
    words += [_OPERATIONS[operation], *(word for word, mark in zip(_MARKS, marks, strict=True) if mark)]
    return "|".join(words)
