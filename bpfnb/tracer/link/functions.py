"""The kernel's functions: which there are, and what to probe in place of one that is not there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from bpfnb.errors import AttachError
from bpfnb.language.probes import Probe
from bpfnb.tracer.kernel import tracefs
from bpfnb.tracer.link.errors import near, rejection

__all__ = ["SYSCALLS", "TRACEPOINTS", "KernelFunctions", "alternative", "kernel_functions", "no_function", "stand_in"]

# Tracepoints that are met where well-known functions are, and outlive their renaming and inlining.
TRACEPOINTS = {
    "blk_account_io_start": "block:block_io_start",
    "blk_account_io_done": "block:block_io_done",
    "blk_start_request": "block:block_rq_issue",
    "blk_mq_start_request": "block:block_rq_issue",
    "finish_task_switch": "sched:sched_switch",
    "try_to_wake_up": "sched:sched_wakeup",
    "ttwu_do_wakeup": "sched:sched_wakeup",
    "wake_up_new_task": "sched:sched_wakeup_new",
    "do_exit": "sched:sched_process_exit",
    "kernel_clone": "sched:sched_process_fork",
    "_do_fork": "sched:sched_process_fork",
    "tcp_set_state": "sock:inet_sock_set_state",
    "tcp_retransmit_skb": "tcp:tcp_retransmit_skb",
    "tcp_rcv_established": "tcp:tcp_probe",
    "tcp_send_active_reset": "tcp:tcp_send_reset",
    "netif_receive_skb": "net:netif_receive_skb",
    "dev_queue_xmit": "net:net_dev_queue",
    "kfree_skb": "skb:kfree_skb",
    "oom_kill_process": "oom:mark_victim",
    "__alloc_pages": "kmem:mm_page_alloc",
    "kmem_cache_alloc": "kmem:kmem_cache_alloc",
    "handle_mm_fault": "exceptions:page_fault_user",
    "mark_page_accessed": "pagemap:mm_lru_activate",
    "bprm_execve": "sched:sched_process_exec",
    "do_execveat_common": "sched:sched_process_exec",
}
# Functions that serve one syscall above all.
SYSCALLS = {
    "do_sys_open": "openat",
    "do_sys_openat2": "openat",
    "do_unlinkat": "unlinkat",
    "do_mkdirat": "mkdirat",
    "do_renameat2": "renameat2",
    "do_nanosleep": "clock_nanosleep",
    "ksys_read": "read",
    "ksys_write": "write",
    "ksys_sync": "sync",
}


class KernelFunctions:
    """The names in /proc/kallsyms. Modules come and go: a name that is not there is looked for again, after a while."""

    _FRESH = 2.0  # seconds

    def __init__(self, kallsyms: Path = Path("/proc/kallsyms"), clock: Callable[[], float] = time.monotonic) -> None:
        self._kallsyms = kallsyms
        self._clock = clock
        self._names: frozenset[str] = frozenset()
        self._read_at = -self._FRESH

    def __contains__(self, name: str) -> bool:
        return name in self._names or name in self.all()

    def all(self) -> frozenset[str]:
        if self._clock() - self._read_at >= self._FRESH:
            with self._kallsyms.open() as lines:
                self._names = frozenset(line.split(None, 3)[2] for line in lines)
            self._read_at = self._clock()
        return self._names


kernel_functions = KernelFunctions()


def no_function(probe: Probe, function: str, known: Iterable[str]) -> AttachError:
    """Return the error for a function that is not among the ``known``, with what stands in for it or near names."""
    # A kernel has 100,000 functions and comparing is slow: a name people mistype starts right.
    close = near(function, (name for name in known if name[:2] == function[:2]), f"{probe.kind}:")
    hint = alternative(probe, function) or close
    return rejection(probe, f"no kernel function is called {function}; it may be inlined", hint=hint)


def stand_in(function: str) -> str:
    """Return the probe that is met where the function is, and is there on this kernel; "" where there is none."""
    function = function.partition(".")[0]  # the compiler's own name for a part of it, as bcc's tools look it up
    if function in SYSCALLS:
        return f"syscall:{SYSCALLS[function]}"
    event = TRACEPOINTS.get(function, "")
    return f"tracepoint:{event}" if event and tracefs.has_event(event.replace(":", "/")) else ""


def alternative(probe: Probe, function: str) -> str | None:
    """Return, as a hint, what is met where the function is, and is there on this kernel."""
    found = stand_in(function)
    if not found:
        return None
    what = "the syscall it serves" if found.startswith("syscall:") else "a tracepoint stands at this place"
    return f"{what}: -a {found}={probe.function}" if probe.function else f"{what}: {found}"
