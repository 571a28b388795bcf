"""bpfnb.tools: every tool is documented, and says what is wrong with its options."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import bpfnb
from bpfnb.errors import ProgramError
from bpfnb.hosts import Host, default_host
from bpfnb.results.presentation import Rows
from bpfnb.testing import FakeTracer
from bpfnb.tools.tool import Column, Option, Spec, Tool
from bpfnb.tools.toolbox import find, names

SOURCE = "BPF_HASH(counts, u32, u64);\nint f(void *ctx) { counts.increment(1); return 0; }"
ATTACH = [("tracepoint:sched:sched_switch", "f")]


@pytest.fixture
def tracer() -> Iterator[FakeTracer]:
    with FakeTracer() as tracer:
        yield tracer


def made(*options: Option, hooks: Sequence[str] = ()) -> tuple[Tool, list[dict[str, Any]]]:
    """A tool, and the options that its program was made of."""
    built: list[dict[str, Any]] = []

    def build(**values: Any) -> Spec:
        built.append(values)
        return Spec(SOURCE, Rows(lambda df: df), ATTACH)

    return Tool("sample", "process", "sample: a sample.", [], build, options, hooks=hooks), built


@pytest.mark.parametrize("name", names())
def test_every_tool_is_documented(name: str) -> None:
    tool = find(name)
    assert (tool.name, tool.subject) == (name, names()[name])
    assert tool.summary
    assert "cannot see" in " ".join(tool.doc.split()), "say what it cannot see"
    assert all(column.doc for column in tool.columns)
    text = inspect.getdoc(getattr(bpfnb.tools, name)) or ""
    for column in tool.columns:
        assert column.doc in text
    for option in tool.options:
        assert f"{option.name}={option.default!r}" in text
        assert option.help in text
    assert all(len(line) <= 120 for line in tool.doc.splitlines())


@pytest.mark.parametrize("name", names())
def test_names_of_columns_and_options_are_of_one_form(name: str) -> None:
    tool = find(name)
    columns = [column.name for column in tool.columns]
    assert len(set(columns)) == len(columns)
    assert all(column.isidentifier() and column == column.lower() for column in columns)
    options = [option.name for option in tool.options]
    assert all(option.isidentifier() for option in options)
    letters = [option.short for option in tool.options if option.short]
    assert len(set(letters)) == len(letters)
    assert set(letters).isdisjoint("th"), "-t and -h are every tool's"


@pytest.mark.parametrize("name", names())
def test_the_signature_has_the_tools_own_options_and_every_sessions(name: str) -> None:
    parameters = inspect.signature(getattr(bpfnb.tools, name)).parameters
    assert {option.name: option.default for option in find(name).options}.items() <= {
        (p.name, p.default) for p in parameters.values()
    }
    assert {"name", "keep"} <= set(parameters)


def test_the_table_has_every_tool() -> None:
    text, page = repr(bpfnb.tools), bpfnb.tools._repr_html_()
    for name in names():
        assert name in text
        assert find(name).summary[:60] in text
        assert f"<td>{name}</td>" in page
    assert dir(bpfnb.tools) == list(names())


def test_tools_can_be_imported() -> None:
    import bpfnb.tools  # the package: the name bpfnb.tools stays the toolbox
    from bpfnb.tools import exitsnoop

    assert exitsnoop.__name__ == "exitsnoop"
    assert bpfnb.tools.exitsnoop.__doc__ == exitsnoop.__doc__
    with pytest.raises(ImportError):
        from bpfnb.tools import exitsnop  # noqa: F401


def test_another_hosts_tools_start_there(tracer: FakeTracer) -> None:
    with Host(tracer.launch) as host, host.tools.exitsnoop(name="ends") as session:
        assert list(host.sessions()) == ["ends"]
        assert bpfnb.sessions() == {}
        assert "exitsnoop: processes as they end" in repr(session)
        assert "exitsnoop: processes as they end" in session._repr_html_()


def test_a_tool_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no tool 'exitsnop'; did you mean exitsnoop"):
        _ = bpfnb.tools.exitsnop


def test_a_function_makes_a_value_of_text_or_takes_another_as_it_is() -> None:
    tool, _ = made(Option("above", 0.0, "", type=lambda text: float(text.rstrip("s"))))
    assert [tool.values(above="2s"), tool.values(above=3)] == [{"above": 2.0}, {"above": 3}]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        (Option("n", 1, ""), "2", "n must be a whole number, not '2'"),
        (Option("n", 1, ""), True, "n must be a whole number, not True"),
        (Option("n", 1, ""), 1.5, "n must be a whole number"),
        (Option("n", 1, ""), None, "n must be a whole number, not None"),
        (Option("n", None, "", type=int), "x", "n must be a whole number"),
        (Option("ms", 1.0, ""), "x", "ms must be a number"),
        (Option("ms", 1.0, ""), False, "ms must be a number, not False"),
        (Option("all", False, ""), 1, "all must be True or False, not 1"),
        (Option("path", None, ""), 1, "path must be text, not 1"),
        (Option("by", "pid", "", choices=("pid", "comm")), "com", "by cannot be 'com'; did you mean comm"),
        (Option("by", "pid", "", choices=("pid", "comm")), "x", "by cannot be 'x'; there are pid, comm"),
    ],
)
def test_a_value_that_cannot_be(option: Option, value: object, words: str) -> None:
    tool, _ = made(option)
    with pytest.raises(ProgramError, match=rf"^sample: {words}"):
        tool.values(**{option.name: value})


def test_values_are_given_in_their_own_type() -> None:
    import numpy as np

    tool, _ = made(Option("n", 1, ""), Option("ms", 1.0, ""), Option("path", None, ""), Option("all", False, ""))
    values = tool.values(n=np.int32(3), ms=2)
    assert values == {"n": 3, "ms": 2.0, "path": None, "all": False}
    assert [type(values[name]) for name in ("n", "ms")] == [int, float]


def test_an_option_that_is_not_there(tracer: FakeTracer) -> None:
    with pytest.raises(ProgramError, match="exitsnoop has no option 'fialed'; did you mean failed"):
        bpfnb.tools.exitsnoop(fialed=True)
    assert not tracer.loaded


def test_build_learns_which_hooks_this_kernel_has() -> None:
    tool, built = made(hooks=["tracepoint:oom:mark_victim", "tracepoint:no:such"])
    with FakeTracer(probes=["tracepoint:oom:mark_victim"]), tool.start(default_host):
        assert built[0]["has"] == {"tracepoint:oom:mark_victim"}


def test_df_has_the_columns_that_are_documented_in_their_order(tracer: FakeTracer) -> None:
    import numpy as np

    source = """
    struct event { u64 b; u64 a; u64 c; };
    BPF_RINGBUF_OUTPUT(events, 8);
    int f(void *ctx) { struct event e = {}; events.ringbuf_output(&e, sizeof(e), 0); return 0; }
    """
    columns = [Column("a", "A", "a"), Column("b", "B", "b")]
    tool = Tool("sample", "process", "sample: x", columns, lambda: Spec(source, Rows(lambda df: df), ATTACH))
    with tool.start(default_host) as session:
        tracer.events(session, "events", np.array([(1, 2, 3)], [("b", "u8"), ("a", "u8"), ("c", "u8")]))
        assert list(session.df.columns) == ["a", "b"]
        assert session.df.to_numpy().tolist() == [[2, 1]]


def test_the_document_is_what_the_tools_say() -> None:
    path = Path(__file__).parents[2] / "scripts" / "tools.py"
    spec = importlib.util.spec_from_file_location("tools_document", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.DOCUMENT.read_text() == module.text(), "run .venv/bin/python scripts/tools.py"
