"""Files that mean us harm: ELF files made to measure, and texts changed at random."""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

NOTE, SYMTAB, STRTAB = 7, 2, 3  # types of sections
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_NUMBERS = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1)

PROGRAM = r"""
#include <sys/sdt.h>
#include <unistd.h>
volatile int counter = 3;
__attribute__((noinline)) int called(int n) {
    DTRACE_PROBE2(mutated, probe, n, counter);
    return getppid() + n;
}
int main(void) { return called(1) & 0; }
"""


def note(owner: bytes, kind: int, content: bytes) -> bytes:
    def padded(data: bytes) -> bytes:
        return data + b"\0" * (-len(data) % 4)

    return struct.pack("<III", len(owner), len(content), kind) + padded(owner) + padded(content)


def usdt_note(provider: str, name: str, arguments: str, address: int = 0x1000) -> bytes:
    content = struct.pack("<QQQ", address, 0, 0) + b"\0".join(t.encode() for t in (provider, name, arguments)) + b"\0"
    return note(b"stapsdt\0", 3, content)


def elf(path: Path, sections: Sequence[tuple[str, int, bytes | int]], machine: int = 62) -> Path:
    """An ELF file for x86-64 with these sections: name, type, and content, or a size where it is a hole in the file."""
    names = bytearray(b"\0.shstrtab\0")
    placed = {b".shstrtab": 1}
    for name, _, _ in sections:
        if name.encode() not in placed:
            placed[name.encode()] = len(names)
            names += name.encode() + b"\0"
    with path.open("wb") as file:
        at = _HEADER.size
        headers = [_SECTION.pack(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)]
        for name, kind, content in [*sections, (".shstrtab", STRTAB, bytes(names))]:
            size = content if isinstance(content, int) else len(content)
            link = len(headers) + 1 if kind == SYMTAB else 0  # its names come behind it
            headers.append(_SECTION.pack(placed[name.encode()], kind, 0, 0, at, size, link, 0, 1, 0))
            if isinstance(content, bytes):
                file.seek(at)
                file.write(content)
                at += size
        whole = at + max([c for _, _, c in sections if isinstance(c, int)], default=0)
        file.seek(whole)
        file.write(b"".join(headers))
        ident = b"\x7fELF\x02\x01\x01" + b"\0" * 9
        file.seek(0)
        fields = (ident, 3, machine, 1, 0, 0, whole, 0, _HEADER.size, 56, 0, _SECTION.size)
        file.write(_HEADER.pack(*fields, len(headers), len(headers) - 1))
    return path


def compiled(folder: Path) -> Path:
    """A program with functions, a USDT probe and a build id."""
    (folder / "mutated.c").write_text(PROGRAM)
    path = folder / "mutated"
    subprocess.run(["gcc", "-O1", "-Wl,--build-id", "-o", path, folder / "mutated.c"], check=True)
    return path


def mutated(data: bytes, rng: random.Random, around: Sequence[int] = ()) -> bytes:
    """The same with a few changes: bytes, numbers in their place, parts cut out, put twice, or moved. Half of them near
    one of the offsets ``around``, where it matters most."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        near = around and rng.random() < 0.5
        at = rng.choice(around) + rng.randrange(128) if near else rng.randrange(len(changed) + 1)
        size = rng.choice((1, 4, 8, 16, 64, 1000))
        match rng.randrange(7):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1 | 2:
                width = rng.choice((2, 4, 8))
                changed[at - at % width : at - at % width + width] = (rng.choice(_NUMBERS) % (1 << 8 * width)).to_bytes(
                    width, "little"
                )
            case 3:
                del changed[at : at + size]
            case 4:
                changed[at:at] = changed[at : at + size] * rng.choice((1, 3, 50))
            case 5:
                changed[at:at] = rng.choice((b"\0", b"\n", b"[", b" ", b"%", b"(", b"9", b"\xff", b"\x1b")) * size
            case 6:
                del changed[rng.randrange(len(changed) + 1) :]
    return bytes(changed)
