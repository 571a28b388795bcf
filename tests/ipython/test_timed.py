"""%%bpf -t, --command and long steps in a terminal: one line that moves, and is gone. --help; values that are none."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import threading
import time

import pytest
from IPython.core.error import UsageError
from shell import Shell

from bpfnb.errors import ProgramError
from bpfnb.session import Session
from bpfnb.testing import FakeTracer
from magics.bpf import COMMANDS

HELLO = 'int kprobe__sys_clone(void *ctx) { bpf_trace_printk("Hello, World!\\n"); return 0; }'


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Not a fixture: pytest replaces the output between a test's fixtures and the test."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    return terminal


def lines(terminal: Terminal) -> list[str]:
    """What stood on the line, one after another; "" where it was gone."""
    return terminal.getvalue().split("\r\x1b[K")


def rows_come(tracer: FakeTracer, shell: Shell, name: str) -> threading.Thread:
    def produce() -> None:
        while name not in shell.inner.user_ns:
            time.sleep(0.01)
        tracer.printk(shell.inner.user_ns[name], [("bash", 1, "hi")] * 7)

    thread = threading.Thread(target=produce)
    thread.start()
    return thread


def test_a_terminal_has_one_line_with_seconds_and_rows(
    shell: Shell, tracer: FakeTracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = on_terminal(monkeypatch)
    producer = rows_come(tracer, shell, "hello")
    result = shell.run(f"%%bpf hello -t 1100ms\n{HELLO}")
    producer.join()
    assert isinstance(result, Session)
    shown = lines(terminal)
    assert "hello: 0 of 1.1 s, 7 rows" in shown
    assert "hello: 1 of 1.1 s, 7 rows" in shown
    assert "\n" not in "".join(shown[:-1])
    assert shown[-1].startswith("Out[")  # after the line was erased


def test_ctrl_c_takes_the_line_away_and_says_so(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    timer = threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    result = shell.run(f"%%bpf hello --command 'sleep 100'\n{HELLO}")
    timer.join()
    assert isinstance(result, Session)
    assert result.state == "stopped"
    assert "hello: 0 s, 0 rows" in lines(terminal)
    assert any(line.startswith("interrupted: hello is stopped") for line in lines(terminal))


def test_without_a_terminal_there_is_no_line(
    shell: Shell, tracer: FakeTracer, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run(f"%%bpf hello -t 300ms\n{HELLO}")
    out = capsys.readouterr().out
    assert "\r" not in out
    assert "of 0.3 s" not in out


def test_ctrl_c_while_it_is_compiled_is_one_line_and_attaches_nothing(
    shell: Shell, tracer: FakeTracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = on_terminal(monkeypatch)
    slow = threading.Event()
    tracer.before_load = lambda: slow.wait(5)
    timer = threading.Timer(1.4, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt) as raised:
        shell.run(f"%%bpf hello\n{HELLO}")
    timer.join()
    slow.set()
    said = raised.value._render_traceback_()  # type: ignore[attr-defined]
    assert said == ["KeyboardInterrupt: interrupted before it ran: nothing is left attached"]
    assert "compiling, 1 s" in lines(terminal)
    assert "hello" not in shell.inner.user_ns
    assert shell.run("bpfnb.sessions()" if "bpfnb" in shell.inner.user_ns else "import bpfnb; bpfnb.sessions()") == {}


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"help"}))
def test_every_command_has_help_of_its_own(shell: Shell, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.run(f"%bpf {name} --help") is None
    shown = capsys.readouterr().out
    assert name in shown.split("\n\n")[0] or name == "run"
    assert "Compile a cell of C" not in shown
    assert len(shown) > 50


@pytest.mark.parametrize("line", ["--pid {nobody}", "-D LIMIT={nobody}", "-t {nobody}"])
def test_a_value_that_is_none_is_said_in_one_line(shell: Shell, tracer: FakeTracer, line: str) -> None:
    shell.inner.user_ns["nobody2"] = 3
    with pytest.raises(ProgramError, match="no variable is called nobody") as error:
        shell.run(f"%%bpf hello {line}\n{HELLO}")
    assert "nobody2" in str(error.value.hint)
    assert tracer.loaded == []


def test_braces_of_another_language_stay(shell: Shell) -> None:
    result = shell.run(f"%%bpf hello --command 'awk \"BEGIN {{print}}\"' -D 'X={{a}}b'\n{HELLO}")
    assert isinstance(result, Session)
    assert "{print}" in str(result.snapshot().filters)
    assert result.program.cflags == ("-DX={a}b",)


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, None])
def test_values_that_cannot_stand_in_a_line(shell: Shell, value: object) -> None:
    shell.inner.user_ns["v"] = value
    with pytest.raises(ProgramError, match=f"v is a {type(value).__name__}"):
        shell.run(f"%%bpf hello --comm {{v}}\n{HELLO}")


def test_a_value_with_spaces_stays_one_word(shell: Shell, tracer: FakeTracer) -> None:
    shell.inner.user_ns["who"] = "my worker 1"
    shell.run(f"%%bpf hello --comm {{who}}\n{HELLO}")
    assert tracer.filters[-1].comm == "my worker 1"


def test_a_command_that_is_none_is_still_an_error(shell: Shell) -> None:
    with pytest.raises(UsageError, match=re.escape("%bpf stopp: no such command; did you mean stop")):
        shell.run("%bpf stopp")
