"""Columns decoded, against what others say: Python's errno, signal, stat, os, socket, ipaddress; strace; the kernel."""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import os
import random
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bpfnb.views.events  # noqa: F401  (registers df.bpf)
from bpfnb.language import syscalls
from bpfnb.results.decode import KINDS, kind_of, values
from bpfnb.results.decode.constants import names

SCHED_SWITCH = Path("/sys/kernel/tracing/events/sched/sched_switch/format")


def decoded(rows: Any, kind: str, dtype: Any = None, machine: str | None = None) -> list[Any]:
    column = values(pd.Series(rows, dtype=dtype), kind, machine)
    return [None if pd.isna(value) else value for value in column]


def as_bytes(*rows: bytes | None) -> pd.Series[Any]:
    return pd.Series(list(rows), dtype=pd.ArrowDtype(pa.large_binary()))


def memory(data: bytes) -> int:
    """The integer that a C program reads where these bytes lie."""
    return int.from_bytes(data, sys.byteorder)


# --- names --------------------------------------------------------------------------------------------------------


def test_what_a_call_returned_is_an_error_where_it_is_negative() -> None:
    numbers = sorted(errno.errorcode)
    got = decoded([-number for number in numbers], "errno")
    assert [errno.errorcode[getattr(errno, name)] for name in got] == [errno.errorcode[number] for number in numbers]
    assert decoded([0, 3, 1 << 40, -4096, -(1 << 62)], "errno") == [None] * 5
    assert decoded([-512, -524, -4000], "errno") == ["ERESTARTSYS", "ENOTSUPP", "-4000"]


@pytest.mark.parametrize("dtype", ["uint32", "uint64", "int32", "int64"])
def test_an_error_in_an_unsigned_member_is_that_error(dtype: str) -> None:
    returned = np.array([-2, -13, 5], np.int64).astype(dtype)
    assert decoded(returned, "errno") == ["ENOENT", "EACCES", None]


def test_an_error_number_is_one_of_either_sign() -> None:
    assert decoded([2, -2, 0, 4000], "error") == ["ENOENT", "ENOENT", None, "4000"]


def test_signals_have_their_names() -> None:
    plain = {int(number): number.name for number in signal.Signals if number < signal.SIGRTMIN}
    assert decoded(list(plain), "signal") == list(plain.values())
    real_time = list(range(signal.SIGRTMIN, signal.SIGRTMAX + 1))
    assert decoded(real_time[:2], "signal") == ["SIGRTMIN", "SIGRTMIN+1"]
    listed = subprocess.run(["bash", "-c", "kill -l 40"], capture_output=True, text=True, check=True).stdout
    assert decoded([40], "signal") == ["SIG" + listed.strip()]
    assert decoded([0, 32, 99, -1], "signal") == ["0", "32", "99", "-1"]


def test_system_calls_have_their_names_by_machine() -> None:
    assert decoded([0, 257, 9999], "syscall", machine="x86_64") == ["read", "openat", "9999"]
    assert decoded([63, 56], "syscall", machine="aarch64") == ["read", "openat"]
    assert decoded([3], "syscall", machine="vax") == ["3"]


def test_address_families_have_their_names() -> None:
    families = {int(family): family.name for family in socket.AddressFamily if family >= 0}
    families = {number: name for number, name in families.items() if name in names("family", "").values()}
    assert len(families) > 20
    assert decoded(list(families), "family") == list(families.values())
    assert decoded([999], "family") == ["999"]


def test_socket_types_have_their_names() -> None:
    kinds = [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET]
    assert decoded([int(kind) for kind in kinds], "socktype") == [kind.name for kind in kinds]
    with_flags = int(socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    assert decoded([with_flags], "socktype") == ["SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC"]


def test_tcp_states_have_the_kernels_names() -> None:
    """The kernel's own, where its tracepoint lists them."""
    path = Path("/sys/kernel/tracing/events/sock/inet_sock_set_state/format")
    if not os.access(path, os.R_OK):
        pytest.skip("needs to read tracefs")
    known = re.findall(r"\{ (\d+), \"TCP_(\w+)\" \}", path.read_text().partition("newstate")[2])
    assert len(known) >= 12
    assert decoded([int(number) for number, _ in known], "tcp_state") == [name for _, name in known]


def test_capabilities_have_their_names() -> None:
    assert decoded([0, 21, 39, 40, 77], "capability") == [
        "CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_BPF", "CAP_CHECKPOINT_RESTORE", "77",
    ]  # fmt: skip


def test_block_requests_are_known_by_their_low_byte() -> None:
    assert decoded([0, 0x801, 0x40002, 9, 15], "block") == ["READ", "WRITE", "FLUSH", "WRITE_ZEROES", "15"]


@pytest.mark.parametrize(
    ("letters", "words"),
    [
        ("WS", "WRITE|SYNC"),
        ("R", "READ"),
        ("RA", "READ|RAHEAD"),
        ("RAM", "READ|RAHEAD|META"),
        ("FWFSM", "PREFLUSH|WRITE|FUA|SYNC|META"),
        ("FF", "PREFLUSH|FLUSH"),
        ("F", "FLUSH"),
        ("DE", "SECURE_ERASE"),
        ("DS", "DISCARD|SYNC"),
        ("WZ", "WRITE_ZEROES"),
        ("ZRA", "ZONE_RESET_ALL"),
        ("N", "OTHER"),
        ("?", "?"),
    ],
)
def test_letters_of_block_tracepoints(letters: str, words: str) -> None:
    assert decoded([letters], "rwbs") == [words]
    assert decoded([letters, None], "rwbs", dtype="category") == [words, None]


# --- flags --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("strace") or os.uname().machine != "x86_64", reason="needs strace, x86_64")
def test_flags_are_those_that_strace_shows(tmp_path: Path) -> None:
    """Calls that fail whatever their flags, made under strace."""
    rng = random.Random(1)
    open_bits, map_bits, prot_bits = (_bits(kind) for kind in ("open", "mmap", "prot"))
    opens = [_some(rng, open_bits) | rng.randrange(4) for _ in range(60)]
    maps = [
        (_some(rng, prot_bits), _some(rng, [bit for bit in map_bits if 0xF < bit < 1 << 26]) | rng.choice([1, 2, 3]))
        for _ in opens
    ]
    script = (
        "import ctypes, sys; call = ctypes.CDLL(None).syscall; long = ctypes.c_long\n"
        f"for flags in {opens}: call(long(257), long(-100), b'/nowhere/at/all', long(flags), long(0))\n"
        f"for prot, flags in {maps}: call(long(9), long(0), long(0), long(prot), long(flags), long(-1), long(0))\n"
    )
    log = tmp_path / "log"
    command = ["strace", "-o", str(log), "-e", "trace=openat,mmap", sys.executable, "-c", script]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"strace cannot trace here: {error.stderr.decode()[-200:]}")
    text = log.read_text()
    shown_opens = re.findall(r'/nowhere/at/all", ([^,)]+)', text)
    shown_maps = re.findall(r"mmap\(NULL, 0, ([^,]+), ([^,]+), -1, 0\)", text)
    assert list(map(_parts, decoded(opens, "open"))) == list(map(_parts, shown_opens))
    assert list(map(_parts, decoded([prot for prot, _ in maps], "prot"))) == [_parts(prot) for prot, _ in shown_maps]
    assert list(map(_parts, decoded([flags for _, flags in maps], "mmap"))) == [_parts(flag) for _, flag in shown_maps]


def _bits(kind: str) -> list[int]:
    return [value for value in names(kind, "x86_64") if value.bit_count() == 1]


def _some(rng: random.Random, bits: list[int]) -> int:
    return sum(rng.sample(bits, rng.randrange(min(4, len(bits)))))


def _parts(text: str) -> set[str]:
    newer = {"0x80": "MAP_ABOVE4G"}  # than Debian 12's strace
    return {newer.get(part, part) for part in text.split("|")} - {"MAP_FILE"}


def test_open_flags() -> None:
    assert decoded([0, os.O_RDWR | os.O_CREAT], "open") == ["O_RDONLY", "O_RDWR|O_CREAT"]
    assert decoded([os.O_SYNC, os.O_DSYNC], "open") == ["O_RDONLY|O_SYNC", "O_RDONLY|O_DSYNC"]
    assert decoded([os.O_TMPFILE | os.O_WRONLY], "open") == ["O_WRONLY|O_TMPFILE"]
    assert decoded([1 << 30, 1 << 30 | 1 << 29], "open") == ["O_RDONLY|0x40000000", "O_RDONLY|0x60000000"]


def test_open_flags_differ_between_machines() -> None:
    assert decoded([0x4000], "open", machine="aarch64") == ["O_RDONLY|O_DIRECTORY"]
    assert decoded([0x4000], "open", machine="x86_64") == ["O_RDONLY|O_DIRECT"]
    assert decoded([0x40], "mmap", machine="x86_64") == ["MAP_32BIT"]
    assert decoded([0x40], "mmap", machine="aarch64") == ["0x40"]


def test_sizes_of_huge_pages_are_a_number_among_the_flags() -> None:
    assert decoded([0x22 | 0x40000 | 21 << 26], "mmap") == ["MAP_PRIVATE|MAP_HUGE_2MB|MAP_ANONYMOUS|MAP_HUGETLB"]
    assert decoded([0, 0x22], "mmap") == ["0", "MAP_PRIVATE|MAP_ANONYMOUS"]
    assert decoded([0, 3], "prot") == ["PROT_NONE", "PROT_READ|PROT_WRITE"]


def test_clone_flags_have_a_signal_in_them() -> None:
    assert decoded([17, 0x1200011, 0, 0x80], "clone") == [
        "SIGCHLD", "CLONE_CHILD_CLEARTID|CLONE_CHILD_SETTID|SIGCHLD", "0", "CLONE_NEWTIME",
    ]  # fmt: skip
    assert decoded([0x80000000 - (1 << 32)], "clone", "int32") == ["CLONE_IO"]
    assert decoded([0x100000000], "clone") == ["CLONE_CLEAR_SIGHAND"]


# --- files and devices --------------------------------------------------------------------------------------------


@given(st.integers(0, 0xFFFF))
def test_modes_are_what_ls_shows(number: int) -> None:
    (text,) = decoded([number], "mode")
    assert text == (stat.filemode(number) if stat.S_IFMT(number) else stat.filemode(number)[1:])


def test_modes_of_this_machines_files(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    file.chmod(0o4755)
    paths = [file, tmp_path, Path("/dev/null"), Path("/tmp")]
    listed = [subprocess.run(["ls", "-ld", path], capture_output=True, text=True).stdout[:10] for path in paths]
    assert decoded([path.stat().st_mode for path in paths], "mode") == listed


def test_devices_of_stat_and_of_the_kernel() -> None:
    devices = [Path("/dev/null").stat().st_rdev, Path("/dev/tty").stat().st_rdev, os.makedev(259, 0x12345)]
    assert decoded(devices, "st_dev") == ["1:3", "5:0", f"259:{0x12345}"]
    assert decoded([8 << 20 | 1, 259 << 20 | 0xFFFFF], "dev") == ["8:1", f"259:{0xFFFFF}"]


# --- processes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise SystemExit(0)", "exited 0"),
        ("raise SystemExit(3)", "exited 3"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("import os; os.kill(os.getpid(), 15)", "killed by SIGTERM"),
    ],
)
def test_wait_statuses_of_processes_that_ended(code: str, expected: str) -> None:
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ)
    assert decoded([os.waitpid(pid, 0)[1]], "wait") == [expected]


def test_wait_statuses_of_processes_that_stopped_and_went_on() -> None:
    pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], os.environ)
    os.kill(pid, signal.SIGSTOP)
    stopped = os.waitpid(pid, os.WUNTRACED)[1]
    os.kill(pid, signal.SIGCONT)
    continued = os.waitpid(pid, os.WCONTINUED)[1]
    os.kill(pid, signal.SIGKILL)
    killed = os.waitpid(pid, 0)[1]
    assert decoded([stopped, continued, killed], "wait") == ["stopped by SIGSTOP", "continued", "killed by SIGKILL"]


@given(st.integers(0, 0xFFFF))
def test_wait_statuses_are_what_os_says(status: int) -> None:
    (text,) = decoded([status], "wait")
    assert text.startswith("exited") == os.WIFEXITED(status)
    assert text.startswith("stopped") == os.WIFSTOPPED(status)
    assert (text == "continued") == os.WIFCONTINUED(status)
    if os.WIFEXITED(status):
        assert text == f"exited {os.WEXITSTATUS(status)}"
    elif os.WIFSIGNALED(status):
        assert text.startswith("killed by")
        assert text.endswith(" (core)") == os.WCOREDUMP(status)


def test_states_of_sched_switch_are_what_its_format_says() -> None:
    if not os.access(SCHED_SWITCH, os.R_OK):
        pytest.skip("needs to read tracefs")
    text = next(line for line in SCHED_SWITCH.read_text().splitlines() if line.startswith("print fmt"))
    letters = re.findall(r"\{ (0x[0-9a-f]+), \"(\w)\" \}", text)
    assert decoded([int(bit, 16) for bit, _ in letters], "task_state") == [letter for _, letter in letters]
    assert decoded([0, 0x100, 0x102, 3], "task_state") == ["R", "R+", "D+", "S|D"]
    assert decoded([1 << 20, -1], "task_state") == [str(1 << 20), "-1"]


def test_states_of_tasks() -> None:
    states = [0, 1, 2, 0x102, 0x402, 4, 8, 0x40, 0x80, 0x2001, 0x1000, 0x200]
    assert decoded(states, "raw_state") == ["R", "S", "D", "D", "I", "T", "t", "P", "X", "S", "D", "R"]


def test_io_priorities() -> None:
    assert decoded([0, 2 << 13 | 4, 1 << 13, 3 << 13, 7 << 13 | 1], "ioprio") == [
        "none", "best-effort 4", "realtime 0", "idle", "7 1",
    ]  # fmt: skip


# --- addresses and numbers ----------------------------------------------------------------------------------------


@given(st.ip_addresses(v=4))
def test_ipv4_addresses_as_the_kernel_has_them(address: ipaddress.IPv4Address) -> None:
    packed = socket.inet_aton(str(address))
    assert decoded([memory(packed)], "ip", "uint32") == [str(address)]
    assert decoded([memory(packed)], "ip", "int64") == [str(address)]
    assert decoded(np.array([memory(packed)], np.uint32).view(np.int32), "ip") == [str(address)]
    assert decoded(as_bytes(packed), "ip") == [str(address)]


@given(st.ip_addresses(v=6))
def test_ipv6_addresses_as_bytes_and_as_wide_integers(address: ipaddress.IPv6Address) -> None:
    packed = socket.inet_pton(socket.AF_INET6, str(address))
    expected = [str(address.ipv4_mapped or address)]
    assert decoded(as_bytes(packed), "ip") == expected
    assert decoded([packed], "ip", object) == expected
    assert decoded([memory(packed)], "ip", object) == expected


def test_addresses_of_both_families_stand_in_one_column() -> None:
    mapped = socket.inet_pton(socket.AF_INET6, "::ffff:10.0.0.7")
    assert decoded(as_bytes(bytes([127, 0, 0, 1]), None, mapped, bytes(16)), "ip") == [
        "127.0.0.1", None, "10.0.0.7", "::",
    ]  # fmt: skip


def test_mac_addresses() -> None:
    assert decoded(as_bytes(bytes.fromhex("525400123456")), "mac") == ["52:54:00:12:34:56"]


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_big_endian_numbers(bits: int) -> None:
    numbers = [0, 1, 443, (1 << bits) - 1]
    there = [memory(number.to_bytes(bits // 8, "big")) for number in numbers]
    column = values(pd.Series(there, dtype=f"uint{bits}"), f"be{bits}")
    assert column.dtype == f"uint{bits}"
    assert column.tolist() == numbers
    if bits < 64:
        assert values(pd.Series(there, dtype="int64"), f"be{bits}").tolist() == numbers


def test_a_port_is_what_htons_makes() -> None:
    assert decoded([socket.htons(443)], "be16", "uint16") == [443]
    assert decoded([struct.unpack("=h", struct.pack("!H", 65000))[0]], "be16", "int16") == [65000]


def test_durations_are_timedeltas_and_may_be_negative() -> None:
    column = values(pd.Series([0, 1500, (1 << 64) - 5], dtype="uint64"), "duration")
    assert column.dtype == "timedelta64[ns]"
    assert column.tolist() == [pd.Timedelta(0), pd.Timedelta(1500, "ns"), pd.Timedelta(-5, "ns")]


# --- columns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"mac", "rwbs"}))
def test_rows_without_a_number_stay_without(kind: str) -> None:
    column = values(pd.Series([None, 2, None], dtype="Int64"), kind)
    assert column.isna().tolist() == [True, kind == "errno", True]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_columns_without_rows_and_odd_indexes_are_kept(kind: str) -> None:
    takes = KINDS[kind].takes
    integers = {"signed", "unsigned"} & set(takes)
    dtype: Any = "uint64" if integers else object
    assert len(values(pd.Series([], dtype=dtype, name="x"), kind)) == 0
    if integers:
        column = values(pd.Series([2, 1], dtype=dtype, index=["a", "a"], name="x"), kind)
        assert column.index.tolist() == ["a", "a"]
        assert column.name == "x"


def test_text_is_a_category_of_strings_in_the_order_of_the_numbers() -> None:
    column = values(pd.Series([9, 1, 9, 2]), "signal")
    assert column.cat.categories.tolist() == ["SIGHUP", "SIGINT", "SIGKILL"]
    assert pd.api.types.is_string_dtype(column.cat.categories.dtype)


def test_decoded_columns_stand_behind_theirs() -> None:
    frame = pd.DataFrame({"ret": [-2, 3], "flags": [0, 2], "x": [1, 2]}, index=[5, 7])
    frame.attrs["lost"] = 4
    got = frame.bpf.decode(ret="errno", flags="open")
    assert list(got) == ["ret", "ret_errno", "flags", "flags_open", "x"]
    assert got.ret.tolist() == [-2, 3]
    assert got.flags_open.tolist() == ["O_RDONLY", "O_RDWR"]
    assert got.index.tolist() == [5, 7]
    assert got.attrs == {"lost": 4}
    assert list(frame) == ["ret", "flags", "x"]


def test_columns_whose_name_is_no_identifier() -> None:
    frame = pd.DataFrame({"addr.v4": [memory(bytes([10, 0, 0, 1]))], "ret": [-1]})
    assert frame.bpf.decode({"addr.v4": "ip"}, ret="errno").iloc[0].tolist() == [
        memory(bytes([10, 0, 0, 1])), "10.0.0.1", -1, "EPERM",
    ]  # fmt: skip


FRAME = pd.DataFrame(
    {
        "ret": [-2, 3],
        "comm": pd.Categorical(["a", "b"]),
        "text": ["x", "y"],
        "cost": [1.0, 2.0],
        "port": [80, 70000],
        "low": [-1, 5],
        "byte": np.array([1, 2], np.uint8),
        "yes": [True, False],
        "mac": [b"123456", b"12345"],
        "when": pd.to_datetime([1, 2]),
        "ret_error": [1, 2],
    }
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"decode which column, and as what\? decode\(ret=\"errno\"\)"),
        ({"ret": "erno"}, "no kind 'erno'; did you mean errno"),
        ({"rett": "errno"}, "no column 'rett'; did you mean ret"),
        ({"ret": 3}, "no kind 3; there are errno"),
        ({"ret": "error"}, "the result would have two columns 'ret_error'"),
        ({"comm": "errno"}, "column 'comm' is a category of str.*: errno takes integers"),
        ({"text": "signal"}, "column 'text' is .*: signal takes integers"),
        ({"cost": "errno"}, "column 'cost' is float64: errno takes integers; .*Int64"),
        ({"yes": "signal"}, "column 'yes' is bool: signal takes integers"),
        ({"when": "duration"}, "column 'when' is datetime64.*: duration takes integers"),
        ({"port": "be16"}, "column 'port' has 70000, which is no be16 of 16 bits"),
        ({"low": "be16"}, "column 'low' has -1, which is no be16 of 16 bits"),
        ({"low": "ip"}, "column 'low' has -1, which is no ip of 32 bits"),
        ({"byte": "be16"}, "column 'byte' is uint8: too narrow for be16"),
        ({"text": "ip"}, "column 'text' is .*: ip takes integers or bytes"),
        ({"mac": "ip"}, "column 'mac' has 6 bytes, b'123456': ip takes 4 or 16"),
        ({"mac": "mac"}, "column 'mac' has 5 bytes, b'12345': mac takes 6"),
        ({"ret": "mac"}, "column 'ret' is int64: mac takes bytes"),
        ({"ret": "rwbs"}, "column 'ret' is int64: rwbs takes strings"),
    ],
)
def test_what_cannot_be_decoded_is_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        FRAME.bpf.decode(**arguments)
    assert "\n" not in str(caught.value)


def test_a_column_named_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="two columns 'ret'"):
        FRAME.bpf.decode({"ret": "errno"}, ret="error")


# --- by itself ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_text", "name", "probe", "kind"),
    [
        ("__be16", "dport", "kprobe:tcp_connect", "be16"),
        ("__be32", "seq", "", "be32"),
        ("__be32", "skc_daddr", "", "ip"),
        ("__u8[16]", "daddr_v6", "tracepoint:sock:inet_sock_set_state", "ip"),
        ("__u8[4]", "saddr", "tracepoint:tcp:tcp_retransmit_skb", "ip"),
        ("umode_t", "mode", "syscall:openat", "mode"),
        ("const umode_t", "mode", "", "mode"),
        ("dev_t", "dev", "tracepoint:block:block_rq_issue", "dev"),
        ("unsigned int", "dev", "syscall:mknodat", "st_dev"),
        ("int", "flags", "syscall:openat", "open"),
        ("int", "flags", "tracepoint:syscalls:sys_enter_openat", "open"),
        ("unsigned long", "prot", "syscall:mmap", "prot"),
        ("unsigned long", "flags", "syscall:mmap", "mmap"),
        ("long", "retval", "sysret:openat", "errno"),
        ("long", "ret", "tracepoint:syscalls:sys_exit_openat", "errno"),
        ("retval", "retval", "syscall:open*", "errno"),
        ("errno", "errno", "syscall:openat", "error"),
        ("int", "errno", "tracepoint:signal:signal_generate", "error"),
        ("int", "retval", "kretprobe:vfs_read", None),
        ("int", "oldstate", "tracepoint:sock:inet_sock_set_state", "tcp_state"),
        ("long", "prev_state", "tracepoint:sched:sched_switch", "task_state"),
        ("unsigned int", "prev_state", "rawtracepoint:sched_switch", "raw_state"),
        ("int", "newstate", "rawtracepoint:inet_sock_set_state", "tcp_state"),
        ("char[8]", "rwbs", "tracepoint:block:block_rq_issue", "rwbs"),
        ("int", "sig", "tracepoint:signal:signal_generate", "signal"),
        ("int", "sig", "syscall:kill", "signal"),
        ("int", "flags", "tracepoint:sock:sock_send_length", None),
        ("int", "fd", "syscall:read", None),
        ("u32", "pid", "", None),
    ],
)
def test_what_a_value_is_by_its_type_name_and_probe(type_text: str, name: str, probe: str, kind: str | None) -> None:
    assert kind_of(type_text, name, probe) == kind
    assert kind is None or kind in KINDS


# --- the document, and speed --------------------------------------------------------------------------------------


def test_the_reference_lists_the_kinds() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference.md").read_text().partition("## Decoding")[2]
    text = text.partition("\n## ")[0]
    shows = {name: kind.shows.replace("|", "\\|") for name, kind in KINDS.items()}
    rows = [f"| `{name}` | {shows[name]} | {kind.source} |" for name, kind in KINDS.items()]
    assert [line for line in text.splitlines() if line.startswith("| `")] == rows


def test_different_values_are_decoded_once() -> None:
    """Rows cost what their distinct values do, not a call of Python's each."""
    calls = _counted(lambda: values(pd.Series(np.arange(100_000) % 7 - 3), "errno"))
    assert calls < 2_000


def _counted(action: Callable[[], Any]) -> int:
    count = 0

    def tick(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(tick)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


def test_system_calls_of_this_machine_are_the_default() -> None:
    number = syscalls.numbers().get("getpid")
    if number is None:
        pytest.skip("no table for this machine")
    assert ctypes.CDLL(None).syscall(ctypes.c_long(number)) == os.getpid()
    assert decoded([number], "syscall") == ["getpid"]
