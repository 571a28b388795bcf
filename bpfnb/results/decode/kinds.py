"""The kinds a column can be decoded as, a row each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from bpfnb.results.decode import texts

__all__ = ["KINDS", "Array", "Convert", "Kind", "Takes"]

Array: TypeAlias = npt.NDArray[Any]
Convert: TypeAlias = Callable[[Array], Array]
Takes: TypeAlias = Literal["signed", "unsigned", "bytes", "strings"]

_ACCESS, _MAP_TYPE, _MAP_HUGE, _SOCK_TYPE = 0x3, 0xF, 0x3F << 26, 0xF
_MAX_ERRNO = 4095  # include/linux/err.h


@dataclass(frozen=True)
class Kind:
    """What a column holds, and how it is shown.

    ``takes``: columns of which values. "signed": integers that may be negative, and unsigned ones by their bits;
    "unsigned": integers, negative ones by their bits. ``bits``: an integer's own width; a value that does not fit is an
    error; 0: of any width. ``bytes``: lengths of byte strings.
    ``text``: a value's text; the column becomes a category. ``convert`` instead: numbers made of all at once.
    ``within``: the values that mean something; others are missing.
    """

    shows: str
    source: str
    takes: tuple[Takes, ...]
    text: texts.Text | None = None
    convert: Convert | None = None
    bits: int = 0
    bytes: tuple[int, ...] = ()
    within: tuple[int, int] | None = None


def _host_order(array: Array) -> Array:
    return array.byteswap() if sys.byteorder == "little" else array


def _nanoseconds(array: Array) -> Array:
    return array.astype(np.int64).view("m8[ns]")


def _big_endian(bits: int) -> Kind:
    shows = f"big-endian u{bits}, network byte order, as the number it is: uint{bits}"
    return Kind(shows, "byte order", ("unsigned",), convert=_host_order, bits=bits)


_T = texts

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "errno": Kind(
            "what a call returned: of -1 to -4095 the error's name, ENOENT; else it is no error, and missing",
            "asm/errno.h, include/linux/errno.h", ("signed",), _T.errno, within=(-_MAX_ERRNO, -1),
        ),
        "error": Kind(
            "an error number of either sign, as fields err and error are: ENOENT; missing for 0",
            "asm/errno.h, include/linux/errno.h", ("signed",), _T.errno,
        ),
        "signal": Kind("SIGTERM; real-time ones as kill -l has them", "asm/signal.h", ("signed",), _T.signal),
        "syscall": Kind(
            "a system call's name by its number, on this machine", "asm/unistd_64.h, asm-generic/unistd.h", ("signed",),
            _T.syscall,
        ),
        "open": Kind("O_WRONLY|O_CREAT", "asm/fcntl.h", ("unsigned",), _T.flags("open", _ACCESS)),
        "prot": Kind("mmap's protection: PROT_READ|PROT_EXEC", "asm/mman.h", ("unsigned",), _T.flags("prot")),
        "mmap": Kind(
            "mmap's flags: MAP_PRIVATE|MAP_ANONYMOUS", "linux/mman.h", ("unsigned",),
            _T.flags("mmap", _MAP_TYPE, _MAP_HUGE),
        ),
        "clone": Kind("flags of clone and unshare: CLONE_VM|SIGCHLD", "linux/sched.h", ("unsigned",), _T.clone),
        "mode": Kind(
            "a file's mode as ls shows it: -rw-r--r--; without a type, as chmod's, rw-r--r--", "stat.h",
            ("unsigned",), _T.mode,
        ),
        "dev": Kind(
            "a device as the kernel has it, in its structs and tracepoints: 8:1", "linux/kdev_t.h", ("unsigned",),
            _T.device, bits=32,
        ),
        "st_dev": Kind("a device as stat(2) gives it to processes: 8:1", "makedev(3)", ("unsigned",), _T.st_dev),
        "wait": Kind(
            "a wait status, and a task's exit_code: exited 1, killed by SIGSEGV (core)", "wait(2)", ("unsigned",),
            _T.wait_status,
        ),
        "tcp_state": Kind("ESTABLISHED", "linux/bpf.h", ("signed",), _T.named("tcp_state")),
        "family": Kind("AF_INET6", "sys/socket.h", ("signed",), _T.named("family")),
        "socktype": Kind(
            "SOCK_STREAM|SOCK_CLOEXEC", "include/linux/net.h", ("unsigned",), _T.flags("socktype", _SOCK_TYPE)
        ),
        "ip": Kind(
            "a u32 in network byte order, or 4 or 16 bytes: 10.0.0.1, 2001:db8::1", "RFC 5952",
            ("unsigned", "bytes"), _T.ip, bits=32, bytes=(4, 16),
        ),
        "mac": Kind("6 bytes: 52:54:00:12:34:56", "IEEE 802", ("bytes",), _T.mac, bytes=(6,)),
        "be16": _big_endian(16),
        "be32": _big_endian(32),
        "be64": _big_endian(64),
        "capability": Kind("CAP_SYS_ADMIN", "linux/capability.h", ("signed",), _T.named("capability")),
        "block": Kind(
            "a block request's operation, by the low byte of its flags: WRITE; those on zones differ between "
            "kernels and stay numbers", "enum req_op", ("unsigned",), _T.low_byte("block"),
        ),
        "rwbs": Kind(
            "the field rwbs of block tracepoints, WS: WRITE|SYNC", "blk_fill_rwbs()", ("strings",), _T.rwbs
        ),
        "task_state": Kind(
            "the field prev_state of sched_switch, as ps's letters: S, D; R+: preempted",
            "the tracepoint's print fmt", ("signed",), _T.task_state,
        ),
        "raw_state": Kind(
            "a task's __state, which raw tracepoints have, as ps's letters", "include/linux/sched.h", ("unsigned",),
            _T.raw_state,
        ),
        "ioprio": Kind("best-effort 4", "linux/ioprio.h", ("unsigned",), _T.io_priority),
        "duration": Kind("nanoseconds: timedelta64[ns]", "", ("signed",), convert=_nanoseconds),
    }
)  # fmt: skip
