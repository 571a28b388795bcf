"""Names of C++ and Rust, found among mangled ones."""

from __future__ import annotations

import pytest

from bpfnb.tracer.symbols import cxx

NAMES = [
    "main",
    "_ZN3app5Order5totalEii",
    "_ZNK3app5Order5totalEi",
    "_ZN3app5OrderD1Ev",
    "_ZN3app5OrderD2Ev",
    "_ZN3app5Order4convIiEET_S2_",
    "_ZNK3app5OrdercvbEv",
    "_ZN3app5OrderclEi",
    "_ZN3app5OrderplERKS0_",
    "_ZN3app4showERKSt6vectorIiSaIiEE",
    "_ZN4shop4till5count17h0123456789abcdefE",
    "_Z9not_mangled",
]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("app::Order::total(int, int)", ["_ZN3app5Order5totalEii"]),
        ("app::Order::total( int,int )", ["_ZN3app5Order5totalEii"]),
        ("app::Order::total(int) const", ["_ZNK3app5Order5totalEi"]),
        ("app::Order::total", ["_ZN3app5Order5totalEii", "_ZNK3app5Order5totalEi"]),
        ("app::Order::~Order()", ["_ZN3app5OrderD1Ev", "_ZN3app5OrderD2Ev"]),
        ("app::Order::conv<int>(int)", ["_ZN3app5Order4convIiEET_S2_"]),
        ("app::Order::operator bool", ["_ZNK3app5OrdercvbEv"]),
        ("app::Order::operator()(int)", ["_ZN3app5OrderclEi"]),
        ("app::Order::operator()", ["_ZN3app5OrderclEi"]),
        ("app::Order::operator+(app::Order const&)", ["_ZN3app5OrderplERKS0_"]),
        ("app::show(std::vector<int, std::allocator<int> > const&)", ["_ZN3app4showERKSt6vectorIiSaIiEE"]),
        ("app::show", ["_ZN3app4showERKSt6vectorIiSaIiEE"]),
        ("shop::till::count", ["_ZN4shop4till5count17h0123456789abcdefE"]),
        ("Order::total", []),
        ("app::Order::total(long)", []),
        ("", []),
    ],
)
def test_a_name_finds_its_functions(name: str, found: list[str]) -> None:
    assert [signature.mangled for signature in cxx.find(name, NAMES)] == found


def test_what_may_be_meant() -> None:
    assert {s.full for s in cxx.related("Order::total", NAMES)} == {
        "app::Order::total(int, int)",
        "app::Order::total(int) const",
    }
    assert "app::Order::total(int, int)" in {s.full for s in cxx.related("app::Order::totl(int)", NAMES)}
    assert cxx.related("nothing", NAMES) == []
