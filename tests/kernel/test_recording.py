"""Sessions recorded while they run: every row, whatever becomes of the notebook; and nothing left."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from examples import EXAMPLES
from waiting import until

import bpfnb
from bpfnb.errors import CompileError, ProgramError
from bpfnb.terminal import run

MIB = 1 << 20
_libc = ctypes.CDLL(None)

# Each event has its number: what is missing shows. 1 KiB each, so that little fills much.
SOURCE = """
struct event { u64 n; char text[1000]; };
BPF_RINGBUF_OUTPUT(events, 1 << 12);
BPF_ARRAY(made, u64, 1);
int f(struct pt_regs *ctx) {
    if ((bpf_get_current_pid_tgid() >> 32) != PRODUCER) return 0;
    int zero = 0;
    u64 *n = made.lookup(&zero);
    if (!n) return 0;
    struct event *event = events.ringbuf_reserve(sizeof(*event));
    if (!event) return 0;
    event->n = (*n)++;
    event->text[0] = 0;
    events.ringbuf_submit(event, 0);
    return 0;
}
"""
ATTACH = {"syscall:getpgid": "f"}
PRODUCER = """
import os, sys, time
print(os.getpid(), flush=True)
for line in sys.stdin:
    for burst in range(int(line)):
        for _ in range(1000):
            os.getpgid(0)
        time.sleep(0.01)
    print("made", flush=True)
"""


class Producer:
    """Another process, which makes as many thousands of events as it is told."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PRODUCER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout
        self.pid = int(self._process.stdout.readline())

    def begin(self, thousands: int) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{thousands}\n")
        self._process.stdin.flush()

    def wait(self) -> None:
        assert self._process.stdout
        assert self._process.stdout.readline() == "made\n"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def producer() -> Iterator[Producer]:
    made = Producer()
    yield made
    made.close()


def trace(path: Path, producer: Producer, **options: object) -> bpfnb.Session:
    return bpfnb.trace(SOURCE, name="s", attach=ATTACH, cflags=[f"-DPRODUCER={producer.pid}"], record=path, **options)  # type: ignore[arg-type]


def recorder(session: bpfnb.Session) -> int:
    """The number of a session's recorder."""
    assert session._recorder
    assert session._recorder._process
    return session._recorder._process.pid


def numbers(session: bpfnb.Session) -> list[int]:
    """The events' own numbers, in a session's rows."""
    return session.df["n"].tolist()


def made(session: bpfnb.Session) -> int:
    """How many the program has counted."""
    return int(session.maps["made"][0])


def test_a_busy_notebook_costs_the_recording_no_row(tmp_path: Path, producer: Producer) -> None:
    """GIVEN a session that may keep 8 MiB WHEN its process holds the GIL for two seconds while 60 MiB come
    THEN the recording has every row, and the notebook says how many of them it has not."""
    session = trace(tmp_path / "all", producer, keep=8 * MIB)
    assert str(session.recording).startswith(f"recording to {tmp_path}/all, ")
    until(lambda: bool(session._recorder and session._recorder._progress > session._started))
    producer.begin(60)
    ctypes.PyDLL(None).usleep(2_000_000)  # keeps the GIL, as pandas may
    producer.wait()
    session.stop()
    total = made(session)  # of 60,000 calls; a machine with much else to do may not empty the ring in time
    assert total > 40_000
    with pytest.warns(RuntimeWarning):
        kept = len(session.df)
    assert kept + session.outputs["events"].dropped == total
    assert kept < 30_000
    assert session.recording
    assert (session.recording.rows, session.recording.finished, session.recording.failed) == (total, True, "")
    assert f"{total:,} rows" in repr(session)
    opened = bpfnb.open(tmp_path / "all")
    assert numbers(opened) == list(range(total))
    assert made(opened) == total
    assert (opened.state, opened.reason, opened.lost) == ("stopped", "stopped", session.lost)
    assert opened.name == "s"
    assert opened.df.dtypes.equals(session.df.dtypes)
    assert not opened.missing


NOTEBOOK = """
import sys, time
import bpfnb
source, path, pid = sys.argv[1:]
session = bpfnb.trace(source, name="s", attach={"syscall:getpgid": "f"}, cflags=["-DPRODUCER=" + pid], record=path)
print(session._recorder._process.pid, session._tracer.hello().pid, flush=True)
time.sleep(600)
"""


@contextmanager
def notebook(path: Path, producer: Producer) -> Iterator[tuple[int, int, int]]:
    """Another process that records a session: it, its recorder, its tracer."""
    command = [sys.executable, "-c", NOTEBOOK, SOURCE, str(path), str(producer.pid)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        recording, tracer = map(int, process.stdout.readline().split())
        yield process.pid, recording, tracer
    finally:
        process.kill()
        process.communicate()


def gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_kill_of_a_stopped_notebook_leaves_a_whole_recording_and_nothing_else(
    tmp_path: Path, producer: Producer
) -> None:
    """GIVEN a notebook that stands still WHEN 30 MiB have come, more come, and it is killed
    THEN tracer and recorder end, and the recording has all that the program had counted."""
    with notebook(tmp_path / "it.zip", producer) as (pid, recording, tracer):
        os.kill(pid, signal.SIGSTOP)
        producer.begin(30)
        producer.wait()
        producer.begin(500)  # it goes on meanwhile
        os.kill(pid, signal.SIGKILL)
        until(lambda: gone(tracer))
        until(lambda: gone(recording))
    opened = bpfnb.open(tmp_path / "it.zip")
    assert len(opened.df) == made(opened) > 20_000
    assert numbers(opened) == list(range(made(opened)))
    assert opened.lost == 0
    assert "notebook" in opened.reason
    assert [path.name for path in tmp_path.iterdir()] == ["it.zip"]


def test_kill_of_the_recorder_costs_the_session_nothing(tmp_path: Path, producer: Producer) -> None:
    with trace(tmp_path / "it", producer) as session:
        producer.begin(5)
        producer.wait()
        until(lambda: session._recorder is not None and session._recorder.rows == 5000)
        os.kill(recorder(session), signal.SIGKILL)
        until(lambda: any("not recorded any further" in warning.message for warning in session.warnings))
        producer.begin(5)
        producer.wait()
        assert session.state == "running"
    assert numbers(session) == list(range(10_000))
    assert "SIGKILL" in repr(session) or "signal 9" in repr(session)
    opened = bpfnb.open(tmp_path / "it")
    assert numbers(opened) == list(range(5000))
    assert opened.reason == "its recording was cut short"


@pytest.mark.ends_tracer
def test_kill_of_the_tracer_leaves_what_it_had_delivered(tmp_path: Path, producer: Producer) -> None:
    session = trace(tmp_path / "it", producer)
    producer.begin(5)
    producer.wait()
    until(lambda: session.outputs["events"].rows == 5000)
    assert session._tracer
    os.kill(session._tracer.hello().pid, signal.SIGKILL)
    assert session.wait(20)
    assert session.state == "failed"
    opened = bpfnb.open(tmp_path / "it")
    assert numbers(opened) == list(range(5000))
    assert opened.state == "failed"
    assert opened.reason.startswith("the tracer process ended")


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


# Numbers that no compression makes small.
NOISE = SOURCE.replace("char text[1000]", "u64 noise[8]").replace(
    "event->text[0] = 0;",
    "for (int i = 0; i < 8; i++) event->noise[i] = bpf_get_prandom_u32() * 0x9e3779b97f4a7c15ULL;",
)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
@pytest.mark.parametrize("then", ["continue", "stop"])
def test_a_full_disk_leaves_a_good_file_and_a_session_that_does_as_it_was_asked(
    tmp_path: Path, producer: Producer, then: str
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        options = {"name": "s", "attach": ATTACH, "cflags": [f"-DPRODUCER={producer.pid}"]}
        session = bpfnb.trace(NOISE, record=disk / "it", record_failed=then, **options)  # type: ignore[arg-type]
        producer.begin(60)
        until(lambda: any("No space left" in warning.message for warning in session.warnings))
        producer.wait()
        if then == "stop":
            assert session.wait(20)
            assert "No space left" in session.reason
        else:
            assert session.state == "running"
            session.stop()
            assert numbers(session) == list(range(60_000))
        assert session.recording
        assert "No space left" in session.recording.failed
        opened = bpfnb.open(disk / "it")
        with pytest.warns(RuntimeWarning, match="are not in the recording"):
            found = numbers(opened)
        assert 1000 < len(found) < 60_000
        assert found == list(range(len(found)))
        assert session.recording.rows == len(found)
        assert "No space left" in repr(opened)


def test_what_cannot_be_recorded_is_refused_before_anything_is_attached(tmp_path: Path, producer: Producer) -> None:
    there = tmp_path / "there"
    there.mkdir()
    for wrong in (there, tmp_path / "none" / "it", ""):
        with pytest.raises(ProgramError):
            trace(wrong, producer)  # type: ignore[arg-type]
    with pytest.raises(ProgramError, match="'continue' or 'stop'"):
        trace(tmp_path / "it", producer, record_failed="go on")
    with pytest.raises(CompileError):
        bpfnb.trace("int f(void *ctx) { return nothing; }", attach=ATTACH, record=tmp_path / "it")
    assert not bpfnb.sessions()
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_stacks_of_a_recording_have_names(tmp_path: Path) -> None:
    """The names that a session has: of a process that ends before the session does, too."""
    session = bpfnb.stacks(
        "syscall:getpgid", command="sh -c 'exec python3 -c \"import os; os.getpgid(0)\"'", record=tmp_path / "it"
    )
    assert session.wait(20)
    opened = bpfnb.open(tmp_path / "it")
    assert len(session.df)
    assert opened.df.equals(session.df)
    assert opened.df["stack"].str.contains("getpgid").any()
    assert opened.returncode == 0
    assert opened.source == session.source


def test_the_documents_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = 'session = bpfnb.trace(source, attach={"syscall:clone": "hello"}, record="clones.bpfnb")'
    source = 'int hello(void *ctx) { bpf_trace_printk("hello %d\\n", 42); return 0; }'
    names = {"bpfnb": bpfnb, "source": source}
    exec(EXAMPLES[example].text, names)
    subprocess.run(["sh", "-c", "(true); (true)"], check=True)
    session: bpfnb.Session = names["session"]  # type: ignore[assignment]
    session.stop()
    opened = bpfnb.open("clones.bpfnb")
    assert len(opened.df) == session.outputs["printk"].rows > 0
    assert opened.df.equals(session.df)
    assert opened.name == session.name


def test_a_tool_in_a_terminal_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["opensnoop", "--record", str(tmp_path / "it"), "--command", "cat /etc/hostname"]) == 0
    opened = bpfnb.open(tmp_path / "it")
    assert f"recorded in {tmp_path / 'it'} ({len(opened.df):,} row" in capsys.readouterr().err
    assert "/etc/hostname" in set(opened.df["path"])
