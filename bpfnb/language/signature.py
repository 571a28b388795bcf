"""What a probe gives its program: arguments and return value, with their C types.

The tracer finds signatures in the kernel's type information, in tracefs and in files. One-liners are typed by them, and
``probes()`` lists them.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

__all__ = ["Argument", "Signature", "Type", "TypeKind", "declare"]

TypeKind = Literal["int", "bool", "float", "enum", "pointer", "string", "array", "struct", "void", "unknown"]


class Type(Struct, frozen=True):
    """A C type. ``text``: as C writes it, "const char *", "struct sock *", "__be16". ``size``: bytes.

    Kind "string": characters up to a NUL, or the address of such. ``signed``: of an integer. ``big_endian``: the type's
    name says so. ``user``: a pointer to a process's memory, not the kernel's. ``to``: what a pointer points to and what
    an array consists of, where that is known, without members; ``count``: elements of an array. ``values``: an enum's.
    ``bits``: of a member that is a bit-field, how many it has; it has no address. A pointer that is not ``user`` may
    lead to a process's memory all the same, where the kernel's own types do not say.
    """

    text: str
    kind: TypeKind
    size: int = 0
    signed: bool = False
    big_endian: bool = False
    user: bool = False
    to: Type | None = None
    count: int = 0
    values: tuple[tuple[str, int], ...] = ()
    bits: int = 0


class Argument(Struct, frozen=True):
    """An argument of a probe. Of a tracepoint it is a field.

    ``position``: from 0, as in ``arg0``; of a function's parameter, the register it is passed in, -1 where it is passed
    in memory. ``located``: the field holds the offset and length of what is meant (tracefs: ``__data_loc``). The type
    of a tracepoint's field may say more than its declaration: a ``const void *skaddr`` is a ``const struct sock *``
    where the tracepoint is called with one, and a system call's ``int`` lies in eight bytes. A cast is right for both.
    """

    name: str
    type: Type
    position: int = 0
    located: bool = False


class Signature(Struct, frozen=True):
    """What is known of a probe. ``probe``: as -a takes it. ``returns``: None where nothing is returned, or not known.

    ``arguments``: of a probe on a return, those that the function was called with.

    ``note``: one line, such as that this kernel has no such kind of probe and what stands in; else "". ``members``: for
    each path that was asked, such as ("sk", "__sk_common", "skc_dport"), the types of the argument and of each member
    in turn; () where this probe has no argument of that name. A path that breaks off later ends at its last known type:
    it is shorter than the path. ``near``: for each path that breaks off, names there are that look like the first one
    that is not there; for others (). A number, such as "0", is the element of an array or of what a pointer leads to.
    "retval" begins a path from what is returned.
    """

    probe: str
    arguments: tuple[Argument, ...] = ()
    returns: Type | None = None
    note: str = ""
    members: tuple[tuple[Type, ...], ...] = ()
    near: tuple[tuple[str, ...], ...] = ()


def declare(type_: str, name: str) -> str:
    """Return a declaration in C of a name, given its type as ``Type.text`` has it: "char comm[16]"."""
    if type_.endswith("(*)()"):
        return type_.replace("(*)", f"(*{name})")
    if type_.endswith("]"):
        element, _, dimensions = type_.partition(" [")
        return f"{element}{'' if element.endswith('*') else ' '}{name}[{dimensions}"
    return f"{type_}{'' if type_.endswith('*') else ' '}{name}"
