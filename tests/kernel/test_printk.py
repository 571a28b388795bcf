"""bpf_trace_printk's lines, however hostile, and what they do not disturb."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import bpfnb
from bpfnb.session import Session

_libc = ctypes.CDLL(None)
TRACEFS = Path("/sys/kernel/tracing")

# Prints the string this process hands to the syscall: any bytes at all.
ECHO = """
int echo(struct pt_regs *ctx, const char *path) {
    char text[64] = {};
    bpf_probe_read_user_str(text, sizeof(text), path);
    bpf_trace_printk("%s\\n", text);
    return 0;
}
"""
COUNT = 'int count(void *ctx) { bpf_trace_printk("x\\n"); return 0; }'


@contextmanager
def echo() -> Iterator[Session]:
    with bpfnb.trace(ECHO, name="echo", attach={"syscall:chdir": "echo"}) as session:
        yield session


def mine(session: Session) -> list[str]:
    df = session.df
    return df[df.pid == os.getpid()].msg.tolist()


@contextmanager
def named(name: bytes) -> Iterator[None]:
    before = Path("/proc/self/comm").read_bytes().rstrip(b"\n")
    Path("/proc/self/comm").write_bytes(name)
    try:
        yield
    finally:
        Path("/proc/self/comm").write_bytes(before)


@contextmanager
def one_cpu() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


MESSAGES = [
    b"plain",
    b"",
    b"with spaces  and [brackets] (parens) {braces}: colons",
    b"two\nlines",
    b"bash-1     [000] d..2. 1.0: bpf_trace_printk: forged",
    b"\nbash-1     [000] d..2. 1.0: bpf_trace_printk: forged\n",
    b"ends in a newline\n",
    b"<script>alert(1)</script> & $x_1^2$",
    b"tab\tand\x01control\x7f",
    b"%s %d %n",
    "snow \u2603 and \U0001f41d".encode(),
    b"\\n",
    b"\\\\n",
    b"before",
    b"\xff\xfe broken",
    b"\xe2\x98",  # the beginning of a character,
    b"\x83",  # and its end
    b"after",
]


@pytest.mark.portable
def test_a_message_arrives_as_it_was() -> None:
    """Whatever it holds; what is not UTF-8 is replaced, and spares its neighbours."""
    with echo() as session:
        for message in MESSAGES:
            _libc.chdir(message)
    assert mine(session) == [message.decode(errors="replace") for message in MESSAGES]


@pytest.mark.portable
def test_a_process_may_call_itself_anything() -> None:
    names = [b"a b", b"x-1 [000] d..2.", b"<b>&", b"bad\xff", b"new\nline", b"123456789012345678", b"plain"]
    with echo() as session:
        for name in names:
            with named(name):
                _libc.chdir(b"/nowhere")
    df = session.df
    shown = [name[:15].decode(errors="replace") for name in names]
    assert df[df.pid == os.getpid()].comm.tolist() == shown


@pytest.mark.portable
def test_comm_is_the_name_at_that_moment() -> None:
    """A process that changes its name between two lines has both names, and one that is gone still has its."""
    with echo() as session:
        for name in (b"first", b"second", b"third"):
            with named(name):
                _libc.chdir(b"/nowhere")
        code = "import ctypes; open('/proc/self/comm','w').write('shortlived'); ctypes.CDLL(None).chdir(b'/gone')"
        gone = subprocess.Popen([sys.executable, "-I", "-S", "-c", code])
        gone.wait()
    df = session.df
    assert df[df.pid == os.getpid()].comm.tolist() == ["first", "second", "third"]
    assert df[(df.pid == gone.pid) & (df.msg == "/gone")].comm.tolist() == ["shortlived"]


def test_flags_read_as_ftrace_shows_them() -> None:
    """The kernel's own text of the same records is the measure."""
    instance = TRACEFS / "instances" / "test-flags"
    instance.mkdir()
    try:
        (instance / "events/bpf_trace/bpf_trace_printk/enable").write_text("1")
        with bpfnb.trace(COUNT, name="count", attach={"syscall:getpgid": "count", "profile:999": "count"}) as session:
            deadline = time.monotonic() + 1
            while time.monotonic() < deadline:
                _libc.getpgid(0)
                time.sleep(0.001)
        text = (instance / "trace").read_text()
    finally:
        (instance / "events/bpf_trace/bpf_trace_printk/enable").write_text("0")
        instance.rmdir()
    theirs = [line.split("[", 1)[1].split()[1] for line in text.splitlines() if line and line[0] != "#"]
    df = session.df
    assert len(df) > 500
    ours = Counter(df["flags"])
    assert len(theirs) == len(df)
    # Each instance records for itself, one after the other: in between a task may become due (the "n").
    differing = sum(((ours - Counter(theirs)) + (Counter(theirs) - ours)).values())
    assert differing <= len(df) / 100, (ours, Counter(theirs))


def test_two_sessions_and_a_foreign_reader_do_not_meet(tmp_path: Path) -> None:
    """Each session has its own lines and all of them; so has somebody's ``cat trace_pipe``."""
    one = COUNT.replace('"x', '"one')
    two = COUNT.replace('"x', '"two')
    (TRACEFS / "trace").write_text("")
    with (tmp_path / "seen").open("wb") as seen:
        reader = subprocess.Popen(["cat", TRACEFS / "trace_pipe"], stdout=seen)
    try:
        with (
            bpfnb.trace(one, name="one", attach={"syscall:getpgid": "count"}) as first,
            bpfnb.trace(two, name="two", attach={"syscall:getpgid": "count"}) as second,
        ):
            for _ in range(100):  # slowly: the one buffer that everybody shares is small
                _libc.getpgid(0)
                time.sleep(0.002)
        time.sleep(0.3)
    finally:
        reader.kill()
        reader.wait()
    assert mine(first) == ["one"] * 100
    assert mine(second) == ["two"] * 100
    lines = (tmp_path / "seen").read_text(errors="replace").splitlines()
    here = [line for line in lines if f"-{os.getpid()} " in line]
    assert sum("one" in line for line in here) == 100
    assert sum("two" in line for line in here) == 100


def test_two_notebooks_print_at_once() -> None:
    """Another process's bpfnb, tracing the same calls, changes nothing for ours."""
    code = f"""
import bpfnb, ctypes, os, sys
with bpfnb.trace({COUNT.replace("x", "theirs")!r}, name="theirs", attach={{"syscall:getpgid": "count"}}) as s:
    print("ready", flush=True)
    sys.stdin.readline()
df = s.df
print(len(df[df.pid == int(sys.argv[1])]), set(df.msg), s.lost, flush=True)
"""
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout
    assert other.stdout.readline() == "ready\n"
    with bpfnb.trace(COUNT, name="ours", attach={"syscall:getpgid": "count"}) as session:
        for _ in range(300):
            _libc.getpgid(0)
    answer, _ = other.communicate("stop\n", timeout=30)
    assert mine(session) == ["x"] * 300
    assert answer == "300 {'theirs'} 0\n"


def test_what_is_overwritten_is_counted() -> None:
    """More lines than the buffer holds, with the tracer held still: delivered + lost = printed, exactly."""
    tracer = bpfnb.hosts.default_host.connect().hello().pid
    printed = 1_500_000
    ours = COUNT.replace("{", "{ if (bpf_get_current_pid_tgid() >> 32 != PID) return 0;")
    flags = [f"-DPID={os.getpid()}"]
    with one_cpu(), bpfnb.trace(ours, name="flood", attach={"syscall:getpgid": "count"}, cflags=flags) as session:
        os.kill(tracer, 19)
        try:
            for _ in range(printed):
                _libc.getpgid(0)
        finally:
            os.kill(tracer, 18)
    df = session.df
    assert session.lost > 0
    assert len(df) + session.lost == printed
    assert df.attrs["lost"] == session.outputs["printk"].lost == session.lost
    assert f"{session.lost}" in repr(session).replace(",", "")


FORMATS = [
    "%d", "%i", "%u", "%x", "%X", "%c", "%ld", "%llX", "%5d", "%-5d|", "%05lld", "%+d", "% d", "%px", "%d%%",
    "%f", "%e", "%o", "%#x", "%hd", "%hhu", "%zu", "%jd", "%.3d", "%*d", "%n", "%q", "100% %d", "%d 100%",
]  # fmt: skip


def test_a_warning_is_given_of_just_the_formats_that_print_nothing() -> None:
    """bcc warns of many that the kernel has taken since 5.13."""
    for format_ in FORMATS:
        source = f'\nint f(void *ctx) {{ bpf_trace_printk("[{format_}]", 65); return 0; }}'
        with bpfnb.trace(source, attach={"syscall:getpgid": "f"}, name="formats") as session:
            _libc.getpgid(0)
        said = [w for w in session.warnings if w.severity == "warning"]
        assert bool(mine(session)) != bool(said), (format_, said)
        assert all(w.message.startswith("this prints nothing: bpf_trace_printk knows no %") for w in said)
        assert all((w.line, w.column) == (2, 37) for w in said)
