"""The files of a header tree, and what is in them."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import stat
from pathlib import Path

from bpfnb.language.vocabulary import helpers
from bpfnb.tracer.compile.headers.kernel_types import KernelTypes, dump
from bpfnb.tracer.kernel.btf import PTR, STRUCT, TYPEDEF, UNION

__all__ = ["EVERYTHING", "GENERATED", "HAND_WRITTEN", "NAMES", "body", "files", "guarded", "lacks_a_type", "replaced"]

EVERYTHING = ("-include", "bpfnb/all.h")
GENERATED = ("core.h", "kernel.h", "all.h")  # in bpfnb/: written by libbpf, the other files by hand
HAND_WRITTEN = Path(__file__).parents[2] / "include"
NAMES = "names"  # in a tree: all that EVERYTHING brings, a line each
# clang's words for a type it has seen no definition of, and for names it does not know: 'foo_t' (aka 'struct foo').
_LACKING = re.compile(
    r"error: .*\b(?:incomplete (?:\w+ )*type|undeclared identifier|unknown type name) ('[^']+'(?: \(aka '[^']+'\))?)"
)


def lacks_a_type(log: str, source: str | Path) -> bool:
    """Whether clang misses a type or a constant that EVERYTHING would bring; a misspelt name is not worth the wait.

    ``source``: a tree of ``generate``.
    """
    said = " ".join(found[1] for found in _LACKING.finditer(log))
    lacking = set(re.findall(r"(?:struct |union |enum )?\w+", said))
    return bool(lacking) and not lacking.isdisjoint((Path(source) / NAMES).read_text().splitlines())


def _words(text: str) -> list[str]:
    return text.split()


# Headers that core.h satisfies: those bcc includes in every program, and those that have nothing more.
_BARE_HEADERS = _words("""
    asm/page.h linux/bpf.h linux/bpf_common.h linux/compiler.h linux/log2.h linux/stddef.h linux/types.h
    uapi/linux/bpf.h uapi/linux/bpf_common.h uapi/linux/if_packet.h uapi/linux/ptrace.h uapi/linux/types.h
""")
# Headers that bcc programs include for constants, and which core.h has the types of.
_CORE_HEADERS = _words("""
    asm/byteorder.h asm/errno.h asm/ioctl.h asm/mman.h asm/ptrace.h asm/socket.h asm/types.h asm-generic/errno.h
    linux/bitops.h linux/bits.h linux/byteorder/generic.h linux/capability.h linux/container_of.h linux/err.h
    linux/errno.h linux/eventpoll.h linux/falloc.h linux/fcntl.h linux/futex.h linux/icmpv6.h linux/if.h linux/if_arp.h
    linux/if_ether.h linux/if_packet.h linux/in.h linux/in6.h linux/init.h linux/ioctl.h linux/ipc.h linux/kdev_t.h
    linux/kernel.h linux/limits.h linux/math64.h linux/minmax.h linux/mman.h linux/prctl.h linux/ptrace.h
    linux/resource.h linux/seccomp.h linux/socket.h linux/sockios.h linux/string.h linux/uaccess.h linux/unistd.h
    linux/xattr.h uapi/asm/ptrace.h uapi/linux/bpf_perf_event.h uapi/linux/capability.h uapi/linux/errno.h
    uapi/linux/fs.h uapi/linux/futex.h uapi/linux/icmp.h uapi/linux/icmpv6.h uapi/linux/if.h uapi/linux/if_arp.h
    uapi/linux/if_ether.h uapi/linux/if_vlan.h uapi/linux/in.h uapi/linux/in6.h uapi/linux/ip.h uapi/linux/ipv6.h
    uapi/linux/limits.h uapi/linux/mman.h uapi/linux/perf_event.h uapi/linux/pkt_cls.h uapi/linux/sched.h
    uapi/linux/socket.h uapi/linux/tcp.h uapi/linux/time.h uapi/linux/udp.h uapi/linux/utsname.h uapi/linux/wait.h
""")
# Headers that bcc's own tools and examples include for the kernel's structs, and a few of their kind.
_KERNEL_HEADERS = _words("""
    linux/aio.h linux/binfmts.h linux/bio.h linux/blk-mq.h linux/blk_types.h linux/blkdev.h linux/cgroup.h
    linux/compaction.h linux/cred.h linux/dcache.h linux/delay.h linux/device.h linux/ethtool.h linux/fdtable.h
    linux/file.h linux/fs.h linux/fs_struct.h linux/genhd.h linux/icmp.h linux/if_vlan.h linux/inet.h linux/init_task.h
    linux/interrupt.h linux/ip.h linux/ipv6.h linux/irq.h linux/irqdesc.h linux/kasan.h linux/kobject.h linux/kref.h
    linux/ktime.h linux/list.h linux/magic.h linux/memcontrol.h linux/mm.h linux/mm_types.h linux/mmzone.h
    linux/module.h linux/mount.h linux/mutex.h linux/net.h linux/netdevice.h linux/netfilter.h linux/nfs_fs.h
    linux/ns_common.h linux/nsproxy.h linux/oom.h linux/path.h linux/perf_event.h linux/pid.h linux/pid_namespace.h
    linux/pipe_fs_i.h linux/poll.h linux/sched.h linux/sched/mm.h linux/sched/signal.h linux/sched/task.h
    linux/security.h linux/signal.h linux/skbuff.h linux/slab.h linux/slab_def.h linux/slub_def.h linux/spinlock.h
    linux/stat.h linux/swap.h linux/tcp.h linux/time.h linux/time64.h linux/timer.h linux/tty.h linux/udp.h linux/uio.h
    linux/un.h linux/user_namespace.h linux/utsname.h linux/version_types.h linux/virtio.h linux/wait.h
    linux/workqueue.h net/af_unix.h net/inet_connection_sock.h net/inet_sock.h net/ip.h net/ipv6.h net/net_namespace.h
    net/request_sock.h net/route.h net/sock.h net/tcp.h net/tcp_states.h net/udp.h uapi/linux/fcntl.h
    uapi/linux/openat2.h uapi/linux/stat.h uapi/linux/uio.h uapi/linux/un.h
    linux/backing-dev.h linux/bvec.h linux/completion.h linux/cpumask.h linux/dma-mapping.h linux/elevator.h
    linux/exportfs.h linux/fsnotify.h linux/gfp.h linux/gfp_types.h linux/hrtimer.h linux/idr.h linux/if_tun.h
    linux/inetdevice.h linux/io_uring_types.h linux/jiffies.h linux/kthread.h linux/ktime.h linux/kvm_host.h
    linux/llist.h linux/lsm_hooks.h linux/mnt_namespace.h linux/namei.h linux/net_namespace.h linux/netlink.h
    linux/nfs.h linux/nfs_fs_sb.h linux/nfs_xdr.h linux/numa.h linux/page-flags.h linux/pagemap.h linux/pagevec.h
    linux/pci.h linux/percpu.h linux/preempt.h linux/printk.h linux/proc_fs.h linux/radix-tree.h linux/rbtree.h
    linux/rcupdate.h linux/rtnetlink.h linux/rwsem.h linux/scatterlist.h linux/sched/cputime.h linux/sched/prio.h
    linux/sched/rt.h linux/seq_file.h linux/shm.h linux/smp.h linux/sock_diag.h linux/srcu.h linux/sunrpc/clnt.h
    linux/sunrpc/sched.h linux/syscalls.h linux/sysctl.h linux/tracepoint.h linux/tty_driver.h linux/uidgid.h
    linux/virtio_config.h linux/vmalloc.h linux/vmstat.h linux/writeback.h linux/xarray.h net/arp.h
    net/dst.h net/flow.h net/genetlink.h net/icmp.h net/inet_common.h net/inet_hashtables.h net/inet_timewait_sock.h
    net/ip_fib.h net/netfilter/nf_conntrack.h net/neighbour.h net/netlink.h net/netns/generic.h net/pkt_sched.h
    net/protocol.h net/raw.h net/sch_generic.h net/scm.h net/snmp.h net/xdp.h scsi/scsi_cmnd.h scsi/scsi_device.h
""")
# Of these, the headers that give a socket's fields their shorter names.
_SOCKET_HEADERS = _words("""
    linux/ipv6.h linux/netlink.h linux/sock_diag.h linux/tcp.h linux/udp.h net/af_unix.h net/icmp.h net/inet_common.h
    net/inet_connection_sock.h net/inet_hashtables.h net/inet_sock.h net/inet_timewait_sock.h net/ip.h net/ipv6.h
    net/netlink.h net/protocol.h net/raw.h net/request_sock.h net/route.h net/scm.h net/sock.h net/tcp.h net/udp.h
""")
# What no header of the kernel's shows: programs that need them bring their own definitions.
_PRIVATE = _words("mnt_namespace mount nameidata")
# What uapi/linux/bpf.h, ptrace.h and the protocol headers define, as far as programs are handed it or ask for it, and
# what linux/types.h does.
_CORE_TYPES = _words("""
    pt_regs user_pt_regs user_regs_struct __sk_buff xdp_md bpf_attr bpf_btf_info bpf_cgroup_dev_ctx
    bpf_cgroup_storage_key bpf_core_relo bpf_cpumap_val bpf_devmap_val bpf_dynptr bpf_fib_lookup bpf_flow_keys
    bpf_func_info bpf_insn bpf_iter_link_info bpf_iter_num bpf_line_info bpf_link_info bpf_list_head bpf_list_node
    bpf_lpm_trie_key bpf_lpm_trie_key_hdr bpf_lpm_trie_key_u8 bpf_map_info bpf_perf_event_data bpf_perf_event_value
    bpf_pidns_info bpf_prog_info bpf_raw_tracepoint_args bpf_rb_node bpf_rb_root bpf_redir_neigh bpf_refcount
    bpf_sk_lookup bpf_sock bpf_sock_addr bpf_sock_ops bpf_sock_tuple bpf_sockopt bpf_spin_lock bpf_stack_build_id
    bpf_sysctl bpf_tcp_sock bpf_timer bpf_tunnel_key bpf_wq bpf_xdp_sock bpf_xfrm_state btf_ptr sk_msg_md
    sk_reuseport_md ethhdr iphdr ipv6hdr tcphdr udphdr icmphdr icmp6hdr in_addr in6_addr sockaddr sockaddr_in
    sockaddr_in6 sockaddr_ll timespec64 iovec __kernel_timespec list_head hlist_head hlist_node callback_head
""")
# Names of types that linux/types.h has or the format files of syscall tracepoints use, and which are not integers.
_CORE_TYPEDEFS = _words("""
    atomic_t atomic64_t __sighandler_t cap_user_data_t cap_user_header_t fd_set old_sigset_t sigset_t siginfo_t stack_t
    compat_sigset_t compat_stack_t
""")
# Enumerations that no field has as its type, told by the beginning of a constant in them. Most have no name of
# their own, and some were macros before; a kernel that has none of a kind simply gives none.
_CORE_CONSTANTS = (
    "BPF_", "BTF_F_", "IPPROTO_IP", "LANDLOCK_RULE_", "SK_PASS", "SOCK_STREAM", "TASK_COMM_LEN", "TCP_BPF_IW",
    "TCP_ESTABLISHED", "TCX_", "XDP_", "true",
)  # fmt: skip
_KERNEL_CONSTANTS = (
    "COMPACT_SKIPPED", "FAULT_FLAG_", "HI_SOFTIRQ", "IRQ_NONE", "ITER_IOVEC", "MM_FILEPAGES", "NR_FREE_PAGES",
    "PERF_COUNT_", "PERF_TYPE_", "PG_locked", "PIDTYPE_PID", "REQ_OP_", "RQF_", "SKB_DROP", "SKB_NOT_DROPPED",
    "SS_CONNECTED", "TCPF_", "TCP_CA_Open", "VM_FAULT_", "WMARK_MIN", "WORK_STRUCT", "ZONE_NORMAL", "__REQ_", "__RQF_",
)  # fmt: skip
# Where pointers are followed from for kernel.h: what traced functions are most often handed.
_ROOTS = _words("""
    task_struct file inode dentry super_block vfsmount mount path qstr filename kiocb iov_iter linux_binprm open_how
    mm_struct vm_area_struct page folio zone pglist_data mem_cgroup kmem_cache oom_control scan_control compact_control
    nsproxy pid_namespace net user_namespace uts_namespace cred cgroup css_set
    bio request request_queue gendisk block_device blk_mq_hw_ctx
    socket sock inet_sock inet_connection_sock inet_timewait_sock request_sock tcp_sock tcp_request_sock udp_sock
    unix_sock sk_buff tcp_skb_cb msghdr cmsghdr net_device napi_struct sockaddr_un neighbour rtable
    irqaction irq_desc softirq_action work_struct timer_list hrtimer module perf_event kernel_siginfo
    bpf_map bpf_prog virtqueue scatterlist tty_struct pipe_inode_info rq cfs_rq pid upid signal_struct ethtool_cmd
    vlan_hdr vlan_ethhdr linux_dirent64 kstat rusage rlimit seq_file key kobject device
""")
# Fields that not every kernel has and tools ask for, as BPFNB_HAS_CFS_RQ_H_NR_DELAYED.
_TOOLS_FIELDS = (
    ("cfs_rq", "rq"), ("cfs_rq", "h_nr_runnable"), ("cfs_rq", "h_nr_delayed"), ("folio", "_folio_order"),
)  # fmt: skip
# Names that bcc's helpers.h or most programs use. BTF has a typedef only if something in the kernel is of that type.
_INTEGERS = {
    "bool": "_Bool", "size_t": "unsigned long", "ssize_t": "long", "uintptr_t": "unsigned long", "ptrdiff_t": "long",
    "u8": "unsigned char", "u16": "unsigned short", "u32": "unsigned int", "u64": "unsigned long long",
    "s8": "signed char", "s16": "short", "s32": "int", "s64": "long long",
    "__u8": "unsigned char", "__u16": "unsigned short", "__u32": "unsigned int", "__u64": "unsigned long long",
    "__s8": "signed char", "__s16": "short", "__s32": "int", "__s64": "long long",
    "__le16": "unsigned short", "__le32": "unsigned int", "__le64": "unsigned long long",
    "__be16": "unsigned short", "__be32": "unsigned int", "__be64": "unsigned long long",
    "__sum16": "unsigned short", "__wsum": "unsigned int",
    "int8_t": "signed char", "int16_t": "short", "int32_t": "int", "int64_t": "long long",
    "uint8_t": "unsigned char", "uint16_t": "unsigned short", "uint32_t": "unsigned int",
    "uint64_t": "unsigned long long",
}  # fmt: skip


def files(btf: bytes, release: str) -> dict[str, str]:
    """Return the whole tree: path to text."""
    types = KernelTypes(btf)
    core, kernel, everything = dump(btf, (_core(types), _kernel(types), range(1, len(types.all))))
    constants = types.enumerators()
    files = {
        f"include/{path.relative_to(HAND_WRITTEN)}": _replaceable(_without(constants, path.read_text()))
        for path in HAND_WRITTEN.rglob("*.h")
    }
    files["include/bpfnb/config.h"] = guarded("config.h", _config(types))
    files["include/bpfnb/core.h"] = guarded("core.h", core + _missing_typedefs(types) + _missing_helpers(constants))
    kernel += _without(constants, _derived(types, constants))
    files["include/bpfnb/kernel.h"] = guarded("kernel.h", _includes("bpfnb/core.h") + kernel)
    files["include/bpfnb/all.h"] = guarded("all.h", _includes("bpfnb/kernel.h") + everything)
    files["include/bpfnb/constants.h"] = guarded("constants.h", _without(constants, _python_constants()))
    files["include/linux/version.h"] = guarded("version.h", _version(release))
    macros = set(re.findall(r"#define (\w+)", kernel))
    files[NAMES] = "\n".join(sorted(types.tags() | types.names(TYPEDEF) | constants | macros))
    files["include/vmlinux.h"] = _includes("bpfnb/all.h")
    for name in _BARE_HEADERS:
        files[f"include/{name}"] = _includes("linux/kconfig.h")
    for name in _CORE_HEADERS:
        files[f"include/{name}"] = _includes("linux/kconfig.h", "bpfnb/uapi.h")
    for name in _KERNEL_HEADERS:
        sockets = ["bpfnb/sockets.h"] if name in _SOCKET_HEADERS else []
        files[f"include/{name}"] = _includes("bpfnb/kernel.h", "bpfnb/uapi.h", "bpfnb/internals.h", *sockets)
    return files


def _includes(*names: str) -> str:
    return "".join(f"#include <{name}>\n" for name in names)


def _guard(name: str) -> str:
    return "BPFNB_" + re.sub(r"\W", "_", name).upper()


def guarded(name: str, text: str) -> str:
    guard = _guard(name)
    return _replaceable(f"#ifndef {guard}\n#define {guard}\n{text}\n#endif\n")


_GUARDED = re.compile(r"(#ifndef (BPFNB_\w+_H)\n#define \2\n)(.*)(#endif\n)\Z", re.S)
_REPLACEABLE = re.compile(r"#include BPFNB_\w+_H_OTHER\n#else\n(.*)#endif\n#endif\n\Z", re.S)


def _replaceable(text: str) -> str:
    """Return a file that includes another in its own place where a macro says so."""
    return _GUARDED.sub(
        lambda found: (
            f"{found[1]}#ifdef {found[2]}_OTHER\n#include {found[2]}_OTHER\n#else\n{found[3]}#endif\n{found[4]}"
        ),
        text,
    )


def body(text: str) -> str:
    """Return what a file of bpfnb/ has between its guards: what another one has to hold in its place."""
    found = _REPLACEABLE.search(text)
    return found[1] if found else ""


def replaced(file: str, other: str) -> str:
    """Return the flag that has clang read ``other`` in place of a file of bpfnb/, "core.h"."""
    return f'-D{_guard(file)}_OTHER="{other}"'


def _without(constants: set[str], text: str) -> str:
    """Return the text without macros that this kernel has as enumerators: there they would break the enumeration."""

    def keep(found: re.Match[str]) -> str:
        return "" if found[1] in constants else found[0]

    return re.sub(r"^#define (\w+) .*\n", keep, text, flags=re.MULTILINE)


def _config(types: KernelTypes) -> str:
    """Return the CONFIG_ macros that bcc and its tools ask for, as far as the kernel's types tell."""
    options = ["BPF_SYSCALL"]
    machine = os.uname().machine
    options += {"x86_64": ["64BIT", "X86_64"], "aarch64": ["64BIT", "ARM64"]}.get(machine, ["64BIT"])
    # With the wrapper a syscall's function takes struct pt_regs *, so its name has the architecture in front:
    # arch/x86/include/asm/syscall_wrapper.h, arch/arm64/include/asm/syscall_wrapper.h.
    if types.has_function("__x64_sys_getpid", "__x64_sys_read", "__arm64_sys_getpid", "__arm64_sys_read"):
        options.append("ARCH_HAS_SYSCALL_WRAPPER")
    # A field that stands in the struct only with the option: include/net/net_namespace.h, include/linux/mmzone.h.
    fields = {"NET_NS": ("possible_net_t", "net"), "NUMA": ("zone", "node")}
    options += [option for option, (name, field) in fields.items() if types.has_field(name, field)]
    text = "".join(f"#define CONFIG_{option} 1\n" for option in options)
    text += f"#define PAGE_SHIFT {os.sysconf('SC_PAGE_SIZE').bit_length() - 1}\n"
    # Functions of internals.h read these, and tools (bpfnb/tools) those that are called as the field itself is.
    functions = {"SCATTERLIST": ("scatterlist", "page_link"), "SKB_QUEUES": ("sk_buff", "queue_mapping")}
    fields = functions | {f"{name}_{field}".upper(): (name, field) for name, field in _TOOLS_FIELDS}
    return text + "".join(f"#define BPFNB_HAS_{n} 1\n" for n, field in fields.items() if types.has_field(*field))


def _derived(types: KernelTypes, constants: set[str]) -> str:
    """Macros whose values differ between kernels, from what the types say about them."""
    lines = []
    # Of another length in some releases; the array that holds the short name tells.
    for name, field in (("dentry", "d_iname"), ("shortname_store", "string")):
        length = types.array_length(name, field)
        if length and "DNAME_INLINE_LEN" not in constants:
            lines.append(f"#define DNAME_INLINE_LEN {length}")
            break
    # enum req_flag_bits, enum rqf_flags: the number of a bit is an enumerator, the bit itself a macro.
    for name in sorted(constants):
        if name.startswith(("__REQ_", "__RQF_")) and not name.endswith(("_BITS", "_LAST", "_FIRST")):
            lines.append(f"#define {name[2:]} (1ULL << {name})")
        # Enumerated since v6.10; before, the values changed too often to keep them by hand.
        if found := re.fullmatch(r"___GFP_(\w+)_BIT", name):
            lines += [f"#define ___GFP_{found[1]} BIT({name})", f"#define __GFP_{found[1]} ((gfp_t)___GFP_{found[1]})"]
    return "".join(f"{line}\n" for line in lines)


def _version(release: str) -> str:
    """linux/version.h. ``release`` may have one number only, as in 7.0-rc1."""
    major, minor, patch = ([int(n) for n in re.findall(r"\d+", release.split("-")[0])] + [0, 0, 0])[:3]
    return (
        f"#define LINUX_VERSION_CODE {(major << 16) + (minor << 8) + min(patch, 255)}\n"
        "#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))\n"
        f"#define LINUX_VERSION_MAJOR {major}\n"
    )


def _python_constants() -> str:
    """Constants of this architecture that Python's own modules were compiled with."""
    found: dict[str, int] = {name: number for number, name in errno.errorcode.items()}
    for module, pattern in (
        (os, r"O_[A-Z]+"),
        (stat, r"S_I[A-Z]+"),
        (socket, r"AF_[A-Z0-9]+"),
        (signal, r"SIG(?!RT)[A-Z0-9]+"),
    ):
        for name, value in vars(module).items():
            if re.fullmatch(pattern, name) and isinstance(value, int):
                found[name] = int(value)
    # The C library says 0, since for its callers there is nothing to ask for; the kernel sets the bit.
    found.pop("O_LARGEFILE", None)
    return "".join(f"#define {name} {value}\n" for name, value in sorted(found.items()))


def _missing_typedefs(types: KernelTypes) -> str:
    known = types.names(TYPEDEF)
    return "".join(f"typedef {integer} {name};\n" for name, integer in _INTEGERS.items() if name not in known)


def _missing_helpers(constants: set[str]) -> str:
    """Numbers of the helpers that bcc's helpers.h declares and this kernel is too old to know."""
    numbers = {f"BPF_FUNC_{name.removeprefix('bpf_')}": helper.number for name, helper in helpers().items()}
    return "".join(f"#define {name} {number}\n" for name, number in numbers.items() if name not in constants)


def _core(types: KernelTypes) -> list[int]:
    """Return the types of core.h."""
    wanted = types.integer_typedefs()
    wanted += types.named(_CORE_TYPEDEFS, TYPEDEF)
    wanted += types.named(_CORE_TYPES, STRUCT, UNION)
    wanted += types.enums_with(_CORE_CONSTANTS)
    # bcc turns a tracepoint's format file into a struct; trace_event_raw_* is the kernel's own struct of the same
    # fields. Only pointers may point to what is not known.
    for i in types.structs("trace_event_raw_"):
        wanted += [to for to in types.targets(i) if types.all[to].kind != PTR]
    return wanted


def _kernel(types: KernelTypes) -> list[int]:
    """Return the types of kernel.h."""
    roots = types.named(_ROOTS, STRUCT, UNION)
    private = set(types.named(_PRIVATE, STRUCT))
    return types.enums_with(_KERNEL_CONSTANTS) + roots + types.reachable(roots, private)
