"""The kernel's types: choosing among them, and writing them as C with libbpf."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Collection, Iterable, Iterator

from bpfnb.errors import SetupError
from bpfnb.tracer.kernel.btf import (
    ARRAY,
    ENUM,
    ENUM64,
    FUNC,
    INT,
    OTHER_NAMES,
    PTR,
    STRUCT,
    TYPEDEF,
    UNION,
    Types,
)

__all__ = ["KernelTypes", "dump"]


class KernelTypes(Types):
    """The kernel's types, and ways to choose among them."""

    def __init__(self, btf: bytes) -> None:
        super().__init__(btf, "the kernel's")

    def names(self, kind: int) -> set[str]:
        return {t.name for t in self.all if t.kind == kind}

    def tags(self) -> set[str]:
        """Return the names of all structs, unions and enumerations, as C has them: with the word in front."""
        words = {STRUCT: "struct", UNION: "union", ENUM: "enum", ENUM64: "enum"}
        return {f"{words[t.kind]} {t.name}" for t in self.all if t.kind in words}

    def has_function(self, *names: str) -> bool:
        return bool(self.named(names, FUNC))

    def has_field(self, type_name: str, field: str) -> bool:
        """Whether a struct, or a typedef of one, has a field; those of its members without a name are its own."""
        return any(self._has(i, field) for i in self.named((type_name,), STRUCT, TYPEDEF))

    def _has(self, i: int, field: str) -> bool:
        plain = self.plain(i)
        members = self.members(plain) if self.all[plain].kind in (STRUCT, UNION) else ()
        return any(m.name == field or (not m.name and self._has(m.type_id, field)) for m in members)

    def _enums(self) -> Iterator[tuple[int, list[str]]]:
        for i, t in enumerate(self.all):
            if t.kind in (ENUM, ENUM64):
                yield i, [name for name, _ in self.constants(i)]

    def enumerators(self) -> set[str]:
        """Return the name of every constant."""
        return {name for _, names in self._enums() for name in names}

    def enums_with(self, prefixes: tuple[str, ...]) -> list[int]:
        """Return the enumerations with a constant that begins in one of these ways."""
        return [i for i, names in self._enums() if any(name.startswith(prefixes) for name in names)]

    def integer_typedefs(self) -> list[int]:
        return [i for i, t in enumerate(self.all) if t.kind == TYPEDEF and self.all[self.plain(i)].kind == INT]

    def targets(self, i: int) -> list[int]:
        """Return the types a type is made of or points to; not a function's arguments, since BPF calls no pointer."""
        type_ = self.all[i]
        if type_.kind in (STRUCT, UNION):
            return [member.type_id for member in self.members(i)]
        if type_.kind == ARRAY:
            return [self.array(i)[0]]
        return [type_.ref] if type_.kind == PTR or type_.kind in OTHER_NAMES else []

    def array_length(self, type_name: str, field: str) -> int:
        """Return how many elements a field has that is an array; 0 where there is no such field."""
        for i in self.named((type_name,), STRUCT, UNION):
            for member in self.members(i):
                if member.name == field and self.all[member.type_id].kind == ARRAY:
                    return self.array(member.type_id)[1][0]
        return 0

    def reachable(self, roots: Iterable[int], private: Collection[int] = ()) -> list[int]:
        """Return the structs and unions that can be got to from the roots, pointers followed, but not through these."""
        seen: set[int] = set(private)
        queue = list(roots)
        while queue:
            i = queue.pop()
            if i not in seen:
                seen.add(i)
                queue += self.targets(i)
        seen -= set(private)
        return sorted(i for i in seen if self.all[i].kind in (STRUCT, UNION) and self.all[i].name)


# libbpf writes the C: order, forward declarations, padding and bit-fields are a science of their own.


def dump(btf: bytes, tiers: Iterable[Iterable[int]]) -> list[str]:
    """Return the C of each tier: its types and all they need, without what an earlier tier has had.

    libbpf hands each piece of text to a function of vprintf's kind with a pointer of our choice in front. That is
    the signature of vfprintf, so libc's own goes in, with a stream in memory: half a million calls, none in Python.
    """
    libbpf, libc = _libbpf(), ctypes.CDLL(None)
    libc.open_memstream.restype = ctypes.c_void_p
    buffer, size = ctypes.c_void_p(), ctypes.c_size_t()
    stream = ctypes.c_void_p(libc.open_memstream(ctypes.byref(buffer), ctypes.byref(size)))
    quiet = libbpf.libbpf_set_print(None)
    types = dumper = None
    texts: list[str] = []
    try:
        types = _made(libbpf.btf__new(btf, len(btf)), "btf__new")
        dumper = _made(_new_dumper(libbpf, types, ctypes.cast(libc.vfprintf, ctypes.c_void_p), stream), "btf_dump__new")
        start = 0
        for tier in tiers:
            for i in tier:
                if error := libbpf.btf_dump__dump_type(dumper, i):
                    raise SetupError(f"libbpf cannot describe type {i} of the kernel's BTF: {os.strerror(-error)}")
            libc.fflush(stream)
            texts.append(_padded(ctypes.string_at(buffer.value or 0, size.value)[start:].decode("ascii", "replace")))
            start = size.value
    finally:
        libbpf.btf_dump__free(dumper)
        libbpf.btf__free(types)
        libbpf.libbpf_set_print(quiet)
        libc.fclose(stream)
        libc.free(buffer)
    return texts


def _padded(text: str) -> str:
    """Keep libbpf's padding from being one number of hundreds of bits, whose alignment clang 14 does not allow for:
    fields behind it were read from elsewhere (struct rq, cfs_rq). A bit-field of no width ends such a run."""
    return re.sub(r"^(\t+)long: 64;$", r"\1long: 0;\n\1long: 64;", text, flags=re.MULTILINE)


def _libbpf() -> ctypes.CDLL:
    """libbpf, which bcc's library links, or has inside it."""
    for name in ("libbpf.so.1", "libbpf.so.0", "libbcc.so.0"):
        try:
            lib = ctypes.CDLL(name, use_errno=True)
            lib.btf__new.argtypes, lib.btf__new.restype = (ctypes.c_char_p, ctypes.c_uint32), ctypes.c_void_p
            lib.btf__free.argtypes, lib.btf__free.restype = (ctypes.c_void_p,), None
            lib.btf_dump__new.argtypes, lib.btf_dump__new.restype = (ctypes.c_void_p,) * 4, ctypes.c_void_p
            lib.btf_dump__free.argtypes, lib.btf_dump__free.restype = (ctypes.c_void_p,), None
            lib.btf_dump__dump_type.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
            lib.libbpf_set_print.argtypes, lib.libbpf_set_print.restype = (ctypes.c_void_p,), ctypes.c_void_p
        except (OSError, AttributeError):
            continue
        return lib
    raise SetupError("libbpf is not installed; bcc needs it too")


def _new_dumper(libbpf: ctypes.CDLL, types: int, write: ctypes.c_void_p, stream: ctypes.c_void_p) -> int | None:
    """btf_dump__new, whose arguments changed in libbpf 0.6; that release also brought libbpf_major_version."""
    if hasattr(libbpf, "libbpf_major_version"):
        return libbpf.btf_dump__new(types, write, stream, None)  # type: ignore[no-any-return]
    # Before: (btf, btf_ext, opts, printf), and opts is a struct of one pointer, the first argument of printf.
    return libbpf.btf_dump__new(types, None, ctypes.byref(stream), write)  # type: ignore[no-any-return]


def _made(pointer: int | None, function: str) -> int:
    """Return the pointer libbpf returned. Its errors are NULL since 1.0, and before that a number just below 2**64."""
    if pointer is None or pointer > 2**64 - 4096:
        raise SetupError(f"libbpf cannot read the kernel's BTF ({function} failed); it may be older than the kernel")
    return pointer
