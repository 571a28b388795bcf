"""Python code run as on a system that is not Linux: without the modules and functions that only Linux has, or Unix."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# The libraries are imported first: theirs are other editions there, which need none of this.
_BEFORE = """
import asyncio, builtins, errno, mmap, os, platform, signal, socket, subprocess, sys, tempfile, time
import IPython, ipywidgets, matplotlib.pyplot, msgspec, numpy, pandas, pyarrow.ipc, pyarrow.parquet, traitlets
import tree_sitter, tree_sitter_c, zipfile
"""
_MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")
_MISSING = {
    "os": """
        fork forkpty geteuid getuid getegid getgid getgroups getppid kill killpg major minor makedev memfd_create
        MFD_CLOEXEC mkfifo O_NONBLOCK O_CLOEXEC O_DIRECTORY O_NOFOLLOW openpty pidfd_open posix_fallocate posix_spawn
        pread pwrite preadv pwritev register_at_fork sched_getaffinity sched_setaffinity sched_yield sendfile setns
        setsid splice statvfs sysconf uname wait wait3 wait4 waitid WNOWAIT WEXITED P_PID
    """,
    "signal": """
        SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGURG SIGUSR1 SIGUSR2 pthread_kill pthread_sigmask
        set_wakeup_fd setitimer sigwait siginterrupt
    """,
    "socket": "AF_UNIX CMSG_LEN CMSG_SPACE MSG_DONTWAIT SCM_RIGHTS recv_fds send_fds socketpair",
    "mmap": """
        MADV_DONTNEED MADV_HUGEPAGE MADV_NOHUGEPAGE MAP_ANON MAP_ANONYMOUS MAP_NORESERVE MAP_POPULATE MAP_PRIVATE
        MAP_SHARED PROT_EXEC PROT_READ PROT_WRITE
    """,
    "time": "CLOCK_BOOTTIME CLOCK_MONOTONIC CLOCK_REALTIME clock_gettime clock_gettime_ns",
}


def run_elsewhere(code: str, *arguments: str | Path, platform: str = "win32") -> str:
    """Run Python code on such a system; return what it printed. It must not fail."""
    lines = [_BEFORE, f"sys.modules.update(dict.fromkeys({_MODULES!r}))"]
    for module, names in _MISSING.items():
        lines.append(f"for name in {names.split()!r}:\n    vars({module}).pop(name, None)")
    lines += [f"sys.platform = {platform!r}", "platform.machine = lambda: 'AMD64'", code]
    command = [sys.executable, "-W", "error", "-c", "\n".join(lines), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
