"""Probes in programs and libraries: USDT with and without semaphores, containers, IFUNCs, names of files."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from portable import portable

import bpfnb
from bpfnb.hosts import default_host

HIT = 'int hit(void *ctx) { bpf_trace_printk("hit\\n"); return 0; }'

# A program that does what a line says and answers with a line: "work N" passes its probes, "sem" tells its semaphore.
PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef SEMAPHORES
#define _SDT_HAS_SEMAPHORES 1
#endif
#include <sys/sdt.h>
#ifdef SEMAPHORES
unsigned short bpfnbtest_work__done_semaphore __attribute__((section(".probes"), used));
unsigned short bpfnbtest_both_semaphore __attribute__((section(".probes"), used));
unsigned short other_both_semaphore __attribute__((section(".probes"), used));
#define SEMAPHORE *(volatile unsigned short *)&bpfnbtest_work__done_semaphore
#else
#define SEMAPHORE 0
#endif
volatile int counter = -7;
static const char hello[] = "hello";
__attribute__((noinline)) void work(int n, long long big, const char *text) {
    unsigned char small = n + 200;
    DTRACE_PROBE4(bpfnbtest, work__done, n, big, text, small);
    DTRACE_PROBE1(bpfnbtest, both, 1);
    DTRACE_PROBE1(other, both, 2);
    __asm__ volatile("" ::: "rbx", "r12", "r13", "r14", "r15");
    DTRACE_PROBE4(bpfnbtest, work__done, counter, (long long)n * 3, text + 1, (unsigned char)250);
    counter--;
}
int main(void) {
    char line[64];
    setbuf(stdout, NULL);
    (void)*(volatile const char *)hello;  // a BPF program cannot read what no memory holds yet
    while (fgets(line, sizeof line, stdin)) {
        if (!strncmp(line, "work ", 5)) {
            int n = atoi(line + 5), before = counter;
            work(n, (1LL << 40) + n, hello);
            printf("%d %lld %s %d; %d %lld %s %d\n", n, (1LL << 40) + n, "hello", (unsigned char)(n + 200), before,
                   n * 3LL, "ello", 250);
        } else printf("%d\n", SEMAPHORE);
    }
}
"""


EVENTS = r"""
struct event { s64 number; s64 big; int narrow; u8 small; char text[8]; };
BPF_PERF_OUTPUT(events);
int f(struct pt_regs *ctx) {
    struct event e = {};
    bpf_usdt_readarg(1, ctx, &e.number);
    bpf_usdt_readarg(2, ctx, &e.big);
    bpf_usdt_readarg(2, ctx, &e.narrow);
    bpf_usdt_readarg(4, ctx, &e.small);
    bpf_usdt_readarg_p(3, ctx, &e.text, sizeof(e.text));
    events.perf_submit(ctx, &e, sizeof(e));
    return 0;
}
"""


class Running:
    """The program at work."""

    def __init__(self, path: Path | str) -> None:
        self.process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid

    def ask(self, line: str) -> str:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The program in every way it can be laid out."""
    folder = tmp_path_factory.mktemp("usdt")
    (folder / "p.c").write_text(PROGRAM)
    made = {}
    for name, flags in {
        "plain": [],
        "semaphores": ["-DSEMAPHORES"],
        "fixed": ["-DSEMAPHORES", "-no-pie", "-fno-pie"],
        "unoptimised": ["-DSEMAPHORES", "-O0"],
    }.items():
        made[name] = folder / name
        subprocess.run(["gcc", "-O2", *flags, "-o", made[name], folder / "p.c"], check=True)
    return made


def told(answer: str) -> list[tuple[int, int, str, int]]:
    """What the program says it passes to its probe: at the first place, and at the second."""
    rows = (part.split() for part in answer.split(";"))
    return [(int(n), int(big), text, int(small)) for n, big, text, small in rows]


def test_a_usdt_probe_of_one_process_is_put_into_that_alone(programs: dict[str, Path]) -> None:
    """The kernel raises the semaphore where the probe is: a program tells its own."""
    path = programs["semaphores"]
    with Running(path) as wanted, Running(path) as other:
        with bpfnb.trace(EVENTS, attach={f"usdt:{path}:bpfnbtest:work__done": "f"}, pid=wanted.pid) as s:
            assert (wanted.ask("sem"), other.ask("sem")) == ("2", "0")  # once for each of the probe's two places
            passed = told(wanted.ask("work 3"))
            other.ask("work 4")
        assert (wanted.ask("sem"), other.ask("sem")) == ("0", "0")
    assert list(s.df.number) == [number for number, *_ in passed]


@pytest.mark.parametrize("build", ["plain", portable("semaphores"), "fixed", portable("unoptimised")])
def test_a_usdt_probe_gives_what_the_program_passes(programs: dict[str, Path], build: str) -> None:
    """In registers, in memory and as constants, elsewhere at each place; also into wider and narrower variables."""
    with (
        Running(programs[build]) as before,
        bpfnb.trace(EVENTS, attach={f"usdt:{programs[build]}:bpfnbtest:work__done": "f"}) as s,
    ):
        wanted = told(before.ask("work -5"))
        with Running(programs[build]) as later:
            wanted += told(later.ask("work 1000"))
    rows = s.df
    assert list(zip(rows.number, rows.big, rows.text, rows.small, strict=True)) == wanted
    assert rows.narrow.tolist() == [
        (big & 0xFFFFFFFF) - (1 << 32 if big & 0x80000000 else 0) for _, big, _, _ in wanted
    ]


@pytest.mark.portable
def test_a_semaphore_is_raised_while_a_session_runs(programs: dict[str, Path]) -> None:
    path = programs["semaphores"]
    with Running(path) as before:
        assert before.ask("sem") == "0"
        with bpfnb.trace(HIT, attach={f"usdt:{path}:work__done": "hit"}) as session, Running(path) as later:
            counts = [before.ask("sem"), later.ask("sem")]
            assert counts[0] == counts[1] == "2"  # one for each place
            session.stop()
            assert [before.ask("sem"), later.ask("sem")] == ["0", "0"]


@pytest.mark.ends_tracer
def test_a_killed_tracer_leaves_no_semaphore_raised(programs: dict[str, Path]) -> None:
    path = programs["semaphores"]
    with Running(path) as program:
        session = bpfnb.trace(HIT, attach={f"usdt:{path}:work__done": "hit"})
        assert program.ask("sem") == "2"
        tracer = default_host.connect().hello().pid
        os.kill(tracer, signal.SIGKILL)
        session.wait(10)
        assert session.state == "failed"
        deadline = time.monotonic() + 10
        while program.ask("sem") != "0" and time.monotonic() < deadline:
            time.sleep(0.02)
        assert program.ask("sem") == "0"


def test_names_of_usdt_probes(programs: dict[str, Path]) -> None:
    """The provider may be left out where only one has such a probe; hyphens stand for what dtrace makes of them."""
    path = programs["plain"]
    for name in ("work__done", "bpfnbtest:work-done", "work-done"):
        with Running(path) as program, bpfnb.trace(HIT, attach={f"usdt:{path}:{name}": "hit"}) as session:
            program.ask("work 1")
        assert len(session.df) == 2
        assert session.probes[0].attached == f"usdt:{path}:bpfnbtest:work__done"
    with pytest.raises(bpfnb.AttachError, match="several probes both") as caught:
        bpfnb.trace(HIT, attach={f"usdt:{path}:both": "hit"})
    assert caught.value.hint == f"write usdt:{path}:bpfnbtest:both or usdt:{path}:other:both"
    with Running(path) as program, bpfnb.trace(HIT, attach={f"usdt:{path}:other:both": "hit"}) as session:
        program.ask("work 1")
    assert len(session.df) == 1


def test_a_files_probes_are_listed(programs: dict[str, Path], caller: Path) -> None:
    path = programs["semaphores"]
    tracer = default_host.connect()
    labels = ["bpfnbtest:both", "bpfnbtest:work__done", "other:both"]
    assert tracer.find_probes(f"usdt:{path}:*", 10) == (tuple(f"usdt:{path}:{label}" for label in labels), 0)
    assert tracer.find_probes(f"usdt:{path}:other:*", 10)[0] == (f"usdt:{path}:other:both",)
    assert tracer.find_probes(f"usdt:{path}:bo*", 1) == ((f"usdt:{path}:bpfnbtest:both",), 1)
    assert tracer.find_probes(f"uprobe:{caller}:ow*", 10)[0] == (f"uprobe:{caller}:own",)
    with pytest.raises(bpfnb.AttachError, match="there is no file /no/such"):
        tracer.find_probes("usdt:/no/such:*", 10)


def test_an_argument_that_is_not_there_is_said_at_its_place(programs: dict[str, Path]) -> None:
    source = "int f(struct pt_regs *ctx) {\n  int x = 0;\n  bpf_usdt_readarg(5, ctx, &x);\n  return x; }"
    with pytest.raises(bpfnb.ProgramError, match="has 4 arguments") as caught:
        bpfnb.trace(source, attach={f"usdt:{programs['plain']}:work__done": "f"})
    assert caught.value.line == 3


def test_pythons_own_usdt_probes() -> None:
    """Debian's python3 has probes with semaphores: README's example."""
    python = "/usr/bin/python3"
    source = r"""
    int f(struct pt_regs *ctx) {
        int generation = -1;
        bpf_usdt_readarg(1, ctx, &generation);
        bpf_trace_printk("%d\n", generation);
        return 0;
    }
    """
    code = "import gc; gc.disable(); input(); print(len([gc.collect(n) for n in (0, 1, 2, 1)])); input()"
    with subprocess.Popen([python, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdin
        assert run.stdout
        with bpfnb.trace(source, attach={f"usdt:{python}:python:gc__start": "f"}) as session:
            run.stdin.write("\n")
            run.stdin.flush()
            assert run.stdout.readline() == "4\n"
        rows = session.df
        assert rows[rows.pid == run.pid].msg.tolist() == ["0", "1", "2", "1"]
        run.communicate("\n")


# --- functions ----------------------------------------------------------------------------------------------------

# "call N" calls each of these N times with what only we pass. The pointers keep the compiler from doing it by itself.
CALLER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
size_t (*volatile length)(const char *) = strlen;
void *(*volatile copy)(void *, const void *, size_t) = memcpy;
int (*volatile compare)(const char *, const char *) = strcmp;
void *(*volatile allocate)(size_t) = malloc;
__attribute__((noinline)) int own(int x) { __asm__ volatile(""); return x + 1; }
int main(void) {
    char line[64], to[32];
    setbuf(stdout, NULL);
    *(volatile char *)to = *(volatile const char *)"bpfnb-says";  // as above
    while (fgets(line, sizeof line, stdin)) {
        int n = atoi(line + 5), done = 0;
        while (done < n) {
            length("bpfnb-says"); copy(to, "bpfnb-says", 11); compare("bpfnb-says", to); free(allocate(424242));
            own(done++);
        }
        printf("%d\n", done);
    }
}
"""
# Counts the calls one of whose pointers leads to our text.
COUNTS = r"""
BPF_ARRAY(calls, u64, 1);
int f(struct pt_regs *ctx) {
    char text[8] = {};
    bpf_probe_read_user(text, sizeof(text), (void *)PT_REGS_PARM%d(ctx));
    u64 *count = calls.lookup(&(int){0});
    if (count && text[0] == 'b' && text[4] == 'b' && text[5] == '-' && text[6] == 's') __sync_fetch_and_add(count, 1);
    return 0;
}
"""


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caller")
    (folder / "caller.c").write_text(CALLER)
    subprocess.run(["gcc", "-O1", "-o", folder / "caller", folder / "caller.c"], check=True)
    return folder / "caller"


def libc() -> str:
    """The C library as the program's loader finds it."""
    lines = subprocess.run(["ldd", "/bin/true"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"libc\.so\.6 => (\S+)", lines)
    assert found
    return found[1]


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        portable("strlen", 1),
        ("memcpy", 2),
        ("strcmp", 1),  # under QEMU's processor one is used whose first instruction 6.1 lets nobody trace
    ],
)
def test_the_implementation_of_an_ifunc_is_what_is_traced(caller: Path, function: str, argument: int) -> None:
    """libc's symbol is of a function that only chooses an implementation, when a program starts."""
    with Running(caller) as run, bpfnb.trace(COUNTS % argument, attach={f"uprobe:c:{function}": "f"}) as session:
        assert run.ask("call 200") == "200"
        with Running(caller) as later:
            later.ask("call 100")
    assert session.maps["calls"][0] == 300
    (info,) = session.probes
    assert info.attached == f"uprobe:{libc()}:{function}"
    assert function in info.note
    assert "IFUNC" in info.note


def test_a_return_from_an_ifunc(caller: Path) -> None:
    source = 'int f(struct pt_regs *ctx) { if (PT_REGS_RC(ctx) == 10) bpf_trace_printk("ten\\n"); return 0; }'
    with Running(caller) as run, bpfnb.trace(source, attach={"uretprobe:libc:strlen": "f"}) as session:
        run.ask("call 20")
    assert (session.df.pid == run.pid).sum() == 20


def test_an_ifunc_of_a_file_that_the_tracer_does_not_use_is_refused(tmp_path: Path) -> None:
    """Which one a program chooses cannot be known from the file: then the ones it may choose are named."""
    source = r"""
    static int one(void) { return 1; }
    int __twice_fast(int x) { return 2 * x; }
    static int (*resolve(void))(int) { (void)one; return __twice_fast; }
    int twice(int) __attribute__((ifunc("resolve")));
    int main(int argc, char **argv) { return twice(argc); }
    """
    (tmp_path / "p.c").write_text(source)
    path = tmp_path / "p"
    subprocess.run(["gcc", "-O1", "-o", path, tmp_path / "p.c"], check=True)
    with pytest.raises(bpfnb.AttachError, match="only chosen at run time") as caught:
        bpfnb.trace(HIT, attach={f"uprobe:{path}:twice": "hit"})
    tried = re.search(r"uprobe:\S+", caught.value.hint or "")
    assert tried
    with bpfnb.trace(HIT, attach={tried[0]: "hit"}) as session:
        run = subprocess.Popen([path])
        run.wait()
    assert (session.df.pid == run.pid).sum() == 1


@pytest.mark.portable
def test_an_address_is_as_nm_prints_it(caller: Path) -> None:
    symbols = subprocess.run(["nm", caller], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\w+) T own$", symbols, re.M)
    assert found
    with Running(caller) as run:
        probes = {f"uprobe:{caller}:0x{found[1]}": "hit", f"uprobe:{caller}:own": "hit"}
        with bpfnb.trace(HIT, attach=probes) as session:
            run.ask("call 7")
    assert len(session.df) == 14
    with pytest.raises(bpfnb.AttachError, match="no instruction that can be traced") as caught:
        bpfnb.trace(HIT, attach={f"uprobe:{caller}:0x{0x7FFF0000:x}": "hit"})
    assert "nm" in (caught.value.hint or "")


def test_functions_of_one_name_are_all_traced(tmp_path: Path) -> None:
    for number in (1, 2):
        text = f'static __attribute__((noinline)) int step(int x) {{ __asm__ volatile(""); return x + {number}; }}\n'
        (tmp_path / f"{number}.c").write_text(text + f"int from{number}(int x) {{ return step(x); }}\n")
    (tmp_path / "main.c").write_text(
        "int from1(int), from2(int); int main(void) { return from1(from2(from2(0))) - 5; }"
    )
    subprocess.run(["gcc", "-O1", "-o", tmp_path / "p", *tmp_path.glob("*.c")], check=True)
    with bpfnb.trace(HIT, attach={f"uprobe:{tmp_path}/p:step": "hit"}) as session:
        subprocess.run([tmp_path / "p"], check=True)
    assert len(session.df) == 3
    assert session.probes[0].note == "at 2 functions of this name"


def test_a_library_by_its_short_name(caller: Path) -> None:
    source = """
    int f(struct pt_regs *ctx) { if (PT_REGS_PARM1(ctx) == 424242) bpf_trace_printk("it\\n"); return 0; }
    """
    for name in ("c", "libc", "libc.so.6"):
        with Running(caller) as run, bpfnb.trace(source, attach={f"uprobe:{name}:malloc": "f"}) as session:
            run.ask("call 5")
        assert len(session.df) == 5
        assert session.probes[0].attached == f"uprobe:{libc()}:malloc"


def test_names_without_a_slash_and_files_of_this_folder(caller: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(caller.parent)
    with pytest.raises(bpfnb.AttachError, match="no library or program caller") as caught:
        bpfnb.trace(HIT, attach={"uprobe:caller:own": "hit"})
    assert caught.value.hint == "a file of the notebook's folder is uprobe:./caller:own"
    with Running(caller) as run, bpfnb.trace(HIT, attach={"uprobe:./caller:own": "hit"}) as session:
        run.ask("call 3")
    assert len(session.df) == 3
    with bpfnb.trace(HIT, attach={"uprobe:bash:readline": "hit"}) as session:
        pass
    assert Path(session.probes[0].attached.split(":")[1]).samefile("/bin/bash")


# --- containers ---------------------------------------------------------------------------------------------------


@pytest.fixture
def contained(programs: dict[str, Path], caller: Path, tmp_path: Path) -> Iterator[dict[str, Running]]:
    """Both programs, each in a mount namespace of its own and as another user: the files exist nowhere else."""
    running = {}
    for name, path in {"usdt": programs["semaphores"], "caller": caller}.items():
        inside = tmp_path / name
        inside.mkdir()
        script = tmp_path / f"{name}.sh"
        script.write_text(
            f"#!/bin/sh\nmount -t tmpfs none {inside}\ncp {path} {inside}/x\nchmod 755 {inside} {inside}/x\n"
            f"mkdir -p {inside}/bin\ncp {path} {inside}/bin/x\nexec setpriv --reuid 65534 --clear-groups {inside}/x\n"
        )
        script.chmod(0o755)
        starter = tmp_path / f"start-{name}"
        starter.write_text(f"#!/bin/sh\nexec unshare -m {script}\n")
        starter.chmod(0o755)
        running[name] = Running(starter)
        running[name].ask("call 0" if name == "caller" else "sem")  # it has started
        assert not (inside / "x").exists()
    yield running
    for run in running.values():
        run.__exit__()


def test_programs_in_containers(contained: dict[str, Running], tmp_path: Path) -> None:
    for path in ("/proc/{}/root{}/caller/x", "/proc/{}/exe"):
        run = contained["caller"]
        with bpfnb.trace(HIT, attach={f"uprobe:{path.format(run.pid, tmp_path)}:own": "hit"}) as session:
            run.ask("call 11")
        assert len(session.df) == 11
        run = contained["usdt"]
        with bpfnb.trace(
            HIT, attach={f"usdt:{path.format(run.pid, tmp_path).replace('caller', 'usdt')}:work-done": "hit"}
        ) as session:
            assert run.ask("sem") == "2"
            run.ask("work 1")
        assert len(session.df) == 2
    missing = f"/proc/{run.pid}/root{tmp_path}/usdt/y"
    with pytest.raises(bpfnb.AttachError, match=f"there is no file {missing}"):
        bpfnb.trace(HIT, attach={f"uprobe:{missing}:own": "hit"})
