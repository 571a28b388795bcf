"""The C that tests filters: where it goes, what it depends on, and what it leaves as it is."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from bpfnb.errors import ProgramError, UnsupportedError
from bpfnb.language.filters import Filters
from bpfnb.language.program import Program, parse
from bpfnb.options import filters_of
from bpfnb.tracer.compile.rewrite import rewrite
from bpfnb.tracer.source_map import Rewritten

SOURCE = """\
static inline int helper(int x) { return x; }
int hit(void *ctx) { return helper(1); }
TRACEPOINT_PROBE(sched, sched_switch) {
    return 0;
}
int idle(void *ctx) { return 0; }
"""
TEST = "if (!bpfnb_selected()) return 0;"
ALL = Filters(pid=1, follow=2, comm="a", cgroup="b", uid=3)


def program(source: str = SOURCE, **filters: object) -> Program:
    return replace(parse(source, {"syscall:clone": "hit"}), filters=Filters(**filters))  # type: ignore[arg-type]


def written(of: Program) -> Rewritten:
    return rewrite(of, tag="", syscall_mode="tracepoint")


def test_attached_functions_and_no_others_begin_with_the_test() -> None:
    lines = written(program(pid=5)).text.splitlines()
    begun = [before for before, line in zip(lines, lines[2:], strict=False) if TEST in line]
    assert begun == ["int hit(void *ctx) {", "TRACEPOINT_PROBE(sched, sched_switch) {"]


def test_without_filters_nothing_changes() -> None:
    assert "bpfnb_selected" not in written(program()).text
    assert "bpfnb_filter" not in written(program()).text


@pytest.mark.parametrize("call", ["bpfnb_selected()", "bpfnb_selected_task(0)"])
def test_a_cell_that_tests_by_itself_is_left_as_it_is(call: str) -> None:
    source = f"#define MINE {call}\nint hit(void *ctx) {{ return MINE; }}\n"
    assert TEST not in written(program(source, pid=5)).text
    name = call.partition("(")[0]
    assert f"{name}(" in written(program(source)).text.partition("#define MINE")[0], "it is there without filters, too"


def test_which_processes_are_meant_is_not_in_the_text() -> None:
    """A cell is compiled once, whomever it is about."""
    some, others = {"pid": 5, "comm": "a", "uid": 0}, {"pid": 6, "comm": "b*", "uid": 7}
    assert written(program(**some)).text == written(program(**others)).text
    assert written(program(pid=5)).text != written(program(follow=5)).text


def test_places_are_the_cells_own() -> None:
    rewritten = written(program(pid=5))
    line = SOURCE.splitlines()[1]
    shifted = next(found for found in rewritten.text.splitlines() if found.lstrip().startswith(TEST))
    assert "return helper(1)" in shifted
    assert rewritten.to_cell(2, shifted.index("return helper") + 1) == (2, line.index("return") + 1)
    assert rewritten.is_inserted(2, shifted.index("bpfnb_selected") + 1)


def test_a_function_that_a_macro_writes() -> None:
    source = "#define HIT(name) int name(void *ctx) { return 0; }\nHIT(hit)\n"
    with pytest.raises(UnsupportedError, match="cannot be put into hit, which a macro writes") as caught:
        written(program(source, pid=5))
    assert caught.value.line == 2
    assert caught.value.hint == "begin the function with: if (!bpfnb_selected()) return 0;"
    written(program(source.replace("return 0;", "return bpfnb_selected();"), pid=5))


def test_filters_in_words() -> None:
    assert str(ALL) == "pid 1, follow 2, comm a, cgroup b, uid 3"
    assert str(Filters(uid=0)) == "uid 0"
    assert not Filters()
    assert Filters(uid=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pid": 0}, "pid must be the number of a process, not 0"),
        ({"follow": -5}, "follow must be the number of a process, not -5"),
        ({"pid": "5"}, "pid must be the number of a process, not '5'"),
        ({"pid": True}, "pid must be the number of a process, not True"),
        ({"pid": 1.5}, "pid must be the number of a process, not 1.5"),
        ({"pid": 1 << 40}, "pid must be the number of a process"),
        ({"pid": 1, "follow": 2}, "pid and follow cannot be given together"),
        ({"comm": ""}, "comm must be a thread's name, not ''"),
        ({"comm": 5}, "comm must be a thread's name, not 5"),
        ({"comm": "*"}, "comm must be a name, or its beginning and a *, not '*'"),
        ({"comm": "sixteen-letters-"}, "names have 15 bytes at most"),
        ({"cgroup": ""}, "cgroup must be the path of a cgroup, not ''"),
        ({"cgroup": 5}, "cgroup must be the path of a cgroup, not 5"),
        ({"uid": "no such user"}, "there is no user 'no such user'"),
        ({"uid": -1}, "uid must be a user's name or number, not -1"),
        ({"uid": (1 << 32) - 1}, "uid must be a user's name or number"),
    ],
)
def test_what_cannot_be_meant(options: dict[str, object], message: str) -> None:
    with pytest.raises(ProgramError) as caught:
        filters_of(options)
    assert message in str(caught.value)


def test_what_is_meant() -> None:
    assert filters_of({"pid": 5, "comm": "nginx*", "cgroup": "x", "uid": "root"}) == Filters(
        5, 0, False, "nginx*", "x", 0
    )
    assert filters_of({"pid": None, "follow": None, "comm": None, "cgroup": None, "uid": None}) == Filters()
