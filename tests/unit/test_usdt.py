"""The operands in which USDT notes give arguments, as C that reads them."""

from __future__ import annotations

import re
from typing import cast

import pytest

from bpfnb.tracer.link import usdt
from bpfnb.tracer.symbols.elf import Elf, UsdtNote

REGISTERS = {"ax": 0x1234, "bx": 10, "cx": 3, "bp": 1000, "sp": 2000, "ip": 5000, "r9": 77}
NOTE = UsdtNote("p", "n", 0x400, 0, "")


class OneVariable:
    """A file with a variable called counter, 0x300 bytes behind the probe."""

    def value(self, name: str) -> int | None:
        return 0x700 if name == "counter" else None


def value(c: str) -> int:
    """What a C expression comes to when the registers hold what stands above."""
    numbers = re.sub(r"ctx->(\w+)", lambda match: str(REGISTERS[match[1]]), c.replace("LL", ""))
    return int(eval(numbers))


@pytest.mark.parametrize(
    ("operand", "is_memory", "wanted"),
    [
        ("$-5", False, -5),
        ("$0x10", False, 16),
        ("%rbx", False, 10),
        ("%bl", False, 10),
        ("%ah", False, 0x12),
        ("%r9d", False, 77),
        ("(%rsp)", True, 2000),
        ("112(%rsp)", True, 2112),
        ("-8(%rbp)", True, 992),
        ("8(%rbp,%rcx,4)", True, 1020),
        ("(%rbp,%rcx)", True, 1003),
        ("16(,%rcx,8)", True, 40),
        ("counter(%rip)", True, 5000 + 0x300),
        ("counter+8(%rip)", True, 5008 + 0x300),
        ("8+counter(%rip)", True, 5008 + 0x300),
        ("counter-4(%rip)", True, 4996 + 0x300),
    ],
)
def test_an_operand_is_where_the_argument_lies(operand: str, is_memory: bool, wanted: int) -> None:
    c = usdt.OPERANDS["x86_64"](cast("Elf", OneVariable()), NOTE, operand)
    assert c.startswith("*") == is_memory
    assert value(c.lstrip("*")) == wanted


@pytest.mark.parametrize(
    "operand", ["%xmm0", "%fs:-8", "counter(%rax)", "nothing(%rip)", "8(%zax)", "counter", "x+(%rip)"]
)
def test_what_cannot_be_read_is_not_guessed_at(operand: str) -> None:
    assert usdt.OPERANDS["x86_64"](cast("Elf", OneVariable()), NOTE, operand) == ""


def test_sizes_signs_and_spaces() -> None:
    found = usdt.parse_arguments(
        cast("Elf", OneVariable()), NOTE._replace(arguments="-4@%ebx 8f@%xmm1 1@$7 %rax"), "x86_64"
    )
    assert [argument.text for argument in found] == ["-4@%ebx", "8f@%xmm1", "1@$7", "@%rax"]
    assert [argument.c for argument in found] == [
        "value = (s64)(s32)(ctx->bx);",
        "",
        "value = (u64)(u8)(7LL);",
        "value = (u64)(u64)(ctx->ax);",
    ]
    found = usdt.parse_arguments(
        cast("Elf", OneVariable()), NOTE._replace(arguments="-4@[sp, 60] 8@x19 4@5 8@[x1]"), "aarch64"
    )
    assert [argument.text for argument in found] == ["-4@[sp, 60]", "8@x19", "4@5", "8@[x1]"]
    assert "ctx->sp + (60LL)" in found[0].c
    assert found[1].c == "value = (u64)(u64)(ctx->regs[19]);"
