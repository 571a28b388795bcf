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


def tables() -> dict[Path, str]:
    """The text of each table, by its file."""
    return {SYSCALLS: syscalls_table()}


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
