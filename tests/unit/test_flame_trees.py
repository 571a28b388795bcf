"""Stacks added up, as a tree, and as files: against sums by a plain dictionary, and other tools' formats."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfnb.errors import ProgramError
from bpfnb.exports.files import write_text
from bpfnb.results.flame.files import folded_text, speedscope_text
from bpfnb.results.flame.fold import Folded, fold, from_texts, read_folded
from bpfnb.results.flame.kinds import KINDS, kinds_of, shown
from bpfnb.results.flame.tree import FlameTree, own_values, totals

FUNCTIONS = st.sampled_from(["main", "read", "write", "read_[k]", "py::f:/x.py", "a b", "\N{SNOWMAN}", ""])
STACKS = st.lists(st.tuples(st.lists(FUNCTIONS, min_size=1, max_size=6), st.integers(0, 1 << 40)), max_size=30)


def pairs(folded: Folded) -> dict[str, Any]:
    assert len(set(folded.stacks)) == len(folded.stacks)
    return dict(zip(folded.stacks, folded.values.tolist(), strict=True))


# --- added up -----------------------------------------------------------------------------------------------------


def test_rows_of_one_stack_add_up() -> None:
    frame = pd.DataFrame({"stack": ["a;b", "a", "a;b"], "count": np.array([1, 2, 4], np.uint64)})
    assert pairs(fold(frame)) == {"a;b": 5, "a": 2}
    assert fold(frame).values.dtype == np.int64


def test_a_row_counts_one_where_nothing_counts() -> None:
    folded = fold(pd.DataFrame({"stack": pd.Categorical(["a", "b", "a"])}))
    assert (pairs(folded), folded.unit, folded.total) == ({"a": 2, "b": 1}, "count", 3)


@pytest.mark.parametrize(
    ("columns", "value", "unit", "expected"),
    [
        ({"count": [2], "total": pd.to_timedelta([7], unit="ns")}, None, "ns", 7),
        ({"count": [2], "total": pd.to_timedelta([7], unit="us")}, None, "ns", 7000),
        ({"size": [512], "count": [2]}, None, "bytes", 512),
        ({"size": [512], "count": [2]}, "count", "count", 2),
        ({"value": [3]}, None, "count", 3),
        ({"us": [3]}, "us", "count", 3),
    ],
)
def test_what_is_added_up_and_its_unit(columns: dict[str, Any], value: str | None, unit: str, expected: int) -> None:
    folded = fold(pd.DataFrame({"stack": ["a"], **columns}), value)
    assert (pairs(folded), folded.unit) == ({"a": expected}, unit)


def test_numbers_of_a_unit_that_is_named() -> None:
    folded = fold(pd.DataFrame({"stack": ["a"], "took": [3]}), "took", unit="us")
    assert (pairs(folded), folded.unit) == ({"a": 3000}, "ns")


def test_columns_of_text_are_outermost() -> None:
    frame = pd.DataFrame(
        {"pid": [7, 8, 9], "comm": pd.Categorical(["x;y", "z", None]), "stack": ["a", "a", "a"], "count": [1, 2, 4]}
    )
    assert pairs(fold(frame)) == {"x:y;a": 1, "z;a": 2, "comm: none;a": 4}
    assert pairs(fold(frame, by=())) == {"a": 7}
    assert pairs(fold(frame, by=["pid", "comm"])) == {"pid=7;x:y;a": 1, "pid=8;z;a": 2, "pid=9;comm: none;a": 4}


def test_rows_without_a_stack_or_a_value_are_counted() -> None:
    frame = pd.DataFrame({"stack": ["a", None, "a", "b"], "count": [1.5, 1, np.nan, np.inf]})
    folded = fold(frame)
    assert (pairs(folded), folded.missing) == ({"a": 1.5}, 3)
    frame = pd.DataFrame({"stack": ["a", "a"], "total": pd.to_timedelta([5, None])})
    assert (pairs(fold(frame)), fold(frame).missing) == ({"a": 5.0}, 1)


def test_nothing() -> None:
    folded = fold(pd.DataFrame({"comm": [], "stack": pd.array([], "string"), "count": np.array([], np.int64)}))
    assert (folded.stacks, folded.total) == ((), 0)


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        ({"stac": ["a"]}, {}, "no column 'stack' of stacks; did you mean stac?"),
        ({"stack": [7]}, {}, "column 'stack' has numbers of stacks, not their functions"),
        ({"stack": ["a"], "count": [1]}, {"value": "cuont"}, "no column 'cuont'; did you mean count?"),
        ({"stack": ["a"], "count": ["x"]}, {"value": "count"}, "there is nothing to add up"),
        ({"stack": ["a"], "count": [-1]}, {}, "column 'count' has values below 0"),
        ({"stack": ["a"]}, {"by": "comm"}, "no column 'comm'"),
        ({"stack": ["a"]}, {"unit": "hours"}, "no unit 'hours'"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(frame: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProgramError) as said:
        fold(pd.DataFrame(frame), **options)
    assert message in str(said.value)
    assert "\n" not in str(said.value)


# --- a tree -------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(STACKS)
def test_the_tree_has_what_a_dictionary_of_paths_has(stacks: list[tuple[list[str], int]]) -> None:
    own: Counter[tuple[str, ...]] = Counter()
    total: Counter[tuple[str, ...]] = Counter()
    for names, value in stacks:
        path = (*names,) if names != [""] else ("[no stack]",)
        own[path] += value
        for end in range(len(path) + 1):
            total[path[:end]] += value
    folded = from_texts([";".join(names) for names, _ in stacks], np.array([v for _, v in stacks], np.int64))
    tree = FlameTree()
    values = own_values(tree, folded)
    sums = totals(tree, values)
    paths = [tuple(tree.path(node)) for node in range(len(tree))]
    assert len(set(paths)) == len(paths)
    assert {p: v for p, v in zip(paths, sums.tolist(), strict=True) if v} == {p: v for p, v in total.items() if v}
    assert {p: v for p, v in zip(paths, values.tolist(), strict=True) if v} == {p: v for p, v in own.items() if v}
    assert all(parent < node for node, parent in enumerate(tree.parents().tolist()) if node)


def test_a_tree_that_grows_keeps_its_numbers() -> None:
    tree = FlameTree()
    first = tree.add(["a;b", "a;c"])
    parents, names = tree.parents().tolist(), list(tree.names)
    again = tree.add(["a;c;d", "a;b"])
    assert again[1] == first[0]
    assert tree.parents().tolist()[: len(parents)] == parents
    assert tree.names[: len(names)] == names
    assert tree.parents(len(parents)).tolist() == [first[1]]


def test_a_process_called_as_a_function_is_told_from_it() -> None:
    folded = fold(pd.DataFrame({"comm": ["main"], "stack": ["main;f_[k]"], "count": [1]}))
    tree = FlameTree(len(folded.by))
    own_values(tree, folded)
    kinds = [KINDS[tree.kinds()[number]] for number in tree.name_numbers()[1:]]
    assert kinds == ["group", "native", "kernel"]


def test_the_hottest_stacks() -> None:
    folded = from_texts(["a;b", "a", "c"], [5, 1, 9])
    tree = FlameTree()
    own = own_values(tree, folded)
    assert tree.hottest(own, 2) == [(["c"], 9), (["a", "b"], 5)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("do_sys_open_[k]", "kernel"),
        ("std::vector<int>::push_back(int&&)", "native"),
        ("main", "native"),
        ("List_append", "native"),
        ("py::spin:/home/me/x.py", "Python"),
        ("spin (x.py:12)", "Python"),
        ("LazyCompile:*run server.js:3", "compiled at run time"),
        ("Ljava/lang/String::hashCode_[j]", "compiled at run time"),
        ("Ljava/util/HashMap::get", "compiled at run time"),
        ("[unknown] libc.so.6", "unknown"),
        ("[no stack: EEXIST]", "unknown"),
        ("[no stack: EFAULT]", "unknown"),
    ],
)
def test_the_kind_of_a_name(name: str, kind: str) -> None:
    assert KINDS[kinds_of([name])[0]] == kind


def test_annotations_are_not_shown() -> None:
    assert [shown(name) for name in ("read_[k]", "read_[j]", "a[k]", "b")] == ["read", "read", "a[k]", "b"]


# --- files --------------------------------------------------------------------------------------------------------

# flamegraph.pl's: my ($stack, $count) = (/^(.*)\s+?(\d+(?:\.\d*)?)$/)
PERL = re.compile(r"^(.*)\s+?(\d+(?:\.\d*)?)$")


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=12), st.integers(0, 1 << 62), max_size=8))
def test_each_line_is_one_stack_to_flamegraph_pl(counts: dict[str, int]) -> None:
    text = folded_text(Folded(tuple(counts), np.array(list(counts.values()), np.int64)))
    lines = text.split("\n")[:-1]
    assert len(lines) == len(counts)
    found = [PERL.fullmatch(line) for line in lines]
    assert sorted(int(match[2]) for match in found if match) == sorted(counts.values())


def test_folded_files_come_back(tmp_path: Path) -> None:
    folded = from_texts(["main;read (x.c:3);do it_[k]", "a", "b"], [1 << 53, 2, 2])
    write_text(tmp_path / "x.folded", folded_text(folded))
    assert (tmp_path / "x.folded").read_text() == "main;read (x.c:3);do it_[k] 9007199254740992\na 2\nb 2\n"
    assert pairs(read_folded(tmp_path / "x.folded")) == pairs(folded)


def test_folded_files_of_others(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"# made by hand\n\njava;Foo::bar 12 30\r\na;\xff 1.5\na;b\t2\n")
    assert pairs(read_folded(tmp_path / "x")) == {
        "java;Foo::bar 12": 30.0,
        "a;\N{REPLACEMENT CHARACTER}": 1.5,
        "a;b": 2,
    }


def test_what_is_no_folded_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a;b 1\n\x1b[31mfoo\n")
    with pytest.raises(ProgramError, match=r"x, line 2: a stack and a count, as in main;read 42, not \\x1b\[31mfoo"):
        read_folded(tmp_path / "x")
    with pytest.raises(ProgramError, match="none: No such file"):
        read_folded(tmp_path / "none")
    with pytest.raises(ProgramError, match="directory"):
        read_folded(tmp_path)


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_text(path, "first")
    with pytest.raises(ProgramError, match="is there already: overwrite=True replaces it"):
        write_text(path, "second")
    assert path.read_text() == "first"
    write_text(path, "3", overwrite=True)
    assert path.read_text() == "3"
    with pytest.raises(ProgramError, match="No such file"):
        write_text(tmp_path / "none" / "x", "4")


def test_speedscopes_file_is_as_its_types_say() -> None:
    hostile = 'x"\n</script>\ud800\N{RIGHT-TO-LEFT OVERRIDE}'
    folded = Folded(("main;read_[k]", "main", f"py::f:/tmp/x.py;{hostile}"), np.array([5, 2, 1], np.int64), "ns")
    text = speedscope_text(folded, "my <session>")
    check_speedscope(file := json.loads(text))
    frames = file["shared"]["frames"]
    profile = file["profiles"][0]
    stacks = {
        tuple(frames[i]["name"] for i in s): w for s, w in zip(profile["samples"], profile["weights"], strict=True)
    }
    assert stacks == {("main", "read"): 5, ("main",): 2, ("f", hostile): 1}
    assert (profile["unit"], profile["endValue"]) == ("nanoseconds", 8)
    assert {"name": "f", "file": "/tmp/x.py"} in frames


def test_speedscopes_file_of_nothing() -> None:
    check_speedscope(json.loads(speedscope_text(Folded((), np.empty(0, np.int64)), "x")))


def check_speedscope(file: Any) -> None:
    """speedscope's src/lib/file-format-spec.ts: every key there is, with its type, and the sums it states."""
    units = ("none", "nanoseconds", "microseconds", "milliseconds", "seconds", "bytes")
    assert file["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    assert file.keys() <= {"$schema", "shared", "profiles", "name", "activeProfileIndex", "exporter"}
    assert file["shared"].keys() == {"frames"}
    for frame in file["shared"]["frames"]:
        assert {"name"} <= frame.keys() <= {"name", "file", "line", "col"}
        assert all(isinstance(frame[key], str) for key in frame.keys() & {"name", "file"})
    assert isinstance(file["name"], str)
    assert isinstance(file["exporter"], str)
    assert 0 <= file["activeProfileIndex"] < len(file["profiles"])
    for profile in file["profiles"]:
        assert profile.keys() == {"type", "name", "unit", "startValue", "endValue", "samples", "weights"}
        assert (profile["type"], profile["unit"] in units) == ("sampled", True)
        assert len(profile["samples"]) == len(profile["weights"])
        assert profile["startValue"] <= profile["endValue"]
        assert sum(profile["weights"]) == profile["endValue"] - profile["startValue"]
        assert all(0 <= i < len(file["shared"]["frames"]) for sample in profile["samples"] for i in sample)
