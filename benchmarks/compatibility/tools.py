"""The tools of Debian's bpfcc-tools and the arguments each is run with.

A tool builds its C when it runs, from its options, so each is run at its defaults, or at the least it demands, and
some with one or two of their main options besides.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

__all__ = ["NO_PROGRAM", "Run", "runs"]

# Arguments other than none, the first being the tool's ordinary run. {pid_NAME} and {path_NAME}: a process of
# standin.py and its file; {pid}: of a process with nothing special; {pty}: a terminal; {libc}: the C library; {disk}: a
# block device.
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "argdist": (
        "-C 'p::vfs_read(struct file *f, char *b, size_t count):size_t:count'",
        "-H 'r::vfs_read():size_t:$retval:$latency > 1000'",
        "-C 't:sched:sched_switch():int:args->prev_pid'",
        "-C 'p:c:write(int fd):int:fd'",
        "-C 'u:{path_python}:function__entry():u64:arg1'",
    ),
    "bindsnoop": ("", "--count"),
    "biolatency": ("", "-D", "-F", "-Q"),
    "biolatpcts": ("{disk}",),
    "biosnoop": ("", "-Q"),
    "capable": ("", "-K"),
    "compactsnoop": ("", "-K"),
    "cpudist": ("", "-O", "-P"),
    "dbslower": ("mysql -p {pid_mysqld}", "postgres -p {pid_postgres}", "mysql -x {path_mysqld}"),
    "dbstat": ("mysql -p {pid_mysqld}", "postgres -p {pid_postgres}"),
    "deadlock": ("{pid} --binary {libc}",),
    "dirtop": ("-d /tmp",),
    "drsnoop": ("", "-T"),
    "execsnoop": ("", "-x"),
    "exitsnoop": ("", "--per-thread"),
    "filegone": ("",),
    "funccount": ("vfs_read", "'vfs_r*'", "t:sched:sched_switch", "c:malloc"),
    "funcinterval": ("vfs_read", "t:sched:sched_switch", "c:malloc"),
    "funclatency": ("vfs_read", "-F vfs_read", "c:malloc"),
    "funcslower": ("vfs_read", "-U c:malloc"),
    "hardirqs": ("", "-d", "-C"),
    "inject": ("kmalloc 'vfs_write()'", "bio 'submit_bio()'", "alloc_page 'vfs_write()'"),
    "kvmexit": ("", "-a"),
    "memleak": ("", "-p {pid}", "--percpu"),
    "mysqld_qslower": ("{pid_mysqld}",),
    "netqtop": ("-n lo",),
    "offcputime": ("", "-u"),
    "offwaketime": ("", "-k"),
    "opensnoop": ("", "-x", "-U"),
    "ppchcalls": ("",),
    "profile": ("", "-C 0"),
    "runqlat": ("", "-P", "--pidnss"),
    "runqslower": ("", "-P"),
    "softirqs": ("", "-d"),
    "stackcount": ("vfs_read", "-P t:sched:sched_switch", "c:malloc"),
    "syscount": ("", "-L"),
    "tcpaccept": ("", "-P 80"),
    "tcpconnect": ("", "-c"),
    "tcplife": ("", "-4"),
    "tcpretrans": ("", "-l", "-c"),
    "tcprtt": ("", "-b"),
    "tcpstates": ("", "-4"),
    "trace": (
        "'vfs_read (arg3 > 20000) \"read %d bytes\", arg3'",
        "'r::vfs_read \"%d\", retval'",
        "'t:block:block_rq_complete \"sectors=%d\", args->nr_sector'",
        "'do_sys_openat2 \"%s\", arg2@user'",
        "'r:/bin/bash:readline \"%s\", retval'",
        "'u:{path_python}:function__entry \"%d\", arg1'",
        "-K 't:sched:sched_switch'",
    ),
    "ttysnoop": ("{pty}",),
    "ucalls": ("-l none -S {pid}", "-l python -L {pid_python}"),
    "uflow": ("-l python {pid_python}",),
    "ugc": ("-l java {pid_java}",),
    "uobjnew": ("-l c {pid}",),
    "ustat": ("-l java", "-l python"),
    "uthreads": ("-l none {pid_threads}", "-l java {pid_java}"),
    "cobjnew": ("{pid}",),
    "javathreads": ("{pid_java}",),
    "javaobjnew": ("{pid_java}",),
    "rubyobjnew": ("{pid_ruby}",),
    "tclobjnew": ("{pid_tclsh}",),
    "wakeuptime": ("", "-p {pid}"),
}  # fmt: skip
_LANGUAGE_TOOL = re.compile(r"(java|node|perl|php|python|ruby|tcl)(calls|flow|gc)$")

# Tools that compile nothing.
NO_PROGRAM = {
    "bpflist": "reads /proc only",
    "reset-trace": "a shell script that resets tracefs",
    "tplist": "reads tracefs and ELF files only",
}


class Run(NamedTuple):
    """A tool and how it is started. ``script``: its Python file; ``arguments``: with {placeholders}."""

    tool: str
    script: Path
    arguments: tuple[str, ...]
    first: bool  # the tool's ordinary run

    @property
    def name(self) -> str:
        return " ".join((self.tool, *self.arguments))


def runs(sbin: Path) -> list[Run]:
    """Every run of every tool in a folder."""
    found = []
    for file in sorted(sbin.iterdir()):
        tool = file.name.removesuffix("-bpfcc")
        if tool in NO_PROGRAM or not (file.name.endswith("-bpfcc") or tool in _ARGUMENTS):
            continue
        script, prefix = _behind(file)
        language = _LANGUAGE_TOOL.fullmatch(tool)
        default = f"{{pid_{language[1].replace('tcl', 'tclsh')}}}" if language else ""
        for index, text in enumerate(_ARGUMENTS.get(tool, (default,))):
            found.append(Run(tool, script, (*prefix, *shlex.split(text)), index == 0))
    return found


def _behind(file: Path) -> tuple[Path, tuple[str, ...]]:
    """The Python file behind a tool: some are shell scripts of one line, ``$lib/ucalls -l java "$@"``."""
    text = file.read_text()
    wrapped = re.search(r'^\$lib/(\w+) (.*?) ?"\$@"', text, re.M)
    if text.startswith("#!/bin/bash") and wrapped:
        return file.with_name(wrapped[1]), tuple(shlex.split(wrapped[2]))
    return file, ()
