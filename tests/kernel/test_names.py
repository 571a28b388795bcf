"""Names people give to what is theirs, which the kernel has for something else: none is refused."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

import bpfnb
from bpfnb.errors import CompileError

WORDS = """
    access alloc_info arg async attr backend batch bio_info block bucket buffer bus cache call cgroup_key channel
    child class clock command completion config conn connection context cookie core counter cpu cred credit data
    dentry depth dest dev device dimm dir disk domain drop edge element endpoint entry env error event exception
    extent fault fd file filename filter flow frame fs futex gap group half handle hash hdr header heap hist hit host
    inode info interval io_event iov item job key key_value label latency leaf level limit link list load lock map
    marker memory message method metric mode module mount msg mutex nameidata net_event node object offset op
    operation option owner packet page pair param parent path payload peer pending phase pid_info pipe plug point
    policy poll pool port priority probe proc process queue quota range rate reader record region reply req request
    resource response result ring root route rq rule run runq sample sched_event score segment server service session
    sig signal size slab slot sock_info socket source span stack start_req stat state stats store stream summary
    switch_info sync tag target task task_info tcp_info thread thread_info timer token total trace trace_event tree
    tuple unit usage user val_t victim vm waiter wakeup watch window worker writer xfer zone
"""
CONSTANTS = """
    READ WRITE OPEN CLOSE START END BEGIN ENTER EXIT SEND RECV CONNECT ACCEPT CLOSED IDLE BUSY RUNNING WAITING READY
    DONE PENDING OK FAIL NONE UNKNOWN OTHER YES NO ON OFF USER KERNEL CPU MEM IO NET DISK FILE EXEC FORK KILL WAIT
    LOCK ALLOC FREE HIT MISS GET PUT SET ADD POP IN OUT RX TX TCP UDP LOW HIGH FIRST LAST TOTAL FAST SLOW ACTIVE INIT
    SYNC ASYNC BLOCKED ZOMBIE STOPPED A B C X Y Z RED GREEN BLUE UP DOWN LEFT RIGHT NORMAL DMA SOURCE
"""
ATTACHED = "\nint f(void *ctx) { return 0; }\n"
PGID = {"syscall:getpgid": "f"}
INCLUDES = (
    "",
    "#include <linux/sched.h>\n",
    "#include <linux/fs.h>\n#include <net/sock.h>\n",
    "#include <vmlinux.h>\n",
)


def words(text: str) -> list[str]:
    return text.split()


def structs(include: str) -> str:
    return include + "".join(f"struct {word} {{ u64 n; }};\n" for word in words(WORDS))


def typedefs(include: str) -> str:
    """Also with "_t" behind them, but for size_t, which bcc's own text uses."""
    names = [*words(WORDS), *(f"{word}_t" for word in words(WORDS) if word != "size" and not word.endswith("_t"))]
    return include + "".join(f"typedef struct {{ u64 n; }} {name};\n" for name in dict.fromkeys(names))


def functions(include: str) -> str:
    return include + "".join(f"static inline int {word}(int n) {{ return n; }}\n" for word in words(WORDS))


def constants(include: str) -> str:
    return f'{include}enum mine {{ {", ".join(words(CONSTANTS))} }};\n_Static_assert(READ == 0 && WRITE == 1, "mine");'


def macros(include: str) -> str:
    defined = "".join(f"#define {name} 77\n" for name in words(CONSTANTS))
    return f'{defined}{include}_Static_assert(READ + NONE + UP == 231, "mine");'


@pytest.mark.parametrize("make", [structs, typedefs, functions, constants, macros])
def test_no_everyday_name_is_refused(make: Callable[[str], str]) -> None:
    for include in INCLUDES:
        with bpfnb.trace(make(include) + ATTACHED, name="names", attach=PGID):
            pass


def test_a_macro_by_a_flag_may_have_any_name() -> None:
    for include in INCLUDES:
        flags = [f"-D{name}=77" for name in words(CONSTANTS)]
        cell = f'{include}_Static_assert(NONE + UP == 154, "mine");{ATTACHED}'
        with bpfnb.trace(cell, name="names", attach=PGID, cflags=flags):
            pass


OWN = """
#include <linux/sched.h>
enum pid_kind { PIDTYPE_PID = 7, READ = 9 };
struct request { u32 page; enum pid_kind read; enum pid_type kernels; };
struct worker { int kthread; };
BPF_PERF_OUTPUT(events);
int f(void *ctx) {
    if (bpf_get_current_pid_tgid() >> 32 != PID) return 0;
    struct task_struct *task = (struct task_struct *)bpf_get_current_task();
    struct worker mine = { .kthread = task->tgid };
    struct request request = { .page = mine.kthread, .read = READ };
    events.perf_submit(ctx, &request, sizeof(request));
    return 0;
}
"""


@pytest.mark.portable
def test_the_cells_own_means_the_cells_and_the_kernels_the_kernels() -> None:
    """WHEN names of structs, a constant and a macro are the kernel's too, and its structs are read as well THEN what
    is shown has the names and values of each."""
    with bpfnb.trace(OWN, name="own", attach=PGID, cflags=[f"-DPID={os.getpid()}"], headers="btf") as session:
        os.getpgid(0)
    (row,) = session.df.to_dict("records")
    assert (row["page"], row["read"], row["kernels"]) == (os.getpid(), "READ", "PIDTYPE_PID")
    assert [(d.line, d.message.split(" is the cell's own")[0]) for d in session.warnings] == [
        (3, "PIDTYPE_PID"),
        (3, "READ"),
        (4, "request"),
        (5, "worker"),
    ]


def test_what_is_declared_twice_in_the_cell_is_an_error() -> None:
    cell = "#include <linux/sched.h>\nstruct request { int a; };\nstruct request { int b; };" + ATTACHED
    with pytest.raises(CompileError, match="line 3: redefinition of 'request'"):
        bpfnb.trace(cell, name="twice", attach=PGID)


def test_another_error_beside_a_name_of_the_kernels_is_the_error() -> None:
    cell = "#include <linux/sched.h>\nstruct request { int a; };\nint g(void *ctx) { return nothere; }" + ATTACHED
    with pytest.raises(CompileError, match="line 3: use of undeclared identifier 'nothere'") as caught:
        bpfnb.trace(cell, name="error", attach=PGID)
    assert [d.message for d in caught.value.diagnostics] == ["use of undeclared identifier 'nothere'"]


def test_a_name_that_bccs_own_text_needs_stays_what_it_is() -> None:
    with pytest.raises(CompileError, match="line 1: typedef redefinition with different types"):
        bpfnb.trace("typedef struct { int a; } size_t;" + ATTACHED, name="needed", attach=PGID)


def test_who_declares_the_kernels_struct_as_libbpf_has_it_is_told_so() -> None:
    """Fields found at load are libbpf's: here they would be read at the wrong places, so this stays refused."""
    cell = (
        "#include <linux/sched.h>\nstruct task_struct { int pid; } __attribute__((preserve_access_index));" + ATTACHED
    )
    with pytest.raises(CompileError, match="line 2: redefinition of 'task_struct'"):
        bpfnb.trace(cell, name="core", attach=PGID)


def test_a_struct_that_headers_only_declare_is_completed() -> None:
    """As mountsnoop does it: what the cell defines is what the kernel's pointer points to."""
    cell = """#include <linux/sched.h>
#include <linux/nsproxy.h>
#include <linux/ns_common.h>
struct mnt_namespace { atomic_t count; struct ns_common ns; };
int f(void *ctx) {
    struct task_struct *task = (struct task_struct *)bpf_get_current_task();
    struct mnt_namespace *ns = task->nsproxy->mnt_ns;
    return ns->ns.inum == 0;
}
"""
    with bpfnb.trace(cell, name="mounts", attach=PGID) as session:
        pass
    assert session.warnings == ()
