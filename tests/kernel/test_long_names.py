"""Uprobes on functions by their names in C++ and Rust."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import bpfnb

# What a C++ compiler would call these functions; a C compiler is what there is.
PROGRAM = r"""
#define FUNCTION(name, mangled) int name(int x) __asm__(mangled); \
    __attribute__((noinline, noipa)) int name(int x) { return x + 1; }
FUNCTION(total2, "_ZN3app5Order5totalEii")
FUNCTION(total1, "_ZNK3app5Order5totalEi")
FUNCTION(equal, "_ZNK3app5OrdereqERKS0_")
FUNCTION(convert, "_ZN3app5Order4convIiEET_S2_")
FUNCTION(rust_a, "_ZN4shop4till5count17h0123456789abcdefE")
FUNCTION(rust_b, "_ZN4shop4till5count17hfedcba9876543210E")
FUNCTION(text, "_ZN3app4showEPKc")
int main(void) {
    int x = 0;
    for (int i = 0; i < 2; i++) x = total2(x);
    for (int i = 0; i < 3; i++) x = total1(x);
    for (int i = 0; i < 4; i++) x = equal(x);
    for (int i = 0; i < 5; i++) x = convert(x);
    for (int i = 0; i < 6; i++) x = rust_a(x);
    for (int i = 0; i < 7; i++) x = rust_b(x);
    for (int i = 0; i < 8; i++) x = text(x);
    return x == 0;
}
"""
HIT = 'int hit(void *ctx) { bpf_trace_printk("hit"); return 0; }'


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long names")  # a space, as a path may have
    (folder / "w.c").write_text(PROGRAM)
    subprocess.run(["gcc", "-O1", "-o", folder / "w", folder / "w.c"], check=True)
    return folder / "w"


CALLS = {
    "app::Order::total(int, int)": 2,
    "app::Order::total(int,int)": 2,
    "app::Order::total(int) const": 3,
    "app::Order::operator==(app::Order const&) const": 4,
    "app::Order::operator==": 4,
    "app::Order::conv<int>(int)": 5,
    "app::Order::conv<int>": 5,
    "shop::till::count": 13,  # two of one name, whose generic parameters differ
    "app::show(char const*)": 8,
    "_ZN3app5Order5totalEii": 2,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_function_by_its_long_name(program: Path, name: str) -> None:
    with bpfnb.trace(HIT, attach={f"uprobe:{program}:{name}": "hit"}) as session:
        subprocess.run([program], check=True)
    assert len(session.df) == CALLS[name]
    assert session.probes[0].attached == f"uprobe:{program}:{name}"


REFUSED = [
    ("app::Order::total", "has 2 functions", ("app::Order::total(int, int)", "app::Order::total(int) const")),
    ("app::Order::totl(int, int)", "has no function app::Order::totl", ("app::Order::total(int, int)",)),
    ("app::Order::total(long, long)", "has no function", ("app::Order::total(int, int)",)),
    ("Order::total", "has no function", ("app::Order::total(int, int)", "app::Order::total(int) const")),
    ("total", "has no function total", ("app::Order::total(int, int)", "app::Order::total(int) const")),
    ("std::nothing", "has no function std::nothing", ()),
]


@pytest.mark.parametrize(("name", "words", "hints"), REFUSED)
def test_a_long_name_that_is_none_says_which_there_are(
    program: Path, name: str, words: str, hints: tuple[str, ...]
) -> None:
    with pytest.raises(bpfnb.AttachError) as caught:
        bpfnb.trace(HIT, attach={f"uprobe:{program}:{name}": "hit"})
    assert words in str(caught.value)
    assert bool(caught.value.hint) == bool(hints)
    for hint in hints:
        assert f"uprobe:{program}:{hint}" in (caught.value.hint or "")
        bpfnb.trace(HIT, attach={f"uprobe:{program}:{hint}": "hit"}).stop()  # what the hint says
