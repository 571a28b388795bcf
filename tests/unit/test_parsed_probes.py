"""Probes as text: what each kind's target may be, what is refused, and what the table of kinds promises."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfnb.errors import ProgramError
from bpfnb.language.probes import KINDS, Probe, named_by_function, parse_probe, split_attach, split_symbol


@pytest.mark.parametrize(
    ("text", "kind", "target"),
    [
        ("syscall:clone", "syscall", "clone"),
        ("sysret:pread64", "sysret", "pread64"),
        ("syscall:__x64_sys_clone", "syscall", "clone"),
        ("syscall:stat", "syscall", "newstat"),
        ("sysret:fstat", "sysret", "newfstat"),
        ("kprobe:__x64_sys_uname", "syscall", "newuname"),
        ("syscall:sigaction", "syscall", "rt_sigaction"),
        ("kprobe:vfs_read", "kprobe", "vfs_read"),
        ("k:vfs_read", "kprobe", "vfs_read"),
        ("kprobe:vfs_read+0x10", "kprobe", "vfs_read+0x10"),
        ("kprobe:vfs_read+16", "kprobe", "vfs_read+16"),
        ("kprobe:finish_task_switch.isra.0", "kprobe", "finish_task_switch.isra.0"),
        ("kr:vfs_read", "kretprobe", "vfs_read"),
        ("kretprobe:vfs_read", "kretprobe", "vfs_read"),
        ("fentry:vfs_read", "fentry", "vfs_read"),
        ("kfunc:vfs_read", "fentry", "vfs_read"),
        ("kfunc:vmlinux:vfs_read", "fentry", "vfs_read"),
        ("f:vfs_read", "fentry", "vfs_read"),
        ("fexit:vfs_read", "fexit", "vfs_read"),
        ("kretfunc:vfs_read", "fexit", "vfs_read"),
        ("fr:vfs_read", "fexit", "vfs_read"),
        ("tracepoint:sched:sched_process_fork", "tracepoint", "sched:sched_process_fork"),
        ("t:syscalls:sys_enter_clone", "tracepoint", "syscalls:sys_enter_clone"),
        ("rawtracepoint:sched_switch", "rawtracepoint", "sched_switch"),
        ("rt:sched_switch", "rawtracepoint", "sched_switch"),
        ("uprobe:/bin/bash:readline", "uprobe", "/bin/bash:readline"),
        ("u:/bin/bash:readline+4", "uprobe", "/bin/bash:readline+4"),
        ("uprobe:/bin/bash:0x1234", "uprobe", "/bin/bash:0x1234"),
        ("uprobe:./shop:app::Order::total(int, int)", "uprobe", "./shop:app::Order::total(int, int)"),
        (
            "uretprobe:shop:app::Order::operator+(app::Order const&)",
            "uretprobe",
            "shop:app::Order::operator+(app::Order const&)",
        ),
        ("uprobe:/opt/a=b:c/x:main", "uprobe", "/opt/a=b:c/x:main"),
        ("ur:c:malloc", "uretprobe", "c:malloc"),
        ("usdt:/usr/bin/python3:python:function__entry", "usdt", "/usr/bin/python3:python:function__entry"),
        ("U:/x:p:n", "usdt", "/x:p:n"),
        ("usdt:/bin/x:query-start", "usdt", "/bin/x:query-start"),
        ("uprobe:c:malloc", "uprobe", "c:malloc"),
        ("uprobe:/bin/x:0x1234", "uprobe", "/bin/x:0x1234"),
        ("profile:99", "profile", "99"),
        ("p:99", "profile", "99"),
        ("profile:hz:99", "profile", "99"),
        ("profile:ms:10", "profile", "ms:10"),
        ("profile:s:1", "profile", "s:1"),
        ("profile:us:500", "profile", "us:500"),
        ("software:page-faults:1", "software", "page-faults:1"),
        ("s:faults:100", "software", "page-faults:100"),
        ("s:cs", "software", "context-switches"),
        ("hardware:cache-misses:1000000", "hardware", "cache-misses:1000000"),
        ("h:cycles:5", "hardware", "cpu-cycles:5"),
        ("h:branches", "hardware", "branch-instructions"),
        ("h:backend-stalls:07", "hardware", "stalled-cycles-backend:7"),
        ("lsm:file_open", "lsm", "file_open"),
        ("  syscall:clone ", "syscall", "clone"),
    ],
)
def test_probes(text: str, kind: str, target: str) -> None:
    assert parse_probe(text) == (kind, target)


@pytest.mark.parametrize("entry", ["sys_", "SyS_", "__x64_sys_", "__arm64_sys_", "__s390x_sys_", "__riscv_sys_"])
def test_a_kprobe_on_a_syscalls_entry_is_the_portable_probe(entry: str) -> None:
    assert parse_probe(f"kprobe:{entry}clone") == ("syscall", "clone")
    assert parse_probe(f"kretprobe:{entry}clone") == ("sysret", "clone")
    assert parse_probe(f"kprobe__{entry}clone") == ("syscall", "clone")
    assert parse_probe(f"kretprobe__{entry}clone") == ("sysret", "clone")


@pytest.mark.parametrize(
    ("text", "kind", "target"),
    [
        ("kprobe:__x64_sys_clone+4", "kprobe", "__x64_sys_clone+4"),  # inside of the function: no entry
        ("kprobe:__ia32_compat_sys_open", "kprobe", "__ia32_compat_sys_open"),  # another function, for other programs
        ("kprobe:do_sys_openat2", "kprobe", "do_sys_openat2"),
        ("kprobe:ksys_read", "kprobe", "ksys_read"),
        ("kprobe:__do_sys_clone", "kprobe", "__do_sys_clone"),
        ("fentry:__x64_sys_clone", "fentry", "__x64_sys_clone"),
    ],
)
def test_what_only_looks_like_a_syscall_stays(text: str, kind: str, target: str) -> None:
    assert parse_probe(text) == (kind, target)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kprob:vfs_read", "did you mean kprobe"),
        ("sycall:clone", "did you mean syscall"),
        ("tracepiont:a:b", "did you mean tracepoint"),
        ("zzz:a", "the kinds are fentry, fexit, "),
        ("clone", "not a probe"),
        ("", "not a probe"),
        ("software:page-fault:1", "did you mean page-faults"),
        ("hardware:cache-missses", "did you mean cache-misses"),
        ("hardware:qqq", "the events are backend-stalls, "),
        ("software:page-faults:0", "'0' is not a positive number"),
        ("software:page-faults:", "'' is not a positive number"),
        ("hardware:cycles:-1", "'-1' is not a positive number"),
        ("profile:0", "'0' is not a positive number"),
        ("profile:ninety", "'ninety' is not a positive number"),
        ("profile:ms:1.5", "'1.5' is not a positive number"),
        ("profile:min:1", "unknown unit 'min'"),
        ("kretprobe:vfs_read+4", "takes no offset"),
        ("fentry:vfs_read+4", "takes no offset"),
        ("uretprobe:/bin/bash:readline+4", "takes no offset"),
    ],
)
def test_refused_probes(text: str, says: str) -> None:
    with pytest.raises(ProgramError) as caught:
        parse_probe(text)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("syscall:", "syscall:Clone", "syscall:a b", "syscall:a:b", "kprobe:", "kprobe:1x", "kprobe:a b", "kprobe:a+"),
        *("kprobe:a+b", "kprobe:nf_tables:f", "kprobe:a\nb", "tracepoint:sched", "tracepoint:a:b:c", "tracepoint::b"),
        *("rawtracepoint:a:b", "uprobe:/bin/bash", "uprobe::f", "uprobe:/bin/bash:", "uprobe:/bin/bash:f+g"),
        *("usdt:p", "usdt::p", "usdt::p:n", "usdt:/bin/x:p:1", "lsm:a:b", "lsm:a b", "syscall: clone"),
    ],
)
def test_malformed_probes_show_the_shape(text: str) -> None:
    with pytest.raises(ProgramError) as caught:
        parse_probe(text)
    assert "malformed probe" in str(caught.value)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(f"write {text.partition(':')[0]}:")


def test_events_are_in_the_order_of_the_kernels_enums() -> None:
    """The tracer takes the position for the number (PERF_COUNT_SW_*, PERF_COUNT_HW_* of linux/perf_event.h)."""
    software, hardware = list(KINDS["software"].events), list(KINDS["hardware"].events)
    assert (software.index("page-faults"), software.index("bpf-output")) == (2, 10)
    assert (software.index("minor-faults"), software.index("major-faults")) == (5, 6)
    assert (hardware.index("cache-misses"), hardware.index("ref-cycles")) == (3, 9)


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("syscall:clone=hello", ("syscall:clone", "hello")),
        ("uprobe:/opt/a=b/x:main=hello", ("uprobe:/opt/a=b/x:main", "hello")),
        (" syscall:clone = hello ", ("syscall:clone", "hello")),
    ],
)
def test_split_attach(text: str, split: tuple[str, str]) -> None:
    assert split_attach(text) == split


@pytest.mark.parametrize(
    "text", ["syscall:clone", "=hello", "syscall:clone=", "syscall:clone=1x", "syscall:clone=a b", ""]
)
def test_split_attach_refuses(text: str) -> None:
    with pytest.raises(ProgramError, match="not an attachment"):
        split_attach(text)


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_a_probe_or_a_program_error(text: str) -> None:
    try:
        kind, target = parse_probe(text)
    except ProgramError as error:
        assert "\n" not in str(error)  # noqa: PT017 (the other way out is fine too)
    else:
        assert kind
        assert target
        assert parse_probe(f"{kind}:{target}") == (kind, target)  # what is normal stays as it is


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("/bin/bash:readline", ("/bin/bash", "readline", "")),
        ("/bin/bash:readline+0x10", ("/bin/bash", "readline", "+0x10")),
        ("/proc/1/root/a:b/c:f", ("/proc/1/root/a:b/c", "f", "")),
        ("./shop:app::Order::total(int, int)", ("./shop", "app::Order::total(int, int)", "")),
        ("./shop:app::Order::total(int)+4", ("./shop", "app::Order::total(int)", "+4")),
        ("./shop:::global", ("./shop", "::global", "")),
        ("c:f", ("c", "f", "")),
        ("app::total", ("", "app::total", "")),
    ],
)
def test_the_parts_of_a_uprobes_target(target: str, parts: tuple[str, str, str]) -> None:
    assert split_symbol(target) == parts


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_the_examples_of_a_kind_are_of_that_kind(name: str) -> None:
    for example in KINDS[name].examples:
        assert parse_probe(example) == (name, example.partition(":")[2])
    assert KINDS[name].shape.startswith(f"{name}:")


def test_no_name_has_two_meanings() -> None:
    names = Counter([*KINDS, *(alias for kind in KINDS.values() for alias in kind.aliases)])
    contexts = Counter(word for kind in KINDS.values() for word in kind.contexts)
    assert max(names.values()) == max(contexts.values()) == 1
    prefixes = [kind.function_prefix for kind in KINDS.values() if kind.function_prefix]
    assert not [(a, b) for i, a in enumerate(prefixes) for j, b in enumerate(prefixes) if i != j and a.startswith(b)]


def test_what_follows_a_prefix_is_checked_like_a_probe() -> None:
    assert named_by_function("tracepoint__sched__sched_switch") == ("tracepoint", "sched:sched_switch")
    assert named_by_function("tracepoint__sched") is None
    assert named_by_function("hello") is None
    with pytest.raises(ProgramError, match="malformed probe"):
        parse_probe("tracepoint__sched__a b")


def test_what_the_tracer_takes_from_the_rows() -> None:
    """What policies, costs and the rewriter decide by: with a wrong row a program reads or runs where it must not."""
    named = {field: {name for name, kind in KINDS.items() if getattr(kind, field)} for field in ("in_file", "in_task")}
    assert named == {
        "in_file": {"uprobe", "uretprobe", "usdt"},
        "in_task": {"syscall", "sysret", "uprobe", "uretprobe", "usdt"},
    }
    assert {name for name, kind in KINDS.items() if kind.reads_kernel} == {"fentry", "fexit", "lsm"}


@pytest.mark.parametrize(
    ("text", "kind", "target"),
    [
        ("syscall:*", "syscall", "*"),
        ("sysret:mem*", "sysret", "mem*"),
        ("kprobe:tcp_[a-z]*", "kprobe", "tcp_[a-z]*"),
        ("kprobe:vmlinux:tcp_*", "kprobe", "tcp_*"),
        ("kretprobe:__x64_sys_*", "sysret", "*"),
        ("f:tcp_????", "fentry", "tcp_????"),
        ("t:sched:*", "tracepoint", "sched:*"),
        ("tracepoint:*:sched_*", "tracepoint", "*:sched_*"),
        ("rt:sched_*", "rawtracepoint", "sched_*"),
        ("uprobe:c:mem*", "uprobe", "c:mem*"),
        ("uretprobe:/a:b:f?", "uretprobe", "/a:b:f?"),
        ("usdt:/usr/bin/python3:*", "usdt", "/usr/bin/python3:*"),
        ("usdt:/x:py*:gc__start", "usdt", "/x:py*:gc__start"),
    ],
)
def test_patterns(text: str, kind: str, target: str) -> None:
    assert parse_probe(text) == (kind, target)
    assert Probe(kind, target, "f", text, 0).is_pattern


@pytest.mark.parametrize(
    "text",
    [
        *("uprobe:./s:app::f(char *)", "uprobe:./s:operator[]", "uprobe:/a*b/c:f", "usdt:/a[1]:p:n", "syscall:clone"),
        *("kprobe:vfs_read+4", "profile:99", "software:page-faults:1", "lsm:file_open"),
    ],
)
def test_what_is_no_pattern(text: str) -> None:
    assert not Probe(*parse_probe(text), "f", text, 0).is_pattern


@pytest.mark.parametrize("text", ["kprobe:tcp_*+4", "lsm:*", "tracepoint:*", "syscall:A*", "syscall:a *", "usdt:*"])
def test_where_no_pattern_may_be(text: str) -> None:
    with pytest.raises(ProgramError, match="malformed probe"):
        parse_probe(text)
