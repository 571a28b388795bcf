"""Types of arguments: from BTF made by hand, a module's too, and from texts of format files, old ones among them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import bpfnb
from bpfnb.hosts import default_host
from bpfnb.language.signature import Argument, Signature, Type
from bpfnb.testing import FakeTracer
from bpfnb.tracer.kernel import btf
from bpfnb.tracer.signatures.fields import fields, parameters
from bpfnb.tracer.signatures.kernel import BtfFolder
from bpfnb.tracer.signatures.members import follow, place_of
from bpfnb.tracer.signatures.types import KernelTypes, plain_type

SIGNED, BOOL = 1, 4


class Blob:
    """BTF in the making; ``after``: the blob whose numbers and strings a module's go on from."""

    def __init__(self, after: Blob | None = None) -> None:
        self.first = after.next if after else 1
        self.offset = after.offset + len(after.strings) if after else 0
        self.types: list[bytes] = []
        self.strings = b"" if after else b"\0"

    @property
    def next(self) -> int:
        return self.first + len(self.types)

    def text(self, text: str) -> int:
        if not text:
            return 0
        self.strings += text.encode() + b"\0"
        return self.offset + len(self.strings) - len(text.encode()) - 1

    def add(self, kind: int, name: str = "", ref: int = 0, *words: int, vlen: int = 0, flag: bool = False) -> int:
        head = struct.pack("=III", self.text(name), flag << 31 | kind << 24 | vlen, ref)
        self.types.append(head + struct.pack(f"={len(words)}I", *words))
        return self.next - 1

    def integer(self, name: str, size: int, encoding: int = 0) -> int:
        return self.add(btf.INT, name, size, encoding << 24 | size * 8)

    def members(
        self, name: str, size: int, *members: tuple[str, int, int], kind: int = btf.STRUCT, flag: bool = False
    ) -> int:
        words = [word for member, to, place in members for word in (self.text(member), to, place)]
        return self.add(btf.STRUCT, name, size, *words, vlen=len(members), flag=flag)

    def function(self, name: str, returns: int, **parameters: int) -> int:
        words = [word for parameter, to in parameters.items() for word in (self.text(parameter), to)]
        return self.add(btf.FUNC, name, self.add(btf.FUNC_PROTO, "", returns, *words, vlen=len(parameters)))

    def finished(self) -> bytes:
        types = b"".join(self.types)
        return (
            struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(self.strings))
            + types
            + self.strings
        )


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> BtfFolder:
    """A kernel with struct s, and a module with a function and a struct of its own that holds it."""
    kernel = Blob()
    int_, ulong = kernel.integer("int", 4, SIGNED), kernel.integer("long unsigned int", 8)
    char, bool_ = kernel.integer("char", 1, SIGNED), kernel.integer("_Bool", 1, BOOL)
    be16 = kernel.add(btf.TYPEDEF, "__be16", kernel.add(btf.TYPEDEF, "__u16", kernel.integer("short unsigned int", 2)))
    name = kernel.add(btf.PTR, "", kernel.add(btf.CONST, "", char))
    user = kernel.add(btf.PTR, "", kernel.add(btf.TYPE_TAG, "user", char))
    inner = kernel.members("", 16, ("port", be16, 0), ("name", name, 64))
    s = kernel.members("s", 24, ("bits", int_, 3 << 24 | 0), ("", inner, 64), flag=True)
    pointer = kernel.add(btf.PTR, "", s)
    size = kernel.add(btf.TYPEDEF, "size_t", ulong)
    big = kernel.members("big", 24, ("words", kernel.add(btf.ARRAY, "", 0, ulong, ulong, 3), 0))
    mode = kernel.add(btf.ENUM, "mode", 4, kernel.text("OFF"), 0, kernel.text("ON"), 1, vlen=2)
    kernel.function("read", int_, s=pointer, buf=name, count=size, to=user, on=bool_)
    kernel.function("many", pointer, whole=big, mode=mode, label=name, any=kernel.add(btf.PTR, "", 0))
    (tmp_path / "vmlinux").write_bytes(kernel.finished())
    module = Blob(after=kernel)
    own = module.members("own", 8, ("held", pointer, 0))
    module.function("own_read", s, own=module.add(btf.PTR, "", own), label=name)
    (tmp_path / "mod").write_bytes(module.finished())
    return BtfFolder(tmp_path)


def test_prototypes(folder: BtfFolder) -> None:
    _, read = folder.function("read") or pytest.fail("not found")
    assert [(p.name, p.type.text, p.type.kind, p.register) for p in read.parameters] == [
        ("s", "struct s *", "pointer", 0),
        ("buf", "const char *", "pointer", 1),  # of a length
        ("count", "size_t", "int", 2),
        ("to", "char *", "pointer", 3),
        ("on", "bool", "bool", 4),
    ]
    assert [p.type.user for p in read.parameters] == [False, False, False, True, False]
    _, many = folder.function("many") or pytest.fail("not found")
    assert [(p.name, p.type.text, p.type.kind, p.register) for p in many.parameters] == [
        ("whole", "struct big", "struct", -1),  # too large for registers
        ("mode", "enum mode", "enum", 0),
        ("label", "const char *", "string", 1),
        ("any", "void *", "pointer", 2),
    ]
    assert many.parameters[1].type.values == (("OFF", 0), ("ON", 1))
    assert many.returns.text == "struct s *"
    assert folder.function("no_such") is None


def test_members_of_structs_without_a_name_and_what_is_not_there(folder: BtfFolder) -> None:
    types, read = folder.function("read") or pytest.fail("not found")
    start = place_of(types, read.parameters[0].type)
    port, near = follow(types, start, ("port",))
    assert [(t.text, t.big_endian, t.size, t.signed) for t in port[1:]] == [("__be16", True, 2, False)]
    assert near == ()
    bits, _ = follow(types, start, ("bits",))
    assert (bits[1].text, bits[1].bits) == ("int", 3)
    cut, near = follow(types, start, ("prot", "more"))
    assert ([t.text for t in cut], near) == (["struct s *"], ("port",))
    label, _ = follow(types, start, ("name", "0"))
    assert [t.text for t in label] == ["struct s *", "const char *", "const char"]
    words, _ = follow(types, place_of(types, types.of(types.number("struct big"))), ("words", "2"))
    assert [(t.text, t.kind, t.count) for t in words[1:]] == [
        ("unsigned long [3]", "array", 3),
        ("unsigned long", "int", 0),
    ]
    assert follow(types, start, ("0", "port"))[0][-1].text == "__be16"


def test_types_of_a_module(folder: BtfFolder, tmp_path: Path) -> None:
    assert folder.modules() == ["mod"]
    types, own = folder.function("own_read") or pytest.fail("not found")
    assert [p.type.text for p in own.parameters] == ["struct own *", "const char *"]
    path, _ = follow(types, place_of(types, own.parameters[0].type), ("held", "port"))
    assert [t.text for t in path] == ["struct own *", "struct s *", "__be16"]
    assert folder.functions() == ["read", "many"]
    assert folder.functions(modules=True) == ["read", "many", "own_read"]
    (tmp_path / "mod").unlink()  # it is unloaded
    assert folder.functions(modules=True) == ["read", "many"]
    assert folder.function("own_read") is None


def test_a_kernel_without_btf(tmp_path: Path) -> None:
    folder = BtfFolder(tmp_path / "none")
    assert (folder.kernel(), folder.modules(), folder.functions(modules=True)) == (None, [], [])
    assert folder.function("read") is None
    assert not folder.is_complete()


FORMAT = """name: example
ID: 1
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:char comm[TASK_COMM_LEN];\toffset:8;\tsize:16;\tsigned:1;
\tfield:__data_loc char[] name;\toffset:24;\tsize:4;\tsigned:1;
\tfield:__data_loc u8[] data;\toffset:28;\tsize:4;\tsigned:0;
\tfield:unsigned long args[6];\toffset:32;\tsize:48;\tsigned:0;
\tfield:const struct file * file;\toffset:80;\tsize:8;\tsigned:0;
\tfield:xfs_ino_t ino;\toffset:88;\tsize:8;\tsigned:0;
\tfield:long ret;\toffset:96;\tsize:8;\tsigned:1;
\tfield:bool ok;\toffset:104;\tsize:1;\tsigned:0;
\tfield:int odd;\toffset:112;\tsize:8;\tsigned:0;
\tfield:__rel_loc char[] later;\toffset:105;\tsize:4;\tsigned:0;

print fmt: "field:int no;\\toffset:0;"
"""


def test_fields_of_a_format_file() -> None:
    found = fields(FORMAT, plain_type)
    assert [(a.name, a.type.text, a.type.kind, a.type.size, a.type.count, a.located) for a in found] == [
        ("comm", "char [TASK_COMM_LEN]", "string", 16, 16, False),
        ("name", "char []", "string", 0, 0, True),
        ("data", "u8 []", "array", 0, 0, True),
        ("args", "unsigned long [6]", "array", 48, 6, False),
        ("file", "const struct file *", "pointer", 8, 0, False),
        ("ino", "xfs_ino_t", "int", 8, 0, False),
        ("ret", "long", "int", 8, 0, False),
        ("ok", "bool", "bool", 1, 0, False),
        ("odd", "int", "int", 8, 0, False),
        ("later", "char", "unknown", 4, 0, True),
    ]
    assert [a.position for a in found] == list(range(10))
    assert [found[i].type.signed for i in (6, 8)] == [True, False]


def test_parameters_of_a_system_call_without_btf() -> None:
    lines = [
        "int __syscall_nr",
        "const char *const * argv",
        "char * dev_name",
        "char * buf",
        "int bufsiz",
        "umode_t mode",
    ]
    text = "".join(f"\tfield:{line};\toffset:8;\tsize:8;\tsigned:0;\n" for line in lines)
    found = parameters(text, plain_type)
    assert [(a.name, a.type.text, a.type.kind, a.type.size, a.type.user) for a in found] == [
        ("argv", "const char *const *", "pointer", 8, True),
        ("dev_name", "char *", "string", 8, True),
        ("buf", "char *", "pointer", 8, True),
        ("bufsiz", "int", "int", 4, False),
        ("mode", "umode_t", "int", 2, False),
    ]
    argv = found[0].type
    assert argv.to
    assert (argv.to.text, argv.to.kind) == ("const char *const", "string")


@pytest.mark.parametrize(
    ("text", "size", "signed"),
    [("unsigned", 4, False), ("long long", 8, True), ("unsigned long int", 8, False), ("__s16", 2, True),
     ("uint64_t", 8, False), ("int8_t", 1, True), ("char", 1, True), ("long unsigned int", 8, False)],
)  # fmt: skip
def test_integers_of_c(text: str, size: int, signed: bool) -> None:
    found = plain_type(text)
    assert found
    assert (found.kind, found.size, found.signed) == ("int", size, signed)


def test_what_c_does_not_have_is_not_known() -> None:
    assert [plain_type(text) for text in ("struct file", "xfs_ino_t", "", "float")] == [None] * 4


def test_broken_btf_is_one_error() -> None:
    blob = Blob()
    blob.function("f", 0, x=99)
    with pytest.raises(bpfnb.SetupError, match="the kernel's BTF cannot be read: it has no type 99"):
        KernelTypes(btf.Types(blob.finished(), "the kernel's")).function("f")


def test_the_fake_tracer_describes_what_it_was_given() -> None:
    known = (Signature("syscall:a", (Argument("fd", Type("int", "int", 4, signed=True)),)), Signature("syscall:b"))
    with FakeTracer(signatures=known):
        describe = default_host.connect().describe
        assert describe(["syscall:a"], [("fd",)], 10) == known[:1]
        assert describe(["syscall:*"], [], 10) == known
        with pytest.raises(bpfnb.AttachError, match=r"^kprobe:\*: no probe matches$"):
            describe(["kprobe:*"], [], 10)
        with pytest.raises(bpfnb.ProgramError, match="2 probes are more than 1"):
            describe(["syscall:*"], [], 1)
