"""The same faults done to bpfnb, bcc and bpftrace: python -m benchmarks.faults prints what each did, as a table.

Needs root, bcc's Python bindings for /usr/bin/python3, bpftrace, and gcc. It switches tracing off for a moment and
reads the global trace pipe: not for a machine on which others trace. What was observed last is in docs/reliability.md.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from leaks import bpf_ids, held_elsewhere  # type: ignore[import-not-found]  # the tests count the same

from bpfnb.tracer.compile import headers

MARK = 1_073_700_001  # what the calls that are traced ask for: no process has this number
CALLS = 200_000  # more lines than any of them buffers
TRACEFS = Path("/sys/kernel/tracing")
_libc = ctypes.CDLL(None)

BPFNB = f"""
import signal, sys, bpfnb
SOURCE = '''int f(struct pt_regs *ctx, int pid) {{ if (pid == {MARK}) bpf_trace_printk("marked\\\\n"); return 0; }}'''
session = bpfnb.trace(SOURCE, attach={{"syscall:getpgid": "f"}})
print("ready", bpfnb.hosts.default_host.connect().hello().pid, flush=True)
try:
    sys.stdin.readline()
except KeyboardInterrupt:
    pass
session.stop()
print("\\n".join(session.df.msg))
print("LOST", session.lost)
for note in session.warnings:
    print("SAID", note.message.split(" of the session")[0])
"""

BCC = f"""
import sys
from bcc import BPF
b = BPF(text='''TRACEPOINT_PROBE(syscalls, sys_enter_getpgid) {{
    if (args->pid == {MARK}) bpf_trace_printk("marked\\\\n"); return 0; }}''')
print("ready", flush=True)
while True:
    print(b.trace_fields()[5].decode(), flush=True)
"""

BPFTRACE = f'tracepoint:syscalls:sys_enter_getpgid /args->pid == {MARK}/ {{ printf("marked\\n"); }}'

COMMANDS = {
    "bpfnb": [sys.executable, "-c", BPFNB],
    "bcc (trace_fields)": ["/usr/bin/python3", "-c", BCC],
    "bpftrace (printf)": ["bpftrace", "-e", 'BEGIN { printf("ready\\n"); } ' + BPFTRACE],
}


def burst(count: int = CALLS) -> None:
    for _ in range(count):
        _libc.getpgid(MARK)


@contextmanager
def tool(name: str, **options: object) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A tool that traces, and the file of what it writes."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output")
        with output.open("w") as file:
            process = subprocess.Popen(  # type: ignore[call-overload]
                COMMANDS[name],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                text=True,
                start_new_session=True,
                **options,
            )
        try:
            deadline = time.monotonic() + 60
            while "ready" not in output.read_text() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.5)
            yield process, output
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def end(process: subprocess.Popen[str], name: str) -> None:
    """Ask it politely: a line for bpfnb's script, Ctrl-C for the others."""
    time.sleep(1)
    if name == "bpfnb":
        with suppress(BrokenPipeError):
            print(file=process.stdin, flush=True)
    else:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()


def account(name: str, output: Path, made: int) -> str:
    """How many of the lines arrived, and what it said of the others."""
    text = output.read_text(errors="replace")
    seen = text.count("marked")
    said = [*re.findall(r"^LOST (\d+)", text, re.M), *re.findall(r"Lost (\d+) events", text)]
    lost = sum(map(int, said))
    what = f"{seen:,} of {made:,} lines"
    if seen == made:
        return f"all {made:,} lines"
    words = "; ".join(dict.fromkeys(re.findall(r"^SAID (.*)$", text, re.M)))
    if seen + lost == made:
        return f"{what}, the other {lost:,} counted as lost" + (f"; says: {words}" if words else "")
    if lost:
        return f"{what}, says {lost:,} were lost"
    return f"{what}; says {words}" if words else f"{what}, and says nothing of the rest"


def stopped_reader(name: str) -> str:
    with tool(name) as (process, output):
        os.killpg(process.pid, signal.SIGSTOP)
        burst()
        os.killpg(process.pid, signal.SIGCONT)
        end(process, name)
        return account(name, output, CALLS)


def buffers_of(output: Path) -> list[Path]:
    """The trace buffers it reads from: bpfnb's own, else everybody's."""
    tracer = re.search(r"^ready (\d+)", output.read_text(), re.M)
    if not tracer:
        return [TRACEFS]
    found = (TRACEFS / "instances").glob(f"bpfnb-{tracer[1]}-*")
    return [path for path in found if not path.name.endswith("comm")]


def other_reader(name: str) -> str:
    with tool(name) as (process, output):
        found = [path for buffer in buffers_of(output) for path in buffer.glob("per_cpu/cpu*/trace_pipe_raw")]
        pipes = [os.open(path, os.O_RDONLY | os.O_NONBLOCK) for path in found]
        for _ in range(500):
            burst(20)
            for pipe in pipes:
                with suppress(OSError):
                    os.read(pipe, 4096)
        for pipe in pipes:
            os.close(pipe)
        end(process, name)
        return account(name, output, 10_000)


def tracing_off(name: str) -> str:
    with tool(name) as (process, output):
        burst(1000)
        time.sleep(0.3)
        files = [buffer / "tracing_on" for buffer in buffers_of(output)]
        for file in files:
            file.write_text("0")
        try:
            time.sleep(0.3)
            burst(1000)
            time.sleep(0.3)
        finally:
            for file in files:
                with suppress(OSError):
                    file.write_text("1")
        end(process, name)
        return account(name, output, 2000)


def ownerless(before: dict[str, set[int]]) -> int:
    """How many BPF objects there are more that no process holds."""
    return sum(len(bpf_ids(kind) - ids - held_elsewhere(kind, {os.getpid()})) for kind, ids in before.items())


def objects() -> dict[str, set[int]]:
    return {kind: bpf_ids(kind) for kind in ("program", "map", "link")}


def killed(name: str) -> str:
    before = objects()
    with tool(name) as (process, output):
        instances = [path for path in buffers_of(output) if path != TRACEFS]
        process.kill()
        process.wait()
        began = time.monotonic()
        while time.monotonic() - began < 10:
            left = ownerless(before) + len([path for path in instances if path.exists()])
            if not left:
                return f"all gone after {time.monotonic() - began:.1f} s"
            time.sleep(0.05)
        return f"after 10 s {left} kernel objects are left"


def ctrl_c(name: str) -> str:
    """Twenty times, at moments spread over its start and its run."""
    failed, tracebacks, before = 0, 0, objects()
    for number in range(20):
        with tempfile.TemporaryFile("w+") as file:
            process = subprocess.Popen(COMMANDS[name], stdin=subprocess.PIPE, stdout=file, stderr=file, text=True)
            time.sleep(0.1 * number)
            process.send_signal(signal.SIGINT)
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                failed += 1
            file.seek(0)
            tracebacks += "Traceback" in file.read()
    time.sleep(2)
    ended = "all 20 ended" if not failed else f"{failed} of 20 did not end in 20 s"
    return f"{ended}, {ownerless(before)} BPF objects left, {tracebacks} tracebacks"


def few_descriptors(name: str) -> str:
    limit = 24
    done = subprocess.run(
        ["sh", "-c", f'ulimit -n {limit}; exec timeout -s INT 20 "$@"', "sh", *COMMANDS[name]],
        input="\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    last = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
    return f"status {done.returncode}, last words: {last[:110]}"


def giant_build_id(name: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "x.c"), Path(folder, "x")
        source.write_text("int traced(void) { return 1; } int main(void) { return traced(); }")
        subprocess.run(["gcc", "-O0", f"-Wl,--build-id=0x{'ab' * 4000}", "-o", binary, source], check=True)
        probe = f"uprobe:{binary}:traced"
        empty = "int f(void *x) { return 0; }"
        ours = f"import bpfnb; bpfnb.trace('{empty}', attach={{'{probe}': 'f'}}).stop(); print('attached')"
        attach = f"BPF(text='{empty}').attach_uprobe(name='{binary}', sym='traced', fn_name='f')"
        theirs = f'BEGIN {{ printf("attached\\n"); exit(); }} {probe} {{ }}'
        commands = {
            "bpfnb": [sys.executable, "-c", ours],
            "bcc (trace_fields)": ["/usr/bin/python3", "-c", f"from bcc import BPF; {attach}; print('attached')"],
            "bpftrace (printf)": ["timeout", "-s", "INT", "5", "bpftrace", "-e", theirs],
        }
        done = subprocess.run(commands[name], capture_output=True, text=True, check=False)
        if done.returncode < 0:
            return f"the process is ended by {signal.Signals(-done.returncode).name}"
        last = (done.stderr.strip() or "nothing").splitlines()[-1]
        return "attached" if "attached" in done.stdout else f"status {done.returncode}: {last[:110]}"


FAULTS: dict[str, Callable[[str], str]] = {
    "its reader is stopped (SIGSTOP) while 200,000 lines are printed": stopped_reader,
    "another process reads the same trace buffer (`trace_pipe_raw`)": other_reader,
    "`tracing_on` of its buffer is 0 for a moment": tracing_off,
    "kill -9 while it traces": killed,
    "Ctrl-C at 20 moments of its start and run": ctrl_c,
    "`ulimit -n 24`": few_descriptors,
    "a uprobe on a file with a build id of 4,000 bytes": giant_build_id,
}


def main() -> int:
    missing = [program for program in ("bpftrace", "gcc") if not shutil.which(program)]
    if missing or os.geteuid():
        print(f"faults: needs root and {', '.join(missing) or 'nothing else'}", file=sys.stderr)
        return 2
    if tree := headers.kernel_source():
        os.environ["BCC_KERNEL_SOURCE"] = str(tree)  # bcc has none of its own where no headers are installed
    print(f"| fault | {' | '.join(COMMANDS)} |")
    print("| --- |" + " --- |" * len(COMMANDS))
    for fault, do in FAULTS.items():
        if len(sys.argv) > 1 and sys.argv[1] not in do.__name__:
            continue
        print(f"| {fault} | {' | '.join(do(name) for name in COMMANDS)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
