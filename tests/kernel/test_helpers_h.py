"""The vocabulary of bcc's C against what it describes: the installed bcc's helpers.h, the running kernel's types."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from bpfnb.language.vocabulary import METHODS, PROBES, TABLES, helpers
from bpfnb.tracer.kernel.btf import ENUM, KERNEL_BTF, Types

# The macro's argument is the method's name.
_DECLARED_BY_ARGUMENT = {"sock_map_update"}
_NEWER = {"MODULE_KFUNC_PROBE", "MODULE_KRETFUNC_PROBE", "ringbuf_query"}  # than the oldest bcc that we run with, 0.26


@pytest.fixture(scope="module")
def helpers_h() -> str:
    """The text of the header, which is a string in the library."""
    ctypes.CDLL("libbcc.so.0")
    path = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libbcc.so" in line)
    text = Path(path).read_bytes()
    start, end = text.index(b"#define BPF_F_TABLE("), text.index(b"#define BPF_LICENSE")
    return text[start:end].decode().replace("\\\n", " ")


def test_every_macro_that_declares_is_known_with_its_parameters(helpers_h: str) -> None:
    macros = dict(re.findall(r"^#define ((?:BPF_\w+|\w+_PROBE|KMOD_RET))\(([^)]*)\)", helpers_h, re.M))
    for name in list(macros):  # those that choose among others by the number of arguments, and those that annotate
        if name.endswith("X") or name.startswith("BPF_ANNOTATE"):
            del macros[name]
    assert macros.keys() <= TABLES.keys() | PROBES.keys()
    assert (TABLES.keys() | PROBES.keys()) - macros.keys() <= _NEWER
    for name, args in macros.items():
        parameters = [word.strip() for word in args.split(",")]
        if name in TABLES and parameters != ["..."]:
            assert (len(TABLES[name].parameters), TABLES[name].name_at) == (len(parameters), parameters.index("_name"))
        elif name in PROBES:
            assert PROBES[name].named == len([word for word in parameters if not word.endswith("...")])


def test_every_method_is_known_with_its_parameters(helpers_h: str) -> None:
    found = re.findall(r"[ *]\(\s*\*\s*(\w+)\)\s*\(([^)]*)\)\s*;", helpers_h)
    known = {name for name, _ in found if name in METHODS}
    assert {name for name, _ in found if not name.startswith("_")} == known
    assert METHODS.keys() - known <= _NEWER | _DECLARED_BY_ARGUMENT
    for name, args in found:
        if name in known and "..." not in args:
            assert METHODS[name].takes(len(args.split(","))), name


def test_helpers_have_the_kernels_numbers() -> None:
    types = Types(KERNEL_BTF.read_bytes(), "the kernel's")
    (enum,) = types.named(["bpf_func_id"], ENUM)
    kernel = {name.removeprefix("BPF_FUNC_"): number for name, number in types.constants(enum)}
    numbers = {name.removeprefix("bpf_"): helper.number for name, helper in helpers().items()}
    common = kernel.keys() & numbers.keys()
    assert len(common) > 170  # Linux 5.15 has 179
    assert {name: kernel[name] for name in common} == {name: numbers[name] for name in common}
    assert kernel.keys() - numbers.keys() <= {"unspec", "__BPF_FUNC_MAX_ID"}
