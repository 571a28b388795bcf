"""The header tree made from BTF, with the real bcc and the real kernel.

Needs root, the kernel's BTF and the distribution's bcc. BPFNB_KERNEL_TESTS unset: run if possible, else skip;
0: skip; 1: what is missing is a failure.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from waiting import until

import bpfnb
from bpfnb.errors import SetupError
from bpfnb.tracer.compile import headers
from bpfnb.tracer.compile.headers.kernel_types import KernelTypes
from bpfnb.tracer.compile.headers.trees import write_tree
from bpfnb.tracer.kernel.btf import KERNEL_BTF, STRUCT, btf_of

PYTHON = "/usr/bin/python3"  # the one that the distribution's bcc belongs to

COMPILE = """
import json, os, sys
from bcc import BPF
bpf = BPF.__new__(BPF)
BPF._trace_autoload = lambda self: None  # compile only: attaching by name needs kprobes, which a kernel may lack
job = json.load(sys.stdin)
try:
    bpf.__init__(text=job["text"], cflags=job["cflags"])
    print(json.dumps(eval(job["then"] or "None", {"bpf": bpf, "BPF": BPF, "os": os})))
except Exception as error:
    sys.exit(str(error))
"""

PROGRAMS = {
    "printk": r"""
        int hello(void *ctx) { bpf_trace_printk("my bcc program\n"); return 0; }
    """,
    "registers": r"""
        #include <uapi/linux/ptrace.h>
        int probe(struct pt_regs *ctx) { bpf_trace_printk("%d %d\n", PT_REGS_PARM1(ctx), PT_REGS_RC(ctx)); return 0; }
    """,
    "syscall arguments": r"""
        int syscall__openat(struct pt_regs *ctx, int dfd, const char __user *name, int flags) {
            char path[NAME_MAX + 1 - 128], comm[TASK_COMM_LEN];
            bpf_get_current_comm(comm, sizeof(comm));
            bpf_probe_read_user_str(path, sizeof(path), name);
            if (dfd == AT_FDCWD && (flags & O_CREAT)) bpf_trace_printk("%s %d\n", path, comm[0]);
            return 0;
        }
    """,
    "tracepoint": r"""
        TRACEPOINT_PROBE(sched, sched_process_fork) {
            bpf_trace_printk("%d %d\n", args->parent_pid, args->child_pid);
            return 0;
        }
    """,
    "syscall tracepoint": r"""
        TRACEPOINT_PROBE(syscalls, sys_enter_rt_sigaction) { return args->sig == SIGKILL; }
        TRACEPOINT_PROBE(syscalls, sys_enter_clone) { return args->clone_flags & CLONE_NEWNET ? -EPERM : 0; }
    """,
    "raw tracepoint": r"""
        RAW_TRACEPOINT_PROBE(sched_switch) { bpf_trace_printk("%d\n", (int)ctx->args[0]); return 0; }
    """,
    "task": r"""
        #include <linux/sched.h>
        #include <linux/nsproxy.h>
        #include <linux/pid_namespace.h>
        int probe(void *ctx) {
            struct task_struct *task = (struct task_struct *)bpf_get_current_task();
            u32 ns = task->nsproxy->pid_ns_for_children->ns.inum;
            bpf_trace_printk("%d %d %d\n", task->tgid, task->real_parent->tgid, ns);
            return task->mm->pgd != NULL;
        }
    """,
    "maps and outputs": r"""
        struct event { u32 pid; u64 ts; char comm[TASK_COMM_LEN]; };
        BPF_HASH(counts, u32, u64);
        BPF_PERCPU_ARRAY(scratch, struct event, 1);
        BPF_HISTOGRAM(latency);
        BPF_STACK_TRACE(stacks, 1000);
        BPF_PERF_OUTPUT(events);
        BPF_RINGBUF_OUTPUT(ring, 8);
        int probe(struct pt_regs *ctx) {
            struct event event = { .pid = bpf_get_current_pid_tgid() >> 32, .ts = bpf_ktime_get_ns() };
            bpf_get_current_comm(&event.comm, sizeof(event.comm));
            counts.increment(event.pid);
            latency.increment(bpf_log2l(event.ts));
            stacks.get_stackid(ctx, BPF_F_USER_STACK);
            events.perf_submit(ctx, &event, sizeof(event));
            ring.ringbuf_output(&event, sizeof(event), BPF_RB_NO_WAKEUP);
            return 0;
        }
    """,
    "sockets": r"""
        #include <uapi/linux/ptrace.h>
        #include <net/sock.h>
        #include <net/inet_sock.h>
        #include <linux/tcp.h>
        #include <bcc/proto.h>
        int probe(struct pt_regs *ctx, struct sock *sk) {
            struct inet_sock *inet = (struct inet_sock *)sk;
            struct tcp_sock *tcp = (struct tcp_sock *)sk;
            u16 family = sk->__sk_common.skc_family;
            if (family != AF_INET && family != AF_INET6) return 0;
        #ifdef CONFIG_NET_NS
            bpf_trace_printk("%u\n", sk->__sk_common.skc_net.net->ns.inum);
        #endif
            if (sk->__sk_common.skc_state == TCP_ESTABLISHED)
                bpf_trace_printk("%d %d %d\n", ntohs(sk->__sk_common.skc_dport), inet->inet_sport, tcp->snd_cwnd);
            return 0;
        }
    """,
    "packets": r"""
        #include <uapi/linux/if_ether.h>
        #include <uapi/linux/ip.h>
        #include <uapi/linux/tcp.h>
        int filter(struct xdp_md *ctx) {
            void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
            struct ethhdr *eth = data;
            struct iphdr *ip = data + sizeof(*eth);
            if ((void *)(ip + 1) > end) return XDP_PASS;
            switch (eth->h_proto) {
            case htons(ETH_P_IP): return ip->protocol == IPPROTO_TCP ? XDP_DROP : XDP_PASS;
            }
            return XDP_PASS;
        }
    """,
    "constants": r"""
        #include <linux/sched.h>
        #include <linux/fs.h>
        #include <linux/blkdev.h>
        #include <linux/mman.h>
        #include <linux/socket.h>
        #include <linux/capability.h>
        struct event { char name[DNAME_INLINE_LEN], disk[DISK_NAME_LEN], interface[IFNAMSIZ]; };
        int probe(struct pt_regs *ctx, struct task_struct *task, struct file *file, struct request *rq) {
            if (task->flags & PF_KTHREAD || file->f_mode & FMODE_CREATED) return TASK_RUNNING;
            if ((rq->cmd_flags & REQ_OP_MASK) == REQ_OP_WRITE && rq->cmd_flags & REQ_SYNC) return WRITE;
            bpf_trace_printk("%d %lu\n", CAP_SYS_ADMIN + SOL_SOCKET + SCM_RIGHTS + MAP_SHARED + F_DUPFD, PAGE_OFFSET);
            return _IOC_SIZE(_IOR('T', 0x30, int)) + FUTEX_WAIT + EPOLLIN + PR_SET_NAME + MSG_DONTWAIT;
        }
    """,
    "functions": r"""
        #include <linux/tcp.h>
        #include <linux/skbuff.h>
        #include <linux/scatterlist.h>
        #include <net/inet_sock.h>
        int probe(struct pt_regs *ctx, struct sock *sk, struct sk_buff *skb, int room) {
            u32 rtt = tcp_sk(sk)->srtt_us >> 3, port = ntohs(inet_sk(sk)->inet_dport);
            struct sk_buff copy = {};
            bpf_probe_read_kernel(&copy, sizeof(copy), skb);
            bpf_trace_printk("%d %d\n", min_t(u32, max(rtt, port), 1000), min(min(room, 16), (int)sk->sk_state));
            return skb_rx_queue_recorded(&copy) ? skb_get_rx_queue(&copy) : div_u64(port, 9) + DIV_ROUND_UP(rtt, 8);
        }
    """,
    "its own mnt_namespace": r"""
        #include <linux/nsproxy.h>
        #include <linux/ns_common.h>
        struct mnt_namespace { atomic_t count; struct ns_common ns; };
        int probe(void *ctx) {
            struct task_struct *task = (struct task_struct *)bpf_get_current_task();
            return task->nsproxy->mnt_ns->ns.inum;
        }
    """,
    "many headers": r"""
        #include <linux/version.h>
        #include <uapi/linux/ptrace.h>
        #include <uapi/linux/limits.h>
        #include <linux/sched.h>
        #include <linux/fs.h>
        #include <linux/dcache.h>
        #include <linux/mount.h>
        #include <linux/mm_types.h>
        #include <linux/mmzone.h>
        #include <linux/blkdev.h>
        #include <linux/blk-mq.h>
        #include <linux/bio.h>
        #include <linux/interrupt.h>
        #include <linux/irqdesc.h>
        #include <linux/skbuff.h>
        #include <linux/netdevice.h>
        #include <linux/nsproxy.h>
        #include <net/net_namespace.h>
        #include <vmlinux.h>
        #if LINUX_VERSION_CODE < KERNEL_VERSION(5, 4, 0)
        #error "no kernel with BTF is that old"
        #endif
        int opened(struct pt_regs *ctx, struct path *path, struct file *file) {
            bpf_trace_printk("%s %d\n", path->dentry->d_name.name, path->dentry->d_inode->i_sb->s_dev >> MINORBITS);
            u16 mode = file->f_inode->i_mode;
            return S_ISREG(mode) && (file->f_flags & O_DIRECTORY);
        }
        int issued(struct pt_regs *ctx, struct request *rq) {
            bpf_trace_printk("%d %d %s\n", rq->__data_len, rq->__sector, rq->q->disk->disk_name);
            return (rq->cmd_flags & 0xff) == REQ_OP_WRITE;
        }
    """,
}

# No pointer leads here: bcc makes its own structs of what tracepoints record.
HIDDEN = "int probe(void *ctx) { return sizeof(struct trace_event_raw_sched_process_fork); }"


def lacking() -> str:
    """What these tests need and this machine has not, or ''."""
    if os.environ.get("BPFNB_KERNEL_TESTS") == "0":
        return "BPFNB_KERNEL_TESTS=0"
    if os.geteuid() != 0:
        return "needs root"
    if not KERNEL_BTF.exists():
        return f"no {KERNEL_BTF}"
    if subprocess.run([PYTHON, "-c", "from bcc import BPF"], capture_output=True).returncode:
        return f"{PYTHON} has no bcc"
    return ""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := lacking():
        (pytest.fail if os.environ.get("BPFNB_KERNEL_TESTS") == "1" else pytest.skip)(reason)
    return headers.generate(caches=[tmp_path_factory.mktemp("cache")])


def compiled(tree: Path, text: str, *, cflags: tuple[str, ...] = (), then: str = "") -> tuple[Any, str]:
    """Compile with bcc in a process of its own; the value of ``then`` there, and all that bcc and clang said."""
    job = json.dumps({"text": text, "cflags": cflags, "then": then})
    environment = {**os.environ, "BCC_KERNEL_SOURCE": str(tree)}
    done = subprocess.run([PYTHON, "-c", COMPILE], input=job, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.parametrize("name", PROGRAMS)
def test_compiles_without_a_warning(tree: Path, name: str) -> None:
    _, said = compiled(tree, PROGRAMS[name])
    assert "warning" not in said


def test_syscall_arguments_are_behind_the_wrapper(tree: Path) -> None:
    """On x86_64 and arm64 a syscall's function gets pt_regs *; without the CONFIG_ bcc would read the wrong ones."""
    functions = Path("/proc/kallsyms").read_text()
    wrapped = any(f" {prefix}_sys_getpid\n" in functions for prefix in ("__x64", "__arm64"))
    assert ("CONFIG_ARCH_HAS_SYSCALL_WRAPPER" in (tree / "include/bpfnb/config.h").read_text()) == wrapped


def test_a_tracepoint_program_loads(tree: Path) -> None:
    then = "bpf.load_func('tracepoint__sched__sched_process_fork', BPF.TRACEPOINT).fd > 0"
    assert compiled(tree, PROGRAMS["tracepoint"], then=then)[0] is True


def test_layout_is_the_running_kernels(tree: Path) -> None:
    """offsetof(task_struct, comm) is BTF's, and what is there is the name of the process that compiles and asks."""
    program = r"""
        #include <linux/sched.h>
        struct seen { u64 offset; u32 pid; char comm[TASK_COMM_LEN]; };
        BPF_HASH(found, u32, struct seen);
        TRACEPOINT_PROBE(syscalls, sys_enter_getppid) {
            struct task_struct *task = (struct task_struct *)bpf_get_current_task();
            struct seen seen = { .offset = offsetof(struct task_struct, comm), .pid = task->tgid };
            u32 pid = bpf_get_current_pid_tgid() >> 32;
            bpf_probe_read_kernel(&seen.comm, sizeof(seen.comm), &task->comm);
            found.update(&pid, &seen);
            return 0;
        }
    """
    then = """(
        bpf.attach_tracepoint(tp="syscalls:sys_enter_getppid", fn_name="tracepoint__syscalls__sys_enter_getppid"),
        os.getppid(),
        [(seen.offset, seen.pid, seen.comm.decode(), os.getpid()) for pid, seen in bpf["found"].items()
            if pid.value == os.getpid()],
    )[-1][0]"""
    offset, pid, comm, asked = compiled(tree, program, then=then)[0]
    assert offset == offset_in_btf("task_struct", "comm")
    assert pid == asked
    assert comm == "python3"


@pytest.mark.parametrize("name", ["cfs_rq", "rq"])
def test_fields_behind_padding_are_read_from_where_the_kernel_has_them(name: str) -> None:
    """offsetof() was right where the code that LLVM made was not: so the distance of pointers, not known to clang."""
    types = KernelTypes(KERNEL_BTF.read_bytes())
    (struct_,) = types.named((name,), STRUCT)
    fields = {m.name: m.bit // 8 for m in types.members(struct_) if m.name and not m.width}
    lines = "".join(
        f"key = {i}; at = (u64)&object->{field} - (u64)object; found.update(&key, &at);\n"
        for i, field in enumerate(fields)
    )
    source = f"""
    #include <linux/sched.h>
    BPF_HASH(found, u32, u64);
    int f(void *ctx) {{
        u32 key;
        u64 at;
        struct {name} *object = (struct {name} *)bpf_get_current_task();
        {lines} return 0;
    }}
    """
    with bpfnb.trace(source, attach={"profile:99": "f"}, headers="btf") as session:
        until(lambda: len(session.maps["found"]) == len(fields), 10)
        assert dict(zip(fields, dict(sorted(session.maps["found"].items())).values(), strict=True)) == fields


def test_what_macros_say_is_what_the_kernel_has(tree: Path) -> None:
    """Constants that differ between kernels are taken from its types."""
    program = """
        #include <linux/dcache.h>
        #include <linux/blkdev.h>
        BPF_ARRAY(found, u64, 3);
        int probe(void *ctx) { return 0; }
        _Static_assert(DNAME_INLINE_LEN >= 32 && DNAME_INLINE_LEN < sizeof(struct dentry), "");
        _Static_assert(REQ_SYNC == 1ULL << __REQ_SYNC, "");
        _Static_assert(PAGE_SIZE == 1UL << PAGE_SHIFT, "");
    """
    compiled(tree, program)


def test_short_names_of_a_sockets_fields_come_with_its_headers_alone(tree: Path) -> None:
    compiled(
        tree, "struct mine { int sk_state, inet_num; }; int probe(void *ctx) { struct mine m = {}; return m.sk_state; }"
    )


def offset_in_btf(name: str, field: str) -> int:
    btf = KERNEL_BTF.read_bytes()
    types = KernelTypes(btf)
    (found, *_) = (t for t in types.all if t.name == name and t.vlen)
    for at in range(found.at, found.at + 12 * found.vlen, 12):
        text, _, bits = struct.unpack_from("=III", btf, at)
        if types._string(text) == field:
            return (bits & 0xFFFFFF) // 8
    raise LookupError(field)


def test_what_no_pointer_leads_to_is_in_everything(tree: Path) -> None:
    with pytest.raises(RuntimeError) as refused:
        compiled(tree, HIDDEN)
    assert headers.lacks_a_type(str(refused.value), tree)
    compiled(tree, HIDDEN, cflags=headers.EVERYTHING)


@pytest.mark.parametrize(
    ("body", "there"),
    [
        ("return sizeof(struct css_task_iter);", True),
        ("kuid_t id = {}; return id.val;", True),
        ("return ((struct task_struct *)ctx)->pid;", True),
        ("return TCPF_LISTEN;", True),
        ("return 0", False),  # an ordinary mistake
        ("struct task_sturct t = {}; return 0;", False),
        ("return pid;", False),  # there is a struct of that name
        ("spid_t p = 0; return p;", False),
    ],
)
def test_only_what_the_kernel_has_is_a_missing_type(tree: Path, body: str, there: bool) -> None:
    with pytest.raises(RuntimeError) as refused:
        compiled(tree, f"int probe(void *ctx) {{ {body} }}")
    assert headers.lacks_a_type(str(refused.value), tree) == there
    if there:
        compiled(tree, f"int probe(void *ctx) {{ {body} }}", cflags=headers.EVERYTHING)


def test_what_real_headers_give_every_program_is_there(tree: Path) -> None:
    """bcc's own includes bring linux/types.h and uapi/linux/bpf.h."""
    program = """
        struct mine { struct list_head list; struct hlist_head heads[2]; struct callback_head rcu; atomic_t count; };
        int probe(void *ctx) { return sizeof(struct mine) + sizeof(struct bpf_link_info) + BTF_F_COMPACT; }
    """
    compiled(tree, program)


# The cache.


def test_the_second_call_makes_nothing(tree: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tree.parent.rglob("*")}
    assert headers.generate(caches=[tree.parent]) == tree
    assert {path: path.stat().st_mtime_ns for path in tree.parent.rglob("*")} == before


def test_nobody_else_can_write_the_tree(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)


def test_another_kernel_has_another_tree(tree: Path) -> None:
    other = headers.generate(caches=[tree.parent], release="6.99.1-other")
    assert other != tree
    assert f"LINUX_VERSION_CODE {(6 << 16) + (99 << 8) + 1}" in (other / "include/linux/version.h").read_text()
    shutil.rmtree(other)


@pytest.mark.parametrize("spoil", [lambda p: p.chmod(0o777), lambda p: p.chmod(0o775), lambda p: os.chown(p, 65534, 0)])
@pytest.mark.parametrize("what", ["cache", "parent", "tree"])
def test_a_folder_that_others_can_write_is_refused(tree: Path, tmp_path: Path, what: str, spoil: Any) -> None:
    cache = tmp_path / "parent" / "cache"
    shutil.copytree(tree, cache / tree.name)
    for path in (tmp_path / "parent", cache, cache / tree.name):
        path.chmod(0o755)
    assert headers.generate(caches=[cache]) == cache / tree.name
    spoil({"parent": tmp_path / "parent", "cache": cache, "tree": cache / tree.name}[what])
    with pytest.raises(SetupError, match="cannot be trusted"):
        headers.generate(caches=[cache])


def test_a_process_that_comes_second_uses_what_is_there(tree: Path) -> None:
    assert write_tree(tree, {"include/linux/kconfig.h": "#error half a tree"}) == tree
    assert "#error" not in (tree / "include/linux/kconfig.h").read_text()
    assert not list(tree.parent.glob(".new-*"))


def test_a_folder_that_cannot_be_made(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="cannot be written"):
        headers.generate(caches=[tmp_path / "file" / "cache"])


# Which headers bcc is to use.


def real_headers(modules: Path, release: str) -> None:
    for folder, name, text in (
        ("source", "linux/kconfig.h", ""),
        ("build", "generated/autoconf.h", ""),
        ("build", "generated/utsrelease.h", f'#define UTS_RELEASE "{release}"\n'),
    ):
        path = modules / folder / "include" / name
        path.parent.mkdir(parents=True) if not path.parent.exists() else None
        path.write_text(text)


def test_real_headers_are_used_when_they_are_this_kernels(tmp_path: Path) -> None:
    release = os.uname().release
    real_headers(tmp_path / "lib/modules" / release, release)
    assert headers.kernel_source(tmp_path) is None


def test_real_headers_of_another_kernel_are_not_used(tmp_path: Path, tree: Path) -> None:
    btf = btf_of(tmp_path)
    btf.parent.mkdir(parents=True)
    btf.symlink_to(KERNEL_BTF)
    real_headers(tmp_path / "lib/modules" / os.uname().release, "6.1.0-other")
    assert headers.kernel_source(tmp_path, [tree.parent]) == tree


def test_neither_headers_nor_btf(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"no headers for Linux .* no BTF") as raised:
        headers.kernel_source(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "btf", [b"", b"not BTF at all", struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 12, 12, 1) + bytes(13)]
)
def test_broken_btf_is_a_setup_error(tmp_path: Path, btf: bytes) -> None:
    (tmp_path / "btf").write_bytes(btf)
    with pytest.raises(SetupError, match="cannot be read"):
        headers.generate(tmp_path / "btf", caches=[tmp_path / "cache"])
