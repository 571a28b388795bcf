"""%bpf count and the other one-liners, as a person types them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from IPython.core.completer import provisionalcompleter
from shell import Shell

from bpfnb.errors import ProgramError
from bpfnb.language.signature import Argument, Signature, Type
from bpfnb.session import Session
from bpfnb.testing import FakeTracer

INT = Type("int", "int", 4, signed=True)
STRING = Type("const char *", "string", 8, user=True)
LONG = Type("long", "int", 8, signed=True)


@pytest.fixture
def tracer() -> Iterator[FakeTracer]:
    openat = (Argument("dfd", INT, 0), Argument("filename", STRING, 1), Argument("flags", INT, 2))
    signatures = [
        Signature("syscall:openat", openat, LONG),
        Signature("syscall:close", (Argument("fd", INT, 0),), LONG),
        Signature("software:page-faults:100"),
    ]
    with FakeTracer(["syscall:openat", "syscall:close"], signatures=signatures) as fake:
        yield fake


def session(value: object) -> Session:
    assert isinstance(value, Session)
    return value


def test_a_question_runs_and_binds_its_name(shell: Shell, tracer: FakeTracer) -> None:
    found = session(shell.run("%bpf count syscall:openat,syscall:close --by comm --name opens --max-rate 5k"))
    assert shell.inner.user_ns["opens"] is found
    assert [probe.requested for probe in found.probes] == ["syscall:openat", "syscall:close"]
    assert found.source == tracer.loaded[-1]
    assert "counts.increment(key);" in found.source
    assert tracer.limits[-1].rate == 5000


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("stats syscall:openat flags", ["struct stats_t", "u64 count;"]),
        ("hist syscall:openat 'flags & 3' --bins 0,4,1", ["flags & 3)", "value >= 4LL"]),
        ("hist syscall:openat retval", ['PROBE("sysret:openat")']),
        ("latency syscall:openat --by 'slow: latency > 1000, errno'", ["int slow;", "int errno;"]),
        ("rows syscall:openat 'pid,path: filename,n: len(filename)' --where 'dfd == -100 and flags & 1'",
         ["char path[256];", "int n;", "int pid;", "(dfd == -100)"]),
        ("rows syscall:close", ["int fd;", "int pid;", "char comm[TASK_COMM_LEN];"]),
        ("stacks software:page-faults:100 --no-user", ["int kernel_stack;"]),
    ],
)  # fmt: skip
def test_each_of_the_six(shell: Shell, line: str, parts: list[str]) -> None:
    source = session(shell.run(f"%bpf {line}")).source
    assert [part for part in parts if part not in source] == []


def test_values_of_the_notebook_are_put_in(shell: Shell) -> None:
    shell.inner.user_ns["me"] = 4711
    assert "(pid == 4711)" in session(shell.run("%bpf count syscall:openat --where 'pid == {me}'")).source


def test_it_runs_for_a_while(shell: Shell) -> None:
    assert session(shell.run("%bpf count syscall:close -t 50ms")).state == "stopped"


@pytest.mark.parametrize("line", ["%bpf hist", "%bpf hist --help", "%bpf hist syscall:openat flags --help"])
def test_help_has_the_language_and_the_options(shell: Shell, capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert shell.run(line) is None
    text = capsys.readouterr().out
    for part in ("%bpf hist", "--bins", "--where", "--follow", "startswith", "retval"):
        assert part in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("%bpf count syscall:openat --wher 1", "did you mean --where"),
        ("%bpf hist syscall:openat", "required: VALUE"),
        ("%bpf hist syscall:openat flags --bins 1,2", "low, high, step"),
        ("%bpf hist syscall:openat flags --bins a,b,c", "three whole numbers"),
        ("%bpf count syscall:openat --by filname", "did you mean filename"),
        ("%bpf count syscall:openat --where 'flags = 1'", "write =="),
        ("%bpf rows syscall:openat 'a: b: c'", "not an expression"),
    ],
)
def test_mistakes_load_nothing(shell: Shell, tracer: FakeTracer, line: str, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        shell.run(line)
    assert tracer.loaded == []


def test_completion_of_commands_and_options(shell: Shell) -> None:
    with provisionalcompleter():
        commands = {found.text for found in shell.inner.Completer.completions("%bpf st", 7)}
        options = {found.text for found in shell.inner.Completer.completions("%bpf hist syscall:openat --bi", 29)}
    assert {"stats", "stacks", "stop"} <= commands
    assert options == {"--bins"}
