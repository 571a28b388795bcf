"""The vocabulary of bcc's C: its parts fit one another, and what hints make of it."""

from __future__ import annotations

import pytest

from bpfnb.language.probes import KINDS, named_by_function
from bpfnb.language.vocabulary import METHODS, PROBES, TABLES, declares, helpers, usage


def test_the_methods_of_tables_are_methods() -> None:
    assert {name for table in TABLES.values() for name in table.methods} <= METHODS.keys()


def test_a_method_is_used_as_it_is_declared() -> None:
    for method in METHODS.values():
        name, _, inside = method.usage.partition("(")
        assert name == method.name
        assert method.takes(len(inside.split(", "))), method.usage


def test_the_helpers_that_methods_stand_for_are_helpers() -> None:
    assert {method.helper for method in METHODS.values() if method.helper} <= helpers().keys()


@pytest.mark.parametrize("name", [name for name, macro in PROBES.items() if macro.offered])
def test_a_function_that_a_macro_writes_has_its_probe_in_its_name(name: str) -> None:
    macro = PROBES[name]
    words = ("x", "y")[: macro.named]
    target = {"tracepoint": "x:y"}.get(macro.kind, "__".join(words))
    assert named_by_function(macro.function.format(*words)) == (macro.kind, target)
    assert macro.kind in KINDS


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("BPF_HASH", "BPF_HASH(NAME[, KEY[, VALUE[, SIZE]]])"),
        ("BPF_HASH3", "BPF_HASH3(NAME, KEY, VALUE)"),
        ("BPF_TABLE", 'BPF_TABLE("TYPE", KEY, VALUE, NAME, SIZE)'),
        ("BPF_PERF_OUTPUT", "BPF_PERF_OUTPUT(NAME)"),
        ("KRETFUNC_PROBE", "KRETFUNC_PROBE(FUNCTION, PARAMETERS..., RESULT)"),
    ],
)
def test_usage(word: str, shown: str) -> None:
    assert declares(word)
    assert usage(word) == shown


def test_signatures_of_helpers() -> None:
    snprintf = helpers()["bpf_snprintf"]
    assert (snprintf.number, snprintf.returns, snprintf.parameters[0]) == (165, "long", "char *str")
    assert helpers()["bpf_ktime_get_ns"].parameters == ()
    assert helpers()["bpf_map_lookup_elem"].returns == "void *"
    assert str(helpers()["bpf_map_lookup_elem"]) == "void *bpf_map_lookup_elem(struct bpf_map *map, const void *key)"
    assert str(helpers()["bpf_ktime_get_ns"]) == "u64 bpf_ktime_get_ns(void)"
    assert [helper.number for helper in helpers().values()] == list(range(1, 212))
