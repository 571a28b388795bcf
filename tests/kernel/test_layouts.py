"""Layouts read from a program's BTF, held against what clang says of the same types and what the kernel finds in them.

Structs made at random, and the kernel's own, are compiled twice: once for their BTF, once with what was made of it.
Then every column's offset, size and element type is a _Static_assert; and a program reads every number, by its name in
C, from rows of random bytes, where the column must have it too. Only that reaches bit-fields, which have no address.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from bpfnb.protocol.schema import BitField, Bytes, Column, Enum, Number, NumberArray, Schema, Tail, Text, Wide
from bpfnb.tracer.kernel.btf import Types, schema_of

SYS_BPF = {"x86_64": 321, "aarch64": 280}.get(os.uname().machine, 0)
ROOM = 8192  # bytes for a struct's row
FILLS = 4  # rows of random bytes for each struct

# Compiles, and answers with the program's BTF. If "read" is there, runs it over each fill of the map "given"; answers
# with what it put into "found". A process of its own, since bcc leaks what it compiles.
CHILD = """
import base64, ctypes, json, os, sys
from bpfnb.tracer.kernel import bpf
from bpfnb.tracer.compile.engine import Engine
from bpfnb.tracer.loaded import ProgramSpec

RAW_TRACEPOINT, TEST_RUN = 17, 10
job = json.load(sys.stdin)
compiled = Engine().compile(job["text"], ["-w"])
links = {fd: f"/proc/self/fd/{fd}" for fd in range(100) if os.path.lexists(f"/proc/self/fd/{fd}")}
(btf,) = (fd for fd, link in links.items() if os.readlink(link) == "anon_inode:btf")
answer = {"btf": base64.b64encode(bpf.btf(btf)).decode(), "found": []}
if compiled.has("read"):
    program = compiled.load(ProgramSpec("read", RAW_TRACEPOINT))
    given, found = compiled.table("given"), compiled.table("found")
    for fill in job["fills"]:
        for i, row in enumerate(fill):
            bpf.update(given, i.to_bytes(4, "little"), base64.b64decode(row))
        attr = (ctypes.c_uint32 * 20)(program)
        if ctypes.CDLL(None, use_errno=True).syscall(job["bpf"], TEST_RUN, attr, ctypes.sizeof(attr)):
            raise OSError(ctypes.get_errno(), "BPF_PROG_TEST_RUN")
        answer["found"].append(base64.b64encode(bpf.lookup(found, bytes(4), job["size"])).decode())
print(json.dumps(answer))
"""


def in_child(text: str, fills: Sequence[Sequence[bytes]] = (), size: int = 0) -> tuple[bytes, list[np.ndarray]]:
    """The BTF of a program, and for each of ``fills`` the 64-bit words it found, ``size`` bytes in all."""
    rows = [[base64.b64encode(row).decode() for row in fill] for fill in fills]
    job = json.dumps({"text": text, "fills": rows, "size": size, "bpf": SYS_BPF})
    done = subprocess.run([sys.executable, "-c", CHILD], input=job, capture_output=True, text=True)
    assert done.returncode == 0, (done.stderr[:4000], done.stdout[:4000])
    answer = json.loads(done.stdout.splitlines()[-1])
    found = [np.frombuffer(base64.b64decode(words), np.uint64) for words in answer["found"]]
    return base64.b64decode(answer["btf"]), found


# Structs at random.

PRELUDE = """
typedef int (*fn_t)(int);
typedef short row_t[3];
typedef const char name_t[16];
typedef u8 mac_t[6];
typedef row_t square_t[3];
typedef volatile struct { u16 lo; u8 hi : 3, : 2, top : 3; } __attribute__((packed)) packed_t;
enum colour { RED, GREEN = 5, BLUE = 70000 };
enum sign { MINUS = -3, PLUS = 3 };
typedef enum { LOW = -1, HIGH = 1 } __attribute__((packed)) small_t;
enum vast { VAST = 1ULL << 40 };
"""
INTEGERS = [
    "char", "signed char", "u8", "short", "u16", "int", "unsigned", "long", "u64", "long long", "s32", "__be32",
    "pid_t", "size_t", "bool", "const volatile u32", "enum colour", "enum sign",
]  # fmt: skip
LISTED = ["u8", "signed char", "u16", "int", "bool", "u64", "enum colour", "fn_t"]
OTHERS = ["void *", "const char *", "fn_t", "struct s_0 *", "__int128", "unsigned __int128", "enum vast"]
ARRAYS = ["row_t", "name_t", "mac_t", "square_t"]
WIDTHS = {"bool": 1, "small_t": 8, "char": 8, "signed char": 8, "u8": 8, "short": 16, "u16": 16, "long": 64, "u64": 64,
          "long long": 64, "size_t": 64}  # fmt: skip

Members = tuple[str, list[str]]  # their C, and the names that must become columns


class Generator:
    """C structs s_0, s_1, ..., and of each the names that must become columns, without indices."""

    def __init__(self, seed: int, count: int) -> None:
        self._random = random.Random(seed)
        self._names = (f"m{number}" for number in itertools.count())
        self._embeddable: list[str] = []
        self.structs: dict[str, list[str]] = {}
        self.tails: dict[str, str] = {}
        self.text = PRELUDE
        for _ in range(count):
            self._add()

    def _add(self) -> None:
        """One more struct, which may have earlier ones in it."""
        name = f"s_{len(self.structs)}"
        body, leaves = self._body(0)
        if self._maybe(0.1) and leaves:
            tail = next(self._names)
            body += f" {self._pick('char', 'u8', 'u32')} {tail}[{self._pick('', '0')}];"
            self.tails[name] = tail
        elif 0 < len(leaves) < 12:
            self._embeddable.append(name)
        self.text += f"struct {name} {{ {body} }}{self._attributes(0.35)};\n"
        self.structs[name] = leaves

    def _body(self, depth: int) -> Members:
        members = [self._member(depth) for _ in range(self._random.randint(0 if depth else 1, 7))]
        return " ".join(text for text, _ in members), [leaf for _, leaves in members for leaf in leaves]

    def _member(self, depth: int) -> Members:
        choices = [self._plain] * 6 + [self._bits] * 5 + [self._array] * 3 + [self._nothing]
        if depth < 3 and self._maybe(0.2):
            return self._pick(self._nested, self._anonymous, self._earlier)(depth + 1)
        return self._pick(*choices)()

    def _plain(self) -> Members:
        # No small_t: the kernel takes an enumeration next to a bit-field to be an int, and refuses BTF where a shorter
        # one is the last (kernel/bpf/btf.c, btf_enum_check_kflag_member).
        name = next(self._names)
        return f"{self._pick(*INTEGERS, *OTHERS, *ARRAYS)} {name}{self._attributes(0.15)};", [name]

    def _bits(self) -> Members:
        kind = self._pick(*INTEGERS, "small_t")
        most = WIDTHS.get(kind, 32)
        if self._maybe(0.15):
            return f"{kind} : {self._random.randint(0, most)};", []
        name = next(self._names)
        packed = self._pick(*[""] * 9, " __attribute__((packed))")
        return f"{kind} {name} : {self._random.randint(1, most)}{packed};", [name]

    def _array(self) -> Members:
        name = next(self._names)
        if self._maybe(0.12):
            return f"{self._pick(*LISTED)} {name}{self._pick('[65]', '[9][9]', '[1][2][40]')};", [name]
        shape = "".join(f"[{self._random.randint(1, 3)}]" for _ in range(self._random.randint(1, 3)))
        return f"{self._pick(*INTEGERS, *OTHERS, *ARRAYS, 'small_t')} {name}{shape}{self._attributes(0.1)};", [name]

    def _nothing(self) -> Members:
        return self._pick("u64 {}[0];", "u8 {}[3][0];", "struct {{}} {};").format(next(self._names)), []

    def _nested(self, depth: int) -> Members:
        name, (body, leaves) = next(self._names), self._body(depth)
        what = f"{self._pick('struct', 'struct', 'union')} {{ {body} }}{self._attributes(0.3)}"
        return f"{what} {name}{self._pick('', '', '[2]', '[2][2]')};", [f"{name}.{leaf}" for leaf in leaves]

    def _anonymous(self, depth: int) -> Members:
        body, leaves = self._body(depth)
        return f"{self._pick('struct', 'union', 'union')} {{ {body} }}{self._attributes(0.3)};", leaves

    def _earlier(self, depth: int) -> Members:
        name = next(self._names)
        if not self._embeddable or self._maybe(0.3):
            return f"packed_t {name};", [f"{name}.{leaf}" for leaf in ("lo", "hi", "top")]
        kind = self._pick(*self._embeddable)
        return f"struct {kind} {name}{self._pick('', '[2]')};", [f"{name}.{leaf}" for leaf in self.structs[kind]]

    def _attributes(self, chance: float) -> str:
        aligned = f"aligned({self._pick(1, 2, 4, 8, 16, 32)})"
        chosen = self._pick("packed", "packed", aligned, f"packed, {aligned}")
        return f" __attribute__(({chosen}))" if self._maybe(chance) else ""

    def _maybe(self, chance: float) -> bool:
        return self._random.random() < chance

    def _pick(self, *choices: Any) -> Any:
        return self._random.choice(choices)


# What clang and the kernel say.


def read_schemas(declarations: str, names: Sequence[str]) -> dict[str, Schema]:
    """The schemas of structs, from the BTF of a program that has a variable of each."""
    text = declarations
    for name in names:
        text += f"struct holder_{name} {{ struct {name} value; }};\n"
        text += f'__attribute__((section(".maps.bpfnb"), used)) static struct holder_{name} v_{name} = {{}};\n'
    btf, _ = in_child(text + "int nothing(void *ctx) { return 0; }\n")
    types = Types(btf)
    found = {}
    for holder in types.structs("holder_"):
        (value,) = types.members(holder)
        found[types.all[holder].name.removeprefix("holder_")] = schema_of(types, value.type_id)
    assert sorted(found) == sorted(names)
    return found


def assertions(name: str, schema: Schema) -> str:
    """C that does not compile unless every column with an address is where clang has it, as long, and of that type."""
    claims = [f"sizeof(struct {name}) == {schema.size}"]
    for column in schema.columns:
        member = f"((struct {name} *)0)->{column.name}"
        if not isinstance(column, BitField):
            claims.append(f"__builtin_offsetof(struct {name}, {column.name}) == {column.offset}")
        if not isinstance(column, BitField | Tail):
            claims.append(f"sizeof({member}) == {column.size}")
        if isinstance(column, Text | Bytes):
            element = "char" if isinstance(column, Text) else "unsigned char"
            claims.append(f"__builtin_types_compatible_p(__typeof__({member}[0]), {element})")
        if isinstance(column, Number) and column.dtype == "|b1":
            claims.append(f"__builtin_types_compatible_p(__typeof__({member}), _Bool)")
        if isinstance(column, Wide):
            claims.append(f"((__typeof__({member}))-1 < 0) == {int(column.signed)}")
    return "".join(f'_Static_assert({claim}, "");\n' for claim in claims)


def readings(schema: Schema) -> Iterator[tuple[Column, str]]:
    """The columns that are numbers, and how C reads each as 64 bits; ``p`` points to the struct."""
    for column in schema.columns:
        if isinstance(column, Number | Enum | BitField):
            yield column, f"(s64)p->{column.name}"
        elif isinstance(column, NumberArray):
            yield column, f"(s64)p->{column.name}" + "".join(f"[{n - 1}]" for n in column.shape)
        elif isinstance(column, Wide):
            yield column, f"(s64)(p->{column.name} >> 64) ^ (s64)p->{column.name}"


def reader(schemas: dict[str, Schema]) -> tuple[str, int]:
    """A program that puts all readings of ``given`` into ``found``; and how many there are."""
    count = 0
    body = ""
    for i, (name, schema) in enumerate(schemas.items()):
        body += f"    {{ int i = {i}; struct {name} *p = (void *)given.lookup(&i); if (!p) return 0;\n"
        for _, read in readings(schema):
            body += f"      f->words[{count}] = {read};\n"
            count += 1
        body += "    }\n"
    return (
        f"struct room {{ u8 bytes[{ROOM}]; }};\nstruct words {{ u64 words[{count}]; }};\n"
        f"BPF_ARRAY(given, struct room, {len(schemas)});\nBPF_ARRAY(found, struct words, 1);\n"
        "int read(void *ctx) {\n    int zero = 0; struct words *f = found.lookup(&zero); if (!f) return 0;\n"
        f"{body}    return 0;\n}}\n"
    ), count


def random_row(schema: Schema, source: random.Random) -> bytes:
    row = bytearray(source.randbytes(ROOM))
    for column in schema.columns:
        if column.dtype == "|b1" and not isinstance(column, BitField):  # C has no other bools than these two
            for at in range(column.offset, column.offset + column.size):
                row[at] &= 1
    return bytes(row)


def in_row(column: Column, row: bytes) -> int:
    """What a reading of the column must give, by the documentation of Column."""
    data = row[column.offset :]
    if isinstance(column, BitField):
        value = int.from_bytes(data[:9], "little") >> column.first & (1 << column.width) - 1
        return value - (1 << column.width) if column.dtype[1] == "i" and value >> column.width - 1 else value
    if isinstance(column, Wide):
        low, high = np.frombuffer(data, "<u8", 2).tolist()
        return low ^ high
    values = column.values(np.frombuffer(row, np.uint8).reshape(1, -1))
    return int(values.ravel()[-1])


def check_readings(schemas: dict[str, Schema], fill: Sequence[bytes], found: np.ndarray) -> int:
    """Hold a row's columns against what the program read from it: how many there were."""
    words = iter(found.tolist())
    count = 0
    for (name, schema), row in zip(schemas.items(), fill, strict=True):
        for column, _ in readings(schema):
            # Before version 15 LLVM does not record an enumeration's sign.
            labels = column.labels if isinstance(column, Enum | BitField) else ()
            bits = (column.width if isinstance(column, BitField) else column.size * 8) if labels else 64
            mask = (1 << bits) - 1
            assert next(words) & mask == in_row(column, row) & mask, (name, column)
            count += 1
    return count


def check(declarations: str, schemas: dict[str, Schema], seed: int) -> int:
    """Let clang and the kernel confirm the schemas: how many columns they have."""
    source = random.Random(seed)
    read = {name: schema for name, schema in schemas.items() if schema.size <= ROOM}
    fills = [[random_row(schema, source) for schema in read.values()] for _ in range(FILLS)]
    text, count = reader(read)
    claims = "".join(assertions(name, schema) for name, schema in schemas.items())
    _, found = in_child(declarations + claims + text, fills, count * 8)
    for fill, words in zip(fills, found, strict=True):
        assert check_readings(read, fill, words) == count
    return sum(len(schema.columns) for schema in schemas.values())


@pytest.mark.parametrize("seed", range(4))
def test_structs_made_at_random(seed: int) -> None:
    """About two thousand columns each; 186 thousand, with other seeds, were right once."""
    made = Generator(seed, 100)
    schemas = read_schemas(made.text, list(made.structs))
    for name, leaves in made.structs.items():
        columns = schemas[name].columns
        assert {re.sub(r"\[\d+\]", "", column.name) for column in columns if not isinstance(column, Tail)} == set(
            leaves
        ), name
        if name in made.tails:
            assert (columns[-1].name, type(columns[-1])) == (made.tails[name], Tail)
    assert check(made.text, schemas, seed) > 1000


def test_the_kernels_own_structs() -> None:
    """With bit-fields, unions without a name, arrays of structs of unions, and whatever else it is made of."""
    headers = ["linux/sched.h", "linux/blk-mq.h", "linux/netdevice.h", "linux/tcp.h", "net/sock.h"]
    declarations = "".join(f"#include <{header}>\n" for header in headers)
    names = """
        task_struct mm_struct vm_area_struct file inode dentry request bio sk_buff sock tcp_sock net_device pt_regs cred
        pid page folio
    """
    schemas = read_schemas(declarations, names.split())
    assert check(declarations, schemas, 0) > 2000
