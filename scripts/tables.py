#!/usr/bin/env python3
"""Writes the tables of constants that bpfnb has as data.

From the kernel's user headers (Debian: linux-libc-dev), with gcc.

    scripts/tables.py                     # the tables that the headers give, as they would be written
    scripts/tables.py --write             # write them

Installed headers may be older than the committed tables: what a header lacks is taken from LATER, which cites the
release. tests/unit/test_tables.py compares the committed tables with the headers of the machine it runs on.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
SYSCALLS = ROOT / "bpfnb" / "language" / "syscalls.txt"
CONSTANTS = ROOT / "bpfnb" / "results" / "decode" / "constants.txt"

# Since 5.1 a new system call has one number on all architectures.
LATER = {
    "cachestat": 451, "fchmodat2": 452, "map_shadow_stack": 453, "futex_wake": 454, "futex_wait": 455,
    "futex_requeue": 456, "statmount": 457, "listmount": 458, "lsm_get_self_attr": 459, "lsm_set_self_attr": 460,
    "lsm_list_modules": 461, "mseal": 462,  # in 6.10
    "setxattrat": 463, "getxattrat": 464, "listxattrat": 465, "removexattrat": 466,  # in 6.13
    "open_tree_attr": 467, "file_getattr": 468, "file_setattr": 469,  # in 6.15, 6.17
    "listns": 470,  # in 6.19
    "rseq_slice_yield": 471,  # in 7.0
}  # fmt: skip
LATER_X86 = {"uretprobe": 335, "uprobe": 336}  # in 6.11, 6.18
# Entry functions, and so tracepoints, whose name is not the call's: arch/x86/entry/syscalls/syscall_64.tbl,
# scripts/syscall.tbl.
ENTRIES = {
    "stat": "newstat", "fstat": "newfstat", "lstat": "newlstat", "uname": "newuname", "umount2": "umount",
    "sendfile": "sendfile64",
}  # fmt: skip
# What 64-bit ARM asks of the generic table: arch/arm64/include/asm/unistd.h, arch/arm64/kernel/Makefile.syscalls
GENERIC = ("RENAMEAT", "SET_GET_RLIMIT", "NEW_STAT", "MEMFD_SECRET", "SYS_CLONE3")
NO_CALL = {"syscalls", "arch_specific_syscall"}

# Tables of constants: the header, and which of its macros are meant. What the expression captures is the name shown.
TABLES = {
    "errno": ("asm/errno.h", r"(E(?!WOULDBLOCK$|DEADLOCK$|NOTSUP$)[A-Z0-9]+)"),
    "signal": ("asm/signal.h", r"(SIG(?!RTM|STKSZ$|IOT$|POLL$|UNUSED$)[A-Z0-9]+)"),
    "open": ("asm/fcntl.h", r"(O_(?!NDELAY$)[A-Z]+)"),
    "prot": ("asm/mman.h", r"(PROT_[A-Z]+)"),
    "mmap": ("linux/mman.h", r"(MAP_(?!TYPE$|FILE$|UNINITIALIZED$|32BIT$|HUGE_)[A-Z_]+|MAP_HUGE_\d+[MGK]B)"),
    "mmap.x86_64": ("linux/mman.h", r"(MAP_32BIT)"),
    "clone": ("linux/sched.h", r"(CLONE_(?!ARGS_)[A-Z_]+)"),
    "capability": ("linux/capability.h", r"(CAP_(?!LAST_CAP)[A-Z_]+)"),
    "family": ("sys/socket.h", r"(AF_(?!MAX|LOCAL|FILE|ROUTE)[A-Z0-9]+)"),
}
# What no header for users has, or only newer ones than Debian 12's.
CONSTANTS_LATER: dict[str, dict[str, int]] = {
    # include/linux/errno.h: the kernel's own; probes on returns see them, processes do not
    "errno": {
        "ERESTARTSYS": 512, "ERESTARTNOINTR": 513, "ERESTARTNOHAND": 514, "ENOIOCTLCMD": 515,
        "ERESTART_RESTARTBLOCK": 516, "EPROBE_DEFER": 517, "EOPENSTALE": 518, "ENOPARAM": 519, "EBADHANDLE": 521,
        "ENOTSYNC": 522, "EBADCOOKIE": 523, "ENOTSUPP": 524, "ETOOSMALL": 525, "ESERVERFAULT": 526, "EBADTYPE": 527,
        "EJUKEBOX": 528, "EIOCBQUEUED": 529, "ERECALLCONFLICT": 530, "ENOGRACE": 531,
    },
    "open.aarch64": {  # arch/arm64/include/uapi/asm/fcntl.h; O_TMPFILE has O_DIRECTORY in it
        "O_DIRECTORY": 0o40000, "O_NOFOLLOW": 0o100000, "O_DIRECT": 0o200000, "O_LARGEFILE": 0o400000,
        "O_TMPFILE": 0o20040000,
    },
    "prot.aarch64": {"PROT_BTI": 0x10, "PROT_MTE": 0x20},  # arch/arm64/include/uapi/asm/mman.h
    "mmap": {"MAP_DROPPABLE": 0x08},  # in 6.11
    "mmap.x86_64": {"MAP_ABOVE4G": 0x80},  # in 6.6
    "tcp_state": {"BOUND_INACTIVE": 13},  # in 6.8
    "socktype": {  # include/linux/net.h; the flags of socket(2) are those of open(2)
        "SOCK_STREAM": 1, "SOCK_DGRAM": 2, "SOCK_RAW": 3, "SOCK_RDM": 4, "SOCK_SEQPACKET": 5, "SOCK_DCCP": 6,
        "SOCK_PACKET": 10, "SOCK_NONBLOCK": 0x800, "SOCK_CLOEXEC": 0x80000,
    },
    "block": {  # enum req_op of include/linux/blk_types.h, less what differs between releases: operations on zones
        "READ": 0, "WRITE": 1, "FLUSH": 2, "DISCARD": 3, "SECURE_ERASE": 5, "WRITE_ZEROES": 9, "DRV_IN": 34,
        "DRV_OUT": 35,
    },
}  # fmt: skip


def macros(header: str, *flags: str) -> dict[str, str]:
    """The macros after a header was included, as the preprocessor lists them: {name: text}."""
    command = ["gcc", "-E", "-dM", *flags, "-"]
    text = subprocess.run(command, input=f"#include <{header}>\n", capture_output=True, text=True, check=True).stdout
    return dict(re.findall(r"^#define (\w+) (.*)$", text, re.M))


def syscall_numbers(found: dict[str, str]) -> dict[str, int]:
    """System calls among macros: {name: number}."""
    numbers = {}
    for name, text in found.items():
        text = found.get(text, text)
        if (call := re.fullmatch(r"__NR_(\w+)", name)) and text.isdigit() and call[1] not in NO_CALL:
            numbers[call[1]] = int(text)
    return numbers


def headers_syscalls() -> tuple[dict[str, int], dict[str, int]]:
    """The numbers that the installed headers have, of x86_64 and of aarch64."""
    generic = macros("asm-generic/unistd.h", "-D__BITS_PER_LONG=64", *(f"-D__ARCH_WANT_{name}" for name in GENERIC))
    return syscall_numbers(macros("asm/unistd_64.h")), syscall_numbers(generic)


def syscalls_table() -> str:
    """bpfnb/language/syscalls.txt."""
    x86, arm = headers_syscalls()
    x86, arm = LATER_X86 | LATER | x86, LATER | arm
    lines = [
        "# System calls: name, number on x86_64, on aarch64 (- where there is none), and the name of the entry",
        "# function and tracepoint where that is another. From the kernel's asm/unistd_64.h, asm-generic/unistd.h, by",
        "# scripts/tables.py; for calls since 6.2, from its tables of system calls.",
    ]
    for name in sorted(x86 | arm, key=lambda name: (x86.get(name, arm.get(name)), name not in x86)):
        if name == "fadvise64":  # arm64: "223 64 fadvise64 sys_fadvise64_64"
            lines += [f"fadvise64 {x86[name]} -", f"fadvise64 - {arm[name]} fadvise64_64"]
            continue
        fields = [name, str(x86.get(name, "-")), str(arm.get(name, "-")), ENTRIES.get(name, "")]
        lines.append(" ".join(fields).rstrip())
    return "\n".join(lines) + "\n"


def value_of(name: str, found: dict[str, str]) -> int | None:
    """A macro's number, whose text may name other macros; None where it has none."""
    text = re.sub(r"\b[A-Za-z_]\w*", lambda match: str(value_of(match[0], found)), found.get(name, ""))
    text = re.sub(r"\b0(?=\d)", "0o", re.sub(r"(?<=[0-9a-fA-F])[UuLl]+\b", "", text))
    try:
        return int(eval(text, {}))
    except (SyntaxError, TypeError, NameError):
        return None


def tcp_states() -> dict[str, int]:
    """From linux/bpf.h, which repeats the kernel's: include/net/tcp_states.h is for the kernel alone."""
    command = ["gcc", "-E", "-"]
    text = subprocess.run(command, input="#include <linux/bpf.h>\n", capture_output=True, text=True, check=True).stdout
    names = re.findall(r"^\s*BPF_TCP_(\w+)(?: = 1)?,", text, re.M)
    return {name: number for number, name in enumerate(names, 1) if name != "MAX_STATES"}


def headers_constants() -> dict[str, dict[str, int]]:
    """The tables that the installed headers have: {kind: {name: number}}."""
    made = {"tcp_state": tcp_states()}
    for kind, (header, pattern) in TABLES.items():
        found = macros(header)
        names = [match[1] for name in found if (match := re.fullmatch(pattern, name))]
        made[kind] = {name: value for name in names if (value := value_of(name, found)) is not None}
    return made


def constants_table() -> str:
    """bpfnb/results/decode/constants.txt."""
    made = headers_constants()
    lines = [
        "# Kind, name, number: constants of the kernel's headers for users, by scripts/tables.py: it says where",
        "# each is from. A kind with an architecture behind it has what differs there.",
    ]
    for kind in sorted(made.keys() | CONSTANTS_LATER.keys()):
        constants = CONSTANTS_LATER.get(kind, {}) | made.get(kind, {})
        lines += [f"{kind} {name} {number:#x}" for name, number in sorted(constants.items(), key=lambda item: item[1])]
    return "\n".join(lines) + "\n"


def tables() -> dict[Path, str]:
    """The text of each table, by its file."""
    return {SYSCALLS: syscalls_table(), CONSTANTS: constants_table()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the files, instead of printing them")
    write = parser.parse_args().write
    for path, text in tables().items():
        if write:
            path.write_text(text)
        else:
            print(text)


if __name__ == "__main__":
    main()
