"""Commands of sessions, against a tracer without a kernel: how they start, and how each way to end ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import processes
import pytest
from waiting import until

import bpfnb
from bpfnb import ProgramError, Session
from bpfnb.command import Command
from bpfnb.language.filters import Filters
from bpfnb.testing import FakeTracer

HELLO = 'int kprobe__sys_clone(void *ctx) { bpf_trace_printk("hi\\n"); return 0; }'


@pytest.fixture
def tracer() -> Iterator[FakeTracer]:
    with FakeTracer() as fake:
        yield fake


def running(*command: str, **options: object) -> Session:
    return bpfnb.trace(HELLO, command=command, **options)  # type: ignore[arg-type]


def ended(pid: int) -> bool:
    return not processes.alive(pid)


def test_a_session_ends_with_its_command(tracer: FakeTracer, capfd: pytest.CaptureFixture[str]) -> None:
    session = bpfnb.trace(HELLO, command="sh -c 'echo $0 \"$PWD\"; read x || exit 3' 'two words'")
    assert session.wait(30)
    assert (session.returncode, session.reason, session.state) == (3, "its command ended with status 3", "stopped")
    assert capfd.readouterr().out == f"two words {Path.cwd()}\n"
    assert "only command sh -c" in repr(session)
    (filters,) = tracer.filters
    assert filters == Filters(follow=filters.follow, held=True)
    assert bpfnb.sessions() == {}


def test_a_signal_that_ends_it(tracer: FakeTracer) -> None:
    session = running("sh", "-c", "kill -USR1 $$")
    assert session.wait(30)
    assert (session.returncode, session.reason) == (-signal.SIGUSR1, "its command was ended by SIGUSR1")


def test_it_has_the_notebooks_environment(tracer: FakeTracer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPFNB_TEST", "a=b\nc")
    monkeypatch.delenv("LC_CTYPE", raising=False)
    for name in ("LC_ALL", "LANG"):
        monkeypatch.setenv(name, "C")
    copy = tmp_path / "environ"
    session = running("cp", "/proc/self/environ", str(copy))
    assert session.wait(30)
    assert session.returncode == 0
    usual = subprocess.run(["cat", "/proc/self/environ"], capture_output=True, text=True, check=True).stdout
    assert sorted(copy.read_text().split("\0")) == sorted(usual.split("\0"))


@pytest.mark.parametrize("way", ["stop", "with", "replaced", "stop_all"])
def test_who_stops_a_session_ends_its_command_and_all_of_its_group(tracer: FakeTracer, way: str) -> None:
    session = running("sh", "-c", "sleep 1000 & wait", name="x")
    pid = tracer.filters[0].follow
    until(lambda: processes.children(pid))
    both = {pid, *processes.children(pid)}
    if way == "with":
        with session:
            pass
    elif way == "replaced":
        bpfnb.trace(HELLO, name="x").stop()
    else:
        session.stop() if way == "stop" else bpfnb.stop_all()
    until(lambda: all(map(ended, both)))
    until(lambda: session.returncode == -signal.SIGTERM)
    assert session.reason == "stopped"


def test_a_command_that_ignores_sigterm_has_two_seconds(tracer: FakeTracer, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    session = running("sh", "-c", f"trap '' TERM; touch {ready}; while :; do sleep 0.1; done")
    until(ready.exists)
    began = time.monotonic()
    session.stop()
    assert time.monotonic() - began < 1, "stop does not wait for it"
    until(lambda: session.returncode == -signal.SIGKILL)
    assert 1.5 < time.monotonic() - began < 10


def test_a_session_that_ends_by_itself_leaves_its_command(tracer: FakeTracer) -> None:
    session = running("sleep", "1000")
    pid = tracer.filters[0].follow
    tracer.end(session, "it took too much")
    until(lambda: session.state == "stopped")
    assert not ended(pid)
    session.stop()
    until(lambda: session.returncode == -signal.SIGTERM)
    assert session.reason == "it took too much"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("nosuchcommand -x", "there is no command 'nosuchcommand'"),
        ("/no/such/file", "there is no command '/no/such/file'"),
        ("/etc/passwd", "the command '/etc/passwd' cannot be executed"),
        ("/tmp", "the command '/tmp' cannot be executed"),
        ("echo 'x", "cannot read the command"),
        ("", "the command is empty"),
        ([], "the command is empty"),
        (["echo", "a\0b"], "without NUL characters"),
        (["echo", 5], "must be a list of str"),
        (5, "command must be a str or a list of str, not 5"),
        (b"echo", "command must be a str or a list of str, not b'echo'"),
    ],
)
def test_what_is_no_command(tracer: FakeTracer, command: object, message: str) -> None:
    with pytest.raises(ProgramError) as caught:
        bpfnb.trace(HELLO, command=command)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert tracer.loaded == []


def test_a_file_that_turns_out_not_to_start(tracer: FakeTracer, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    with pytest.raises(ProgramError, match=r"the command '.*' does not start: .*: No such file or directory"):
        running(str(script))
    assert len(tracer.stopped) == 1
    assert bpfnb.sessions() == {}
    until(lambda: not processes.children())


def test_no_command_runs_where_the_program_is_rejected(tracer: FakeTracer, tmp_path: Path) -> None:
    tracer.refuse(bpfnb.CompileError("no"))
    with pytest.raises(bpfnb.CompileError):
        running("touch", str(tmp_path / "started"))
    until(lambda: not processes.children())
    assert not list(tmp_path.iterdir())


def test_filters_that_exclude_one_another(tracer: FakeTracer) -> None:
    for options in ({"pid": 1}, {"follow": 1}):
        with pytest.raises(ProgramError, match="cannot be given together"):
            running("true", **options)


@pytest.mark.parametrize("held", [True, False])
def test_a_killed_notebook_leaves_no_command(held: bool) -> None:
    code = textwrap.dedent(f"""
        import time
        from bpfnb.command import Command
        command = Command(["sleep", "1000"])
        command.start()
        {held} or command.let_go()
        print(command.pid, flush=True)
        time.sleep(1000)
    """)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as notebook:
        assert notebook.stdout
        pid = int(notebook.stdout.readline())
        until(lambda: ("sleep" in Path(f"/proc/{pid}/comm").read_text()) != held)
        notebook.kill()
    until(lambda: ended(pid))


def test_a_command_that_is_ended_before_it_starts_does_not_start() -> None:
    command = Command(["true"])
    command.end()
    command.start()
    assert not command.pid


def test_nothing_of_it_is_left_once_it_has_ended() -> None:
    """Neither does anything wait for two seconds to kill it."""
    ended: list[int] = []
    before = set(threading.enumerate())
    command = Command(["sleep", "60"])
    command.on_end = ended.append
    command.start()
    command.let_go()
    command.end()
    until(lambda: ended, 1)
    until(lambda: set(threading.enumerate()) <= before, 1)
    assert ended == [-signal.SIGTERM]


def test_what_ignores_sigterm_in_its_group_is_killed_though_the_command_obeys(tmp_path: Path) -> None:
    ended: list[int] = []
    command = Command(["sh", "-c", f"(trap '' TERM; echo > {tmp_path}/ready; sleep 60) & wait"])
    command.on_end = ended.append
    command.start()
    command.let_go()
    until((tmp_path / "ready").exists, 5)
    command.end()
    until(lambda: ended, 5)
    with pytest.raises(ProcessLookupError):
        until(lambda: os.killpg(command.pid, 0), 2)
