"""How long a Tab and a Shift-Tab take in a cell of C, on this kernel: the whole way through IPython's completer.

    .venv/bin/python -m benchmarks.completion

Cold: the first of its kind, in which the tracer reads what it answers. Warm: the median of those after it, of other
words, so that no kept answer is given.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from bpfnb.hosts import default_host
from magics.completion.asking import asker
from magics.completion.explaining import explain

CELL = """%%bpf x
#include <linux/sched.h>
struct data_t { u32 pid; char comm[16]; struct task_struct *task; };
BPF_HASH(counts, u32, struct data_t);
BPF_PERF_OUTPUT(events);
int f(void *ctx) {
    struct data_t data = {};
    struct task_struct *task = (struct task_struct *)bpf_get_current_task();
    """
STRUCTS = ("sock", "file", "inode", "dentry", "sk_buff", "mm_struct", "cred", "net_device", "super_block", "module")
CATEGORIES = ("sched", "signal", "syscalls", "timer", "irq", "block", "net", "tcp", "writeback", "kmem")
WORDS = ("TCP_E", "BPF_MAP", "PIDTYPE", "pid_", "size", "AUDIT", "SCTP", "IPPROTO", "NR_", "sector")
ROUNDS = 10

TAB: dict[str, list[str]] = {
    "members of the cell's own struct": [CELL + "data."] * ROUNDS,
    "methods of a map": [CELL + "counts."] * ROUNDS,
    "members of a kernel's struct": [f"{CELL}((struct {name} *)task)->" for name in STRUCTS],
    "names in a function": [CELL + word for word in WORDS],
    "tracepoints of a category": [f"%%bpf\nTRACEPOINT_PROBE({name}, " for name in CATEGORIES],
    "a probe of -a": [f"%%bpf x -a syscall:{letter}" for letter in "acefgimnop"],
    "functions of /bin/bash": [f"%%bpf x -a uprobe:/bin/bash:{letter}" for letter in "abcdefghij"],
}
SHIFT_TAB: dict[str, list[str]] = {
    "a helper": [CELL + "bpf_ktime_get_ns"] * ROUNDS,
    "a kernel's struct": [f"{CELL}struct {name}" for name in STRUCTS],
    "a constant": [CELL + word for word in ("TCP_ESTABLISHED", "PIDTYPE_PID", "IPPROTO_TCP", "BPF_MAP_TYPE_HASH")],
}


def timed(call: Callable[[str], object], texts: list[str]) -> tuple[float, float]:
    """Milliseconds of the first, and the median of the others."""
    taken = []
    for text in texts:
        asker.forget()
        began = time.perf_counter()
        call(text)
        taken.append(1000 * (time.perf_counter() - began))
    return taken[0], statistics.median(taken[1:])


def main() -> None:
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(config=config)
    shell.run_cell("%load_ext bpfnb")
    default_host.connect()

    def tab(text: str) -> object:
        with provisionalcompleter():
            return list(shell.Completer.completions(text, len(text)))

    print(f"{'':44}{'cold, ms':>10}{'warm, ms':>10}")
    groups: list[tuple[str, Callable[[str], object], dict[str, list[str]]]] = [
        ("Tab", tab, TAB),
        ("Shift-Tab", lambda text: explain(text, len(text)), SHIFT_TAB),
    ]
    for key, call, cases in groups:
        for name, texts in cases.items():
            cold, warm = timed(call, texts)
            print(f"{f'{key}: {name}':44}{cold:10.1f}{warm:10.1f}")
    shell.run_cell("%unload_ext bpfnb")


if __name__ == "__main__":
    main()
