"""Arrays of programs, cgroups and counters, filled from the notebook."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import bpfnb
from bpfnb.errors import ProgramError, UnsupportedError, VerifierError

ME = os.getpid()
TAILS = f"""
BPF_PROG_ARRAY(progs, 4);
BPF_ARRAY(runs, u64, 4);
static inline void ran(int which) {{ u64 *n = runs.lookup(&which); if (n) __sync_fetch_and_add(n, 1); }}
int first(struct pt_regs *ctx) {{
    if (bpf_get_current_pid_tgid() >> 32 != {ME}) return 0;
    ran(0);
    progs.call(ctx, 3);
    ran(1);  // only where nothing was called
    return 0;
}}
int second(struct pt_regs *ctx) {{
    ran(2);
    int asked = PT_REGS_PARM1(ctx) == 77 ? 3 : 0;
    if (asked) ran(asked);
    return 0;
}}
int broken(struct pt_regs *ctx) {{
    int key = 9;
    u64 *n = runs.lookup(&key);
    *n += 1;
    return 0;
}}
"""


def call() -> None:
    """getpgid(77), whatever comes of it."""
    with suppress(ProcessLookupError):
        os.getpgid(77)


@pytest.mark.portable
def test_a_tail_call_reaches_the_function_the_notebook_put_there() -> None:
    with bpfnb.trace(TAILS, name="tails", attach={"syscall:getpgid": "first"}) as session:
        progs, runs = session.maps["progs"], session.maps["runs"]
        call()
        assert runs.drain().value.tolist() == [1, 1, 0, 0]
        assert 3 not in progs
        with pytest.raises(KeyError):
            progs[3]
        progs[3] = "second"
        assert (progs[3], 3 in progs, progs.get(2)) == ("second", True, None)
        call()
        assert runs.drain().value.tolist() == [1, 0, 1, 1]  # it sees the call's argument, as the first does
        del progs[3]
        call()
        assert runs.drain().value.tolist() == [1, 1, 0, 0]
        with pytest.raises(KeyError):
            del progs[3]


def test_an_index_of_another_size_never_reaches_the_kernel() -> None:
    with bpfnb.trace(TAILS, name="tails", attach={"syscall:getpgid": "first"}) as session:
        ask = session.maps["progs"]._access
        for act in (
            lambda: ask.look_up(b"\0"),
            lambda: ask.write(b"", b"second"),
            lambda: ask.write(b"12345678", None),
        ):
            with pytest.raises(ProgramError, match="an index has 4 bytes"):
                act()


def test_what_cannot_be_called_says_why() -> None:
    with bpfnb.trace(TAILS, name="tails", attach={"syscall:getpgid": "first"}) as session:
        assert not [w for w in session.warnings if w.severity == "warning"]
        progs = session.maps["progs"]
        with pytest.raises(ProgramError, match="no function 'secnd' to call; did you mean second"):
            progs[3] = "secnd"
        with pytest.raises(VerifierError, match="line 21: the verifier refused broken"):
            progs[3] = "broken"
        with pytest.raises(ProgramError, match="takes the name of a function, not 3"):
            progs[3] = 3
        with pytest.raises(ProgramError, match="cannot be changed: it has room for 4 entries"):
            progs[4] = "second"
        with pytest.raises(UnsupportedError, match="cannot be read: it holds programs"):
            len(progs)
    with pytest.raises(ProgramError, match="is stopped: its map progs cannot be changed"):
        progs[3] = "second"


def test_a_program_of_another_type_is_not_called() -> None:
    cell = TAILS + "RAW_TRACEPOINT_PROBE(sched_process_exec) { return 0; }"
    with bpfnb.trace(cell, name="tails", attach={"syscall:getpgid": "first"}) as session:
        progs, runs = session.maps["progs"], session.maps["runs"]
        with pytest.raises(ProgramError, match="raw_tracepoint__sched_process_exec is a program of another type"):
            progs[3] = "raw_tracepoint__sched_process_exec"
        progs[3] = "second"  # loaded as both types: the one that the array takes
        call()
        assert runs.df.value.tolist() == [1, 0, 1, 1]


COUNTED = f"""
BPF_PERF_ARRAY(clock, 64);
struct reading {{ s64 plain; s64 failed; u64 counter, enabled; }};
BPF_PERF_OUTPUT(readings);
int f(void *ctx) {{
    if (bpf_get_current_pid_tgid() >> 32 != {ME}) return 0;
    struct reading reading = {{}};
    struct bpf_perf_event_value value = {{}};
    reading.plain = clock.perf_read(CUR_CPU_IDENTIFIER);
    reading.failed = clock.perf_counter_value(CUR_CPU_IDENTIFIER, &value, sizeof(value));
    reading.counter = value.counter;
    reading.enabled = value.enabled;
    readings.perf_submit(ctx, &reading, sizeof(reading));
    return 0;
}}
"""


@pytest.mark.portable
def test_a_counter_is_read_by_programs_once_it_is_open() -> None:
    with bpfnb.trace(COUNTED, name="counted", attach={"syscall:getpgid": "f"}) as session:
        (warning,) = [w for w in session.warnings if w.severity == "warning"]
        assert warning.line == 9
        assert warning.message.startswith(
            "clock has no counter yet: perf_read fails with -2 (ENOENT) until one is opened"
        )
        (hint,) = re.findall(r"session\.maps\['clock'\]\.open\('.*?'\)", warning.message)
        os.getpgid(0)
        clock = session.maps["clock"]
        eval(hint, {"session": session})
        for _ in range(3):
            os.getpgid(0)
        clock.open("software:page-faults")  # takes its place
        os.getpgid(0)
    df = session.df
    assert (df.plain[0], df.failed[0]) == (-2, -2)
    assert (df.failed[1:] == 0).all()
    nanoseconds = df.plain[1:4].tolist()
    assert 0 < nanoseconds[0] < nanoseconds[1] < nanoseconds[2] < 10**9
    assert (df.counter[1:4] >= df.plain[1:4]).all()
    assert df.plain[4] < nanoseconds[0]  # faults, which are fewer


def test_a_counter_that_is_none_says_why() -> None:
    with bpfnb.trace(
        COUNTED.replace("clock, 64", "clock, 1"), name="counted", attach={"syscall:getpgid": "f"}
    ) as session:
        clock = session.maps["clock"]
        with pytest.raises(ProgramError, match="unknown software event 'cpu-clok'"):
            clock.open("software:cpu-clok")
        with pytest.raises(ProgramError, match="a counter is software:EVENT or hardware:EVENT"):
            clock.open("syscall:clone")
        if (os.cpu_count() or 1) > 1:
            with pytest.raises(ProgramError, match="room for 1 entries, and this machine's CPUs go up to"):
                clock.open("software:cpu-clock")
        with pytest.raises(UnsupportedError, match=r"clock \(perf_event_array\) cannot be set: it holds perf events"):
            clock[0] = 1


def test_a_counter_of_the_hardware_is_read_or_refused() -> None:
    with bpfnb.trace(COUNTED, name="counted", attach={"syscall:getpgid": "f"}) as session:
        refusal = ""
        try:
            session.maps["clock"].open("hardware:cycles")
        except UnsupportedError as error:
            refusal = str(error)
        os.getpgid(0)
    if refusal:
        assert refusal.startswith("this machine has no counter hardware:cpu-cycles")
    assert session.df.plain.tolist() == [-2] if refusal else session.df.plain[0] > 0


@pytest.fixture
def cgroup() -> Iterator[Path]:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    places = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"]
    if not places:
        pytest.skip("no cgroup2 is mounted")
    path = places[0] / f"bpfnb-test-{ME}"
    path.mkdir()
    yield path
    path.rmdir()


WITHIN = """
BPF_CGROUP_ARRAY(groups, 2);
BPF_HASH(calls, u32, u64);
int f(void *ctx) {
    if (groups.check_current_task(0) <= 0) return 0;
    u32 pid = bpf_get_current_pid_tgid() >> 32;
    u64 zero = 0, *n = calls.lookup_or_try_init(&pid, &zero);
    if (n) __sync_fetch_and_add(n, 1);
    return 0;
}
"""


def test_a_cgroup_is_put_in_by_its_path(cgroup: Path) -> None:
    with bpfnb.trace(WITHIN, name="within", attach={"syscall:getpgid": "f"}) as session:
        groups, calls = session.maps["groups"], session.maps["calls"]
        groups[0] = str(cgroup)
        os.getpgid(0)
        inside = f"import os; open('{cgroup}/cgroup.procs', 'w').write('0'); os.getpgid(0); print(os.getpid())"
        child = subprocess.run([sys.executable, "-c", inside], capture_output=True, text=True, check=True)
        assert calls.items() == [(int(child.stdout), 1)]
        del groups[0]
        with pytest.raises(KeyError):
            del groups[0]
        with pytest.raises(ProgramError, match="/tmp is no cgroup of the unified hierarchy") as failure:
            groups[0] = "/tmp"
        with pytest.raises(ProgramError, match="/no/such cannot be opened: No such file or directory") as failure:
            groups[0] = "/no/such"
        assert failure.value.hint == f"they are below {cgroup.parent}"
        with pytest.raises(ProgramError, match="a directory, from the root, not 'x'"):
            groups[0] = "x"
        with pytest.raises(UnsupportedError, match="cannot be read: it holds cgroups"):
            groups[0]


@pytest.mark.parametrize(
    ("declaration", "what"),
    [
        ("BPF_CPUMAP(m, 4)", "m (cpumap) cannot be {}: it holds CPUs, to send packets to"),
        ("BPF_DEVMAP(m, 4)", "m (devmap) cannot be {}: it holds network devices"),
        ("BPF_XSKMAP(m, 4)", "m (xskmap) cannot be {}: it holds sockets"),
        ("BPF_SOCKHASH(m, u32, 4)", "m (sockhash) cannot be {}: it holds sockets"),
        ("BPF_SOCKMAP(m, 4)", "m (sockmap) cannot be {}: it holds sockets"),
    ],
)
def test_maps_of_network_objects_are_refused_in_words(declaration: str, what: str) -> None:
    cell = f"{declaration};\nint f(void *ctx) {{ return 0; }}"
    try:
        session = bpfnb.trace(cell, name="words", attach={"syscall:getpgid": "f"})
    except ProgramError as error:
        macro = declaration.partition("(")[0]
        why = f"{macro} is for programs on network devices and sockets, which bpfnb does not attach"
        assert str(error) == f"line 1: the kernel will not make m: {why}"  # noqa: PT017 (where it can be made, it is)
        return
    with session:
        m = session.maps["m"]
        for act, verb in (
            (lambda: m.__setitem__(0, 1), "set"),
            (lambda: m.__delitem__(0), "changed"),
            (lambda: len(m), "read"),
        ):
            with pytest.raises(UnsupportedError) as failure:
                act()
            assert str(failure.value) == what.format(verb)
