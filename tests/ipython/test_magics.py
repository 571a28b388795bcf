"""%%bpf and %bpf, as a person types them."""

from __future__ import annotations

import _thread
import os
import re
import signal
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.error import UsageError
from shell import Shell
from waiting import until

import bpfnb
from bpfnb.language.filters import Filters
from bpfnb.protocol.messages import Limits
from bpfnb.session import Session
from bpfnb.testing import FakeTracer
from magics.bpf import BpfMagics

HELLO = 'int kprobe__sys_clone(void *ctx) { bpf_trace_printk("Hello, World!\\n"); return 0; }'
CLONE = 'int hello(void *ctx) { bpf_trace_printk("my bcc program\\n"); return 0; }'


def session(value: object) -> Session:
    assert isinstance(value, Session)
    return value


def test_a_cell_runs_and_binds_its_name(shell: Shell, tracer: FakeTracer) -> None:
    result = session(shell.run(f"%%bpf hello\n{HELLO}"))
    assert shell.inner.user_ns["hello"] is result
    assert result.state == "running"
    tracer.printk(result, [("bash", 1, "hi")])
    assert shell.run("len(hello.df)") == 1


def test_the_cell_reaches_the_tracer_untouched(shell: Shell, tracer: FakeTracer) -> None:
    """C is full of what IPython expands elsewhere: braces, dollars, percent and question marks."""
    shell.inner.user_ns["x"] = "expanded"
    cell = (
        'int kprobe__sys_clone(void *ctx) { int a = 1 ? {x} : $x; bpf_trace_printk("%d {x} $x !ls\\n", a); return 0; }'
    )
    shell.run(f"%%bpf hello\n{cell}\n")
    assert tracer.loaded == ["\n" + cell + "\n"]  # so that lines count from that of %%bpf


def test_attach_options(shell: Shell) -> None:
    result = session(shell.run(f"%%bpf c -a syscall:clone=hello --attach syscall:clone3=hello\n{CLONE}"))
    assert [p.requested for p in result.probes] == ["syscall:clone", "syscall:clone3"]


def test_defines_and_flags_reach_the_compiler(shell: Shell) -> None:
    result = session(shell.run(f"%%bpf c -D LIMIT=10 -D NAME --cflags '-DX=1 -Wall'\n{HELLO}"))
    assert result.program.cflags == ("-DX=1", "-Wall", "-DLIMIT=10", "-DNAME")
    assert result.program.headers == "auto"


def test_headers_of_ones_choice(shell: Shell, tracer: FakeTracer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    for headers, found in (("btf", "btf"), ("/usr/src/linux", "/usr/src/linux"), ("~/linux", "/home/user/linux")):
        assert session(shell.run(f"%%bpf c --headers={headers}\n{HELLO}")).program.headers == found


def test_a_path_with_spaces_and_an_equals_sign(shell: Shell) -> None:
    result = session(shell.run(f"%%bpf c -a 'uprobe:/opt/my app/a=b:main=hello'\n{CLONE}"))
    assert [(p.requested, p.function) for p in result.probes] == [("uprobe:/opt/my app/a=b:main", "hello")]


def test_a_function_of_cxx_has_spaces_between_its_parameters(shell: Shell) -> None:
    probe = "uprobe:./shop:app::Order::total(int, char const*, int)"
    result = session(shell.run(f"%%bpf c -a {probe}=hello --attach syscall:clone=hello\n{CLONE}"))
    assert [p.requested for p in result.probes] == [probe, "syscall:clone"]


def test_without_a_name_sessions_are_numbered_run_side_by_side_and_nothing_is_bound(shell: Shell) -> None:
    first = session(shell.run(f"%%bpf\n{HELLO}"))
    second = session(shell.run(f"%%bpf -t 10ms\n{HELLO} // another cell"))
    third = session(shell.run("import bpfnb\nthird = bpfnb.trace(r'''" + HELLO + "''')\nthird"))
    assert [s.name for s in (first, second, third)] == ["bpf1", "bpf2", "bpf3"]
    assert bpfnb.sessions() == {first.name: first, third.name: third}
    assert not [name for name in shell.inner.user_ns if re.fullmatch(r"bpf\d*", name)]


RERUN = [
    f"%%bpf\n{HELLO}",
    f"import bpfnb\nbpfnb.trace(r'''{HELLO}''')",
    f"import bpfnb\ndef start():\n    return bpfnb.trace(r'''{HELLO}''')\nstart()",
]


@pytest.mark.parametrize("cell", RERUN, ids=["%%bpf", "trace", "helper"])
def test_an_unnamed_cell_run_again_replaces_its_own_and_says_so(
    shell: Shell, cell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = session(shell.run(f"%%bpf\n{HELLO} // another cell"))
    first = session(shell.run(cell))
    capsys.readouterr()
    second = session(shell.run(cell))
    said = f"{first.name} replaces the one started from the same line before, which is stopped"
    assert second.name == first.name
    assert bpfnb.sessions() == {other.name: other, first.name: second}
    assert (first.state, second.state) == ("stopped", "running")
    assert said in capsys.readouterr().out
    assert said in repr(second)
    assert said in second._repr_html_()
    second.stop()
    third = session(shell.run(cell))
    assert third.name == first.name
    assert "replaces" not in capsys.readouterr().out + repr(third)


def test_a_cell_is_known_by_the_id_the_notebook_gives_it(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its text may have changed; and another cell may have the same text."""
    parent = {"metadata": {"cellId": "a"}}
    monkeypatch.setattr(shell.inner, "get_parent", lambda: parent, raising=False)
    first = session(shell.run(f"%%bpf\n{HELLO}"))
    parent["metadata"]["cellId"] = "b"
    other = session(shell.run(f"%%bpf\n{HELLO}"))
    parent["metadata"]["cellId"] = "a"
    second = session(shell.run(f"%%bpf\n{HELLO} // edited"))
    assert bpfnb.sessions() == {first.name: second, other.name: other}
    assert first.state == "stopped"


def test_two_lines_of_a_cell_are_two_sessions_and_a_loop_is_one(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.inner.user_ns["source"] = HELLO
    shell.run("import bpfnb\ndef start():\n    return bpfnb.trace(source)\na = start()\nb = start()")
    a, b = session(shell.inner.user_ns["a"]), session(shell.inner.user_ns["b"])
    assert (a.state, b.state) == ("running", "running")
    assert bpfnb.sessions() == {a.name: a, b.name: b}
    shell.run("c, d = [bpfnb.trace(source) for _ in range(2)]")
    c, d = session(shell.inner.user_ns["c"]), session(shell.inner.user_ns["d"])
    assert (c.state, d.state, d.name) == ("stopped", "running", c.name)
    assert f"{c.name} replaces" in capsys.readouterr().out


def test_an_unnamed_session_stops_none_that_was_given_its_name(shell: Shell) -> None:
    first = session(shell.run(f"%%bpf\n{HELLO}"))
    taken = session(shell.run(f"%%bpf bpf2\n{HELLO}"))
    second = session(shell.run(f"%%bpf\n{HELLO} // another cell"))
    assert (first.name, second.name) == ("bpf1", "bpf3")
    assert taken.state == "running"
    again = session(shell.run(f"%%bpf {first.name}\n{HELLO}"))  # by its name, on purpose
    assert (first.state, again.state) == ("stopped", "running")
    third = session(shell.run(f"%%bpf\n{HELLO}"))  # the first cell, whose name another has by now
    assert third.name not in (first.name, taken.name, second.name)
    assert again.state == "running"


def test_run_again_it_replaces(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    first = session(shell.run(f"%%bpf hello\n{HELLO}"))
    second = session(shell.run(f"%%bpf hello\n{HELLO}"))
    assert (first.state, second.state) == ("stopped", "running")
    assert shell.inner.user_ns["hello"] is second
    assert "hello replaces the session of that name, which is stopped" in capsys.readouterr().out


def test_dry_run_attaches_nothing(shell: Shell, tracer: FakeTracer, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.run(f"%%bpf hello --dry-run\n{HELLO}") is None
    assert tracer.loaded == []
    assert "hello" not in shell.inner.user_ns
    assert "kprobe__sys_clone -> kprobe__sys_clone() at line 2" in capsys.readouterr().out


def test_a_session_takes_no_modules_name(shell: Shell) -> None:
    shell.run("import os, xml.dom as dom\nos_ = 1")
    for name, module in (("os", "os"), ("dom", r"xml\.dom")):
        with pytest.raises(
            bpfnb.ProgramError, match=f"{name!r} would take the name .* where it is the module {module}"
        ):
            shell.run(f"%%bpf {name}\n{HELLO}")
        session(shell.run(f"%%bpf {name}_\n{HELLO}"))  # what the hint says
    assert shell.run("os.sep") == "/"
    session(shell.run(f"%%bpf socket\n{HELLO}"))  # a module, but none of this notebook's


def test_values_of_the_notebook_reach_the_line_and_not_the_c(shell: Shell, tracer: FakeTracer) -> None:
    values = {"pid": 1234, "path": Path("/opt/my app/x"), "f": "hello", "flags": "-DA=1 -DB=2", "yes": True, "n": "c"}
    shell.inner.user_ns.update(values)
    cell = f"{CLONE} // $pid {{pid}}\n"
    line = "-D PID=$pid -D YES={yes} -D X=${nothing}$nobody{pid+1}{f.x} -a uprobe:{path}:main={f} --cflags {flags}"
    result = session(shell.run(f"%%bpf {{n}} {line}\n{cell}"))
    assert shell.inner.user_ns["c"] is result
    assert result.program.cflags == ("-DA=1", "-DB=2", "-DPID=1234", "-DYES=1", "-DX=${nothing}$nobody{pid+1}{f.x}")
    assert [(p.requested, p.function) for p in result.probes] == [("uprobe:/opt/my app/x:main", "hello")]
    assert tracer.loaded == ["\n" + cell]
    shell.run("%bpf stop $n")
    assert result.state == "stopped"


@pytest.mark.parametrize(
    "cell",
    [
        f"%%bpf --help\n{HELLO}",
        f"%%bpf x -h --live\n{HELLO}",
        "%%bpf --help",
        "%%bpf -h\n",
        "%bpf --help",
        "%bpf help",
    ],
)
def test_help_helps(shell: Shell, tracer: FakeTracer, cell: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert shell.run(cell) is None
    shown = capsys.readouterr().out
    assert "Compile a cell of C" in shown
    assert "--attach" in shown
    assert tracer.loaded == []


def test_time_traces_for_so_long(shell: Shell) -> None:
    before = time.monotonic()
    result = session(shell.run(f"%%bpf hello -t 300ms\n{HELLO}"))
    assert 0.3 <= time.monotonic() - before < 5
    assert result.state == "stopped"


def test_ctrl_c_ends_the_trace_and_keeps_it(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    timer = threading.Timer(0.3, _thread.interrupt_main)
    timer.start()
    result = session(shell.run(f"%%bpf hello -t 60s\n{HELLO}"))
    timer.join()
    assert result.state == "stopped"
    assert shell.inner.user_ns["hello"] is result
    assert "interrupted after 0." in capsys.readouterr().out


def test_filters(shell: Shell, tracer: FakeTracer) -> None:
    shell.inner.user_ns["worker"] = 42
    for line in ("--pid {worker} --comm 'nginx*'", "--follow 7 --uid 1000 --cgroup system.slice"):
        shell.run(f"%%bpf hello {line}\n{HELLO}")
    assert tracer.filters == [
        Filters(pid=42, comm="nginx*"),
        Filters(follow=7, uid=1000, cgroup="system.slice"),
    ]
    assert "only follow 7, cgroup system.slice, uid 1000" in repr(shell.inner.user_ns["hello"])
    assert "only follow 7" in shell.inner.user_ns["hello"]._repr_html_()


def test_a_cell_waits_for_its_command(shell: Shell, tracer: FakeTracer) -> None:
    result = session(shell.run(f"%%bpf hello --command 'sh -c \"exit 3\"'\n{HELLO}"))
    assert (result.state, result.returncode) == ("stopped", 3)
    assert tracer.filters[0].held


def test_a_cell_is_recorded(shell: Shell, tracer: FakeTracer, tmp_path: Path) -> None:
    result = session(shell.run(f"%%bpf hello --record {tmp_path}/it.zip --record-failed stop\n{HELLO}"))
    tracer.printk(result, [("sync", 1, "hi")])
    result.stop()
    assert f"recorded in {tmp_path}/it.zip (1 row," in result._repr_html_()
    opened = bpfnb.open(tmp_path / "it.zip")
    assert (opened.name, list(opened.df.msg)) == ("hello", ["hi"])
    with pytest.raises(bpfnb.ProgramError, match="is there already"):
        shell.run(f"%%bpf hello --record {tmp_path}/it.zip\n{HELLO}")
    assert len(tracer.loaded) == 1


def test_ctrl_c_ends_the_command(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    result = session(shell.run(f"%%bpf hello --command 'sleep 100'\n{HELLO}"))
    timer.join()
    assert result.state == "stopped"
    assert "interrupted: hello is stopped, and its command ended" in capsys.readouterr().out
    until(lambda: result.returncode == -signal.SIGTERM)


def test_keep(shell: Shell) -> None:
    result = session(shell.run(f"%%bpf hello --keep 2M\n{HELLO}"))
    assert result.outputs["printk"]._keep.bytes == 2 << 20


@pytest.mark.parametrize(
    ("options", "limits"),
    [
        ("", Limits(0.25)),
        ("--max-cost 50%", Limits(0.5, asked=True)),
        ("--max-cost 25%", Limits(0.25)),
        ("--max-rate 20k --max-memory 1G", Limits(0.25, 20_000, 1 << 30)),
        ("--max-cost {share} --max-rate $rate", Limits(0.1, 7, asked=True)),
        ("--no-guard", Limits()),
    ],
)
def test_what_a_session_may_take(shell: Shell, tracer: FakeTracer, options: str, limits: Limits) -> None:
    shell.inner.user_ns.update(share=0.1, rate=7)
    shell.run(f"%%bpf hello {options}\n{HELLO}")
    assert tracer.limits == [limits]


@pytest.mark.parametrize("missing", ["", "warn", "ignore", "error"])
def test_what_is_missing_is_left_out_where_that_is_asked_for(shell: Shell, missing: str) -> None:
    session = shell.run(f"%%bpf hello {missing and f'--missing {missing}'}\n{HELLO}")
    assert session.program.missing == missing


def test_a_dry_run_shows_probes_that_stand_in_the_cell(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run('%%bpf --dry-run\nPROBE("uprobe:c:mem*")\nint f(void *ctx) { return 0; }')
    assert "uprobe:c:mem* -> f() at line 3" in capsys.readouterr().out


BAD_CELLS = [
    (f"%%bpf hello --missing no\n{HELLO}", bpfnb.ProgramError, "missing must be 'error', 'warn' or 'ignore', not 'no'"),
    (f"%%bpf hello --max-cost 25\n{HELLO}", bpfnb.ProgramError, "not a share of all CPUs: '25'"),
    (f"%%bpf hello --pid many\n{HELLO}", bpfnb.ProgramError, "--pid takes the number of a process, not 'many'"),
    (f"%%bpf hello --pid 0\n{HELLO}", bpfnb.ProgramError, "pid must be the number of a process, not 0"),
    (f"%%bpf hello --pid 5 --command ls\n{HELLO}", bpfnb.ProgramError, "pid and command cannot be given together"),
    (f"%%bpf hello --command nosuch\n{HELLO}", bpfnb.ProgramError, "there is no command 'nosuch'"),
    (f"%%bpf hello --comm a*b\n{HELLO}", bpfnb.ProgramError, "comm must be a name, or its beginning and a *"),
    (f"%%bpf hello --max-rate lots\n{HELLO}", bpfnb.ProgramError, "not a number of events a second: 'lots'"),
    (f"%%bpf hello --max-memory 0\n{HELLO}", bpfnb.ProgramError, "not a size: '0'"),
    (
        f"%%bpf hello --no-guard --max-rate 5\n{HELLO}",
        bpfnb.ProgramError,
        "--no-guard sets no limits, and --max-rate one",
    ),
    ("%%bpf hello\n", UsageError, "empty"),  # IPython itself sees to this one
    ("%%bpf hello\n  \n// only a comment\n", bpfnb.ProgramError, "empty"),
    (f"%%bpf hello --nonsense\n{HELLO}", UsageError, "--nonsense"),
    (f"%%bpf hello --lve\n{HELLO}", UsageError, "did you mean --live?"),
    (f"%%bpf hello -live\n{HELLO}", UsageError, "did you mean --live?"),
    (f"%%bpf hello -time 10s\n{HELLO}", UsageError, "did you mean --time?"),
    (f"%%bpf hello --tim\u00e9 10s\n{HELLO}", UsageError, "did you mean --time?"),
    (
        f"%%bpf list\n{HELLO}",
        bpfnb.ProgramError,
        "'list' would take the name from the notebook, where it is Python's own",
    ),
    (f"%%bpf print\n{HELLO}", bpfnb.ProgramError, "write %%bpf print_, or another name"),
    (f"%%bpf In\n{HELLO}", bpfnb.ProgramError, "IPython's own"),
    (f"%%bpf hello -D X={{In}}\n{HELLO}", bpfnb.ProgramError, "In is a list: only text, paths and numbers"),
    (f"%%bpf hello other\n{HELLO}", UsageError, "other"),
    (f"%%bpf 1st\n{HELLO}", bpfnb.ProgramError, "identifier, not '1st'"),
    (f"%%bpf class\n{HELLO}", bpfnb.ProgramError, "identifier"),
    (f"%%bpf hello -a\n{CLONE}", UsageError, "expected one argument"),
    (f"%%bpf hello -a syscall:clone\n{CLONE}", bpfnb.ProgramError, "syscall:clone"),
    (f"%%bpf hello -a syskall:clone=hello\n{CLONE}", bpfnb.ProgramError, "syskall"),
    (f"%%bpf hello -a syscall:clone=helo\n{CLONE}", bpfnb.ProgramError, "hello"),
    (f"%%bpf hello\n{CLONE}", bpfnb.ProgramError, "-a syscall:clone=hello"),
    (f"%%bpf hello -t 0\n{HELLO}", bpfnb.ProgramError, "longer than nothing"),
    (f"%%bpf hello -t 0s\n{HELLO}", bpfnb.ProgramError, "longer than nothing"),
    (f"%%bpf hello -t soon\n{HELLO}", bpfnb.ProgramError, "not a duration: 'soon'"),
    (f"%%bpf hello -t -5s\n{HELLO}", (bpfnb.ProgramError, UsageError), ""),
    (f"%%bpf hello --headers linux\n{HELLO}", bpfnb.ProgramError, "not kernel headers: 'linux'"),
    (f"%%bpf hello --keep lots\n{HELLO}", bpfnb.ProgramError, "not a size: 'lots'"),
    (f"%%bpf hello -D '' -D X=1\n{HELLO}", bpfnb.ProgramError, "not a macro: ''"),
    (f"%%bpf hello --keep 0\n{HELLO}", bpfnb.ProgramError, "not a size"),
    (f"%%bpf hello --cflags 'unbalanced\n{HELLO}", bpfnb.ProgramError, "No closing quotation"),
    (f"%%bpf hello\n{HELLO}\n/* \ud800 */", bpfnb.ProgramError, "line 3: the cell contains half a character"),
    (
        "%%bpf hello -a syscall:close=f\nint f(int fd) { return 0; }",
        bpfnb.ProgramError,
        "int f(struct pt_regs *ctx, int fd)",
    ),
    ("%%bpf hello -a t:a:b=f\nint f(void *ctx, int fd) { return 0; }", bpfnb.ProgramError, "t:a:b has none to give"),
]


@pytest.mark.parametrize(("cell", "error", "words"), BAD_CELLS, ids=range(len(BAD_CELLS)))
def test_a_mistake_is_one_clear_error_and_costs_nothing(
    shell: Shell, tracer: FakeTracer, cell: str, error: type[Exception], words: str
) -> None:
    old = session(shell.run(f"%%bpf hello\n{HELLO}"))
    with pytest.raises(error) as caught:
        shell.run(cell)
    shown = [str(caught.value), str(getattr(caught.value, "hint", "") or "")]
    assert any(words in text for text in shown), shown
    assert len(shown[0].splitlines()) == 1
    assert bpfnb.sessions() == {"hello": old}
    assert shell.inner.user_ns["hello"] is old
    assert len(tracer.loaded) == 1


@pytest.mark.parametrize("cell", [cell for cell, _, _ in BAD_CELLS], ids=range(len(BAD_CELLS)))
def test_no_traceback_of_ours_for_a_mistake_of_theirs(
    shell: Shell, cell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.inner.run_cell(cell)
    shown = "".join(capsys.readouterr())
    assert "Error" in shown
    assert "Traceback" not in shown
    assert "bpfnb/" not in shown
    assert "magics/" not in shown


def test_a_compile_error_shows_the_cells_line(
    shell: Shell, tracer: FakeTracer, capsys: pytest.CaptureFixture[str]
) -> None:
    place = {"line": 1, "column": 34, "source": HELLO}
    tracer.refuse(bpfnb.CompileError("no such thing", **place))
    shell.inner.run_cell(f"%%bpf hello\n{HELLO}")
    shown = "".join(capsys.readouterr())
    assert "CompileError: line 1: no such thing" in shown
    assert "\n    1 | int kprobe__sys_clone" in shown


def test_a_bug_of_ours_keeps_its_traceback(
    shell: Shell, tracer: FakeTracer, capsys: pytest.CaptureFixture[str]
) -> None:
    tracer.refuse(bpfnb.InternalError("boom", remote_traceback="File engine.py, line 7\nKeyError: 'x'"))
    shell.inner.run_cell(f"%%bpf hello\n{HELLO}")
    assert "File engine.py, line 7" in "".join(capsys.readouterr())


def test_list(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run(f"%%bpf one\n{HELLO}")
    shell.run(f"%%bpf two\n{HELLO}")
    capsys.readouterr()
    shell.run("%bpf list")
    listed = capsys.readouterr().out
    assert "one" in listed
    assert "two" in listed
    shell.run("%bpf")
    assert capsys.readouterr().out == listed


def test_a_session_that_the_kernel_is_letting_go_of_is_listed(
    shell: Shell, tracer: FakeTracer, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = session(shell.run(f"%%bpf slow\n{HELLO}"))
    tracer.detaching = 100
    shell.run("%bpf stop slow")
    assert slow.state == "stopped"
    assert slow.detaching
    capsys.readouterr()
    shell.run("%bpf list")
    assert re.search(r"slow +detaching", capsys.readouterr().out)
    tracer.detached(slow)
    while slow.detaching:
        time.sleep(0.01)
    shell.run("%bpf list")
    assert "slow" not in capsys.readouterr().out


def test_stop(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two", "three"):
        shell.run(f"%%bpf {name}\n{HELLO}")
    with pytest.raises(UsageError, match="which one"):
        shell.run("%bpf stop")
    shell.run("%bpf stop two")
    assert sorted(bpfnb.sessions()) == ["one", "three"]
    with pytest.raises(UsageError, match="no session called 'two'"):
        shell.run("%bpf stop two")
    shell.run("%bpf stop --all")
    assert bpfnb.sessions() == {}


def test_stop_alone_stops_the_only_one(shell: Shell) -> None:
    shell.run(f"%%bpf one\n{HELLO}")
    shell.run("%bpf stop")
    assert bpfnb.sessions() == {}


def test_show(shell: Shell) -> None:
    one = shell.run(f"%%bpf one\n{HELLO}")
    assert shell.run("%bpf show one") is one


def test_probes(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    shell.run("%bpf probes clone")
    assert "syscall:clone3" in capsys.readouterr().out


def test_doctor(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    shell.run("%bpf doctor")
    shown = capsys.readouterr().out
    assert shown.startswith("Tracing does not work: a first trace\n")  # no kernel delivers anything here
    for text in ("required: ", "bcc", "optional: ", "kprobes", "info: ", "Python"):
        assert text in shown


@pytest.mark.parametrize(
    "line", ["stopp one", "show", "show a b", "probes", "list all", "stop a b", "--lst", "stop --lal"]
)
def test_a_wrong_command_says_what_there_is(shell: Shell, line: str) -> None:
    with pytest.raises(UsageError, match=r"%bpf"):
        shell.run(f"%bpf {line}")


def test_help_is_the_docstring_and_the_options(shell: Shell) -> None:
    text = shell.inner.find_cell_magic("bpf").__doc__
    assert text.startswith("  %%bpf [-a PROBE=FN]")
    for word in (
        "--attach",
        "--time",
        "--live",
        "--keep",
        "--define",
        "--cflags",
        "--headers",
        "--dry-run",
        "--max-cost",
        "--max-rate",
        "--max-memory",
        "--no-guard",
        "%bpf stop",
        "doctor",
    ):
        assert word in text


def test_completion(shell: Shell) -> None:
    def offered(text: str) -> set[str]:
        with provisionalcompleter():
            return {completion.text for completion in shell.inner.Completer.completions(text, len(text))}

    assert "--attach" in offered("%%bpf x --at")
    assert {"syscall:clone", "syscall:clone3"} <= offered("%%bpf x -a syscall:cl")
    assert {"--max-cost", "--max-memory", "--max-rate"} <= offered("%%bpf x --max")
    assert "--no-guard" in offered("%%bpf x --no")
    assert "doctor" in offered("%bpf do")
    assert offered("%%bpf x --") >= {
        word for word in re.findall(r"--[a-z-]+", BpfMagics.bpf.__doc__) if word != "--all"
    }
    assert offered("%bpf ") >= {"list", "stop", "doctor", "probes", "show", "help", "run"}
    assert "exitsnoop" in offered("%bpf run exi")
    assert {"--failed", "--follow"} <= offered("%bpf run exitsnoop --f")
    shell.run(f"%%bpf clones\n{HELLO}")
    assert "clones" in offered("%bpf stop cl")


def test_loading_twice_is_no_harm_and_unloading_leaves_nothing(shell: Shell, tracer: FakeTracer) -> None:
    shell.run("%reload_ext bpfnb")
    running = session(shell.run(f"%%bpf one\n{HELLO}"))
    shell.run("%unload_ext bpfnb")
    assert running.state == "stopped"
    assert "bpf" not in shell.inner.magics_manager.magics["cell"]
    assert "bpf" not in shell.inner.magics_manager.magics["line"]
    with pytest.raises(UsageError):
        shell.run("%bpf list")


def test_what_the_compiler_said_is_shown_before_its_error(
    shell: Shell, tracer: FakeTracer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr("magics.bpf.display", lambda data, raw: shown.append(data["text/html"]))
    tracer.refuse(bpfnb.VerifierError("no", log="R1 <b>invalid</b>"))
    with pytest.raises(bpfnb.VerifierError):
        shell.run(f"%%bpf hello\n{HELLO}")
    (panel,) = shown
    assert "<details>" in panel
    assert "R1 &lt;b&gt;invalid" in panel


def test_stopping_what_does_not_run(shell: Shell, tracer: FakeTracer, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run("%bpf stop")
    assert "no session is running" in capsys.readouterr().out
    with pytest.raises(UsageError, match="or --all"):
        shell.run("%bpf stop -all")


def test_frames_are_shown_without_marks_that_act(shell: Shell) -> None:
    """Any DataFrame or Series: those made of a session's are pandas' own."""
    frame = pd.DataFrame({"comm": ["\x1b[31mred\u202e"]})
    formatted = [shell.inner.display_formatter.format(shown)[0] for shown in (frame, frame.comm)]
    for text in (formatted[0]["text/html"], formatted[0]["text/plain"], formatted[1]["text/plain"]):
        assert "\\x1b[31mred\\u202e" in text
        assert not {"\x1b", "\u202e"} & set(text)


# --- tools --------------------------------------------------------------------------------------------------------


def test_a_tool_runs_and_binds_its_name(shell: Shell, tracer: FakeTracer) -> None:
    result = session(shell.run("%bpf run exitsnoop --failed --name ends --keep 1M --max-rate 5k"))
    assert shell.inner.user_ns["ends"] is result
    assert "-DFAILED=1" in result.program.cflags
    assert tracer.limits[-1].rate == 5000
    assert "exitsnoop: processes as they end" in repr(result)


def test_a_tool_runs_for_a_while(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    assert session(shell.run("%bpf run exitsnoop -t 50ms")).state == "stopped"


def test_a_tool_that_is_run_again_replaces_the_one_of_its_name(shell: Shell) -> None:
    first = session(shell.run("%bpf run exitsnoop --name ends"))
    second = session(shell.run("%bpf run exitsnoop --name ends"))
    assert (first.state, second.state) == ("stopped", "running")


@pytest.mark.parametrize("line", ["%bpf run", "%bpf run --help"])
def test_tools_are_listed(shell: Shell, capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert shell.run(line) is None
    assert "exitsnoop" in capsys.readouterr().out


def test_a_tools_help(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.run("%bpf run exitsnoop --help") is None
    text = capsys.readouterr().out
    assert all(words in text for words in ("--failed", "--live", "--max-cost", "exit_code", "cannot"))
    assert not bpfnb.sessions()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("exitsnop", "no tool 'exitsnop'; did you mean exitsnoop?"),
        ("exitsnoop --fialed", "unrecognized arguments: --fialed; did you mean --failed?"),
        ("exitsnoop -time 3s", "no option -time; did you mean --time?"),
        ("exitsnoop -t", "expected one argument"),
        ("exitsnoop x", "unrecognized arguments: x"),
        ("exitsnoop -t x", "not a duration: 'x'"),
        ("exitsnoop --name 1x", "a session's name must be a Python identifier"),
        ("exitsnoop --name print", "where it is Python's own"),
    ],
)
def test_a_line_that_cannot_run_a_tool(shell: Shell, tracer: FakeTracer, line: str, words: str) -> None:
    with pytest.raises((UsageError, bpfnb.ProgramError)) as error:
        shell.run(f"%bpf run {line}")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not tracer.loaded
