"""A tree of kernel headers for bcc, made from the running kernel's own type information (BTF).

bcc compiles against the kernel's headers. A headers package is often not installed, and headers of another
release give wrong struct layouts without a word. BTF is always the running kernel's.

    choose(wish)            the headers to compile a cell against
    kernel_source()         what BCC_KERNEL_SOURCE should be, where nobody wishes for anything else
    generate(btf)           the tree for one kernel's BTF, from the cache when it is there
    EVERYTHING              clang flags that bring in all of the kernel's types
    lacks_a_type(log, ...)  whether a failed compilation is worth repeating with EVERYTHING
    replaced(file, other)   the clang flag that puts another text in the place of a file's (clashes.py)

How bcc finds its way in the tree (its src/cc/frontends/clang/loader.cc and kbuild_helper.cc): it changes to the
folder BCC_KERNEL_SOURCE, which must hold include/linux/kconfig.h, and compiles with ``-Iinclude -Iinclude/uapi``
and ``-include ./include/linux/kconfig.h`` ahead of everything else. Its helpers.h then includes uapi/linux/bpf.h,
uapi/linux/if_packet.h, linux/version.h, linux/log2.h and asm/page.h.

clang parses all of it three times for each cell, so the types come in three tiers, each including the one before:

    bpfnb/core.h    always there: integer types, what BPF programs are handed, what tracepoints record
    bpfnb/kernel.h  every type that can be reached by following pointers from the usual roots (_ROOTS);
                    linux/sched.h, net/sock.h and the like are one-line includes of it
    bpfnb/all.h     everything BTF knows; also under the name vmlinux.h

What is not a type is kept by hand in include/: macros.h is always there, uapi.h and internals.h come with the headers
that have such things, sockets.h with those that give a socket's fields their shorter names.

A cell that needs no kernel struct compiles in 0.10 s with the first, 0.22 s with the second, 0.53 s with the third
(Linux 6.18, clang 14). A tier never changes what a type is: what is missing from it is an error of clang's.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import hashlib
import itertools
import os
import re
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from bpfnb.errors import ProgramError, SetupError
from bpfnb.language.vocabulary import HELPERS_FILE, helpers
from bpfnb.tracer.kernel.btf import (
    ARRAY,
    ENUM,
    ENUM64,
    FUNC,
    INT,
    KERNEL_BTF,
    OTHER_NAMES,
    PTR,
    STRUCT,
    TYPEDEF,
    UNION,
    Types,
    btf_of,
)
from bpfnb.tracer.kernel.files import UNREADABLE, read_text

__all__ = [
    "EVERYTHING",
    "GENERATED",
    "KernelTypes",
    "Tree",
    "body",
    "choose",
    "generate",
    "kernel_source",
    "lacks_a_type",
    "replaced",
    "whole",
    "write_tree",
]

EVERYTHING = ("-include", "bpfnb/all.h")
GENERATED = ("core.h", "kernel.h", "all.h")  # in bpfnb/: written by libbpf, the other files by hand

_libc = ctypes.CDLL(None, use_errno=True)
_ROOT = Path("/")
_CACHE = Path("/var/cache/bpfnb")
_TRACER = Path(__file__).parents[1]
_HAND_WRITTEN = _TRACER / "include"
_NEW = ".new-"
_NAMES = "names"  # in a tree: all that EVERYTHING brings, a line each
_DIGESTS = "digests"  # in a tree: what each of its other files has in it
_LOCK_TIMEOUT = 30.0  # seconds for another process to write its tree; it takes one or two
_UNUSED_DAYS = 30  # then a tree is removed
_ABANDONED_SECONDS = 3600  # then half a tree is
_verified: dict[Path, dict[str, tuple[int, int]]] = {}  # trees that were whole, and their files' sizes and dates then
_in_use: set[Path] = set()  # trees that this process uses

# clang's words for a type it has seen no definition of, and for names it does not know: 'foo_t' (aka 'struct foo').
_LACKING = re.compile(
    r"error: .*\b(?:incomplete (?:\w+ )*type|undeclared identifier|unknown type name) ('[^']+'(?: \(aka '[^']+'\))?)"
)


class Tree(NamedTuple):
    """Headers to compile against. ``source``: what BCC_KERNEL_SOURCE should be, "" where bcc finds them by itself.
    ``flags``: for clang, where that is not all. ``generated``: made from BTF. ``warning``: for the user, or "".
    """

    source: str = ""
    flags: tuple[str, ...] = ()
    generated: bool = False
    warning: str = ""


def choose(wish: str) -> Tree:
    """The headers for a cell. ``wish``: "auto" (as kernel_source), "btf", or a folder of kernel headers.

    ProgramError where the folder has none; SetupError as kernel_source and generate.
    """
    if wish == "auto":
        source = kernel_source()
        return Tree(str(source), generated=True) if source else Tree()
    if wish == "btf":
        return Tree(str(generate(_require_btf(KERNEL_BTF))), generated=True)
    return _chosen(Path(wish))


def kernel_source(root: Path = _ROOT, caches: Sequence[Path] = ()) -> Path | None:
    """The folder for BCC_KERNEL_SOURCE, made when missing; None when bcc finds this kernel's real headers by itself.

    ``root``: where /lib/modules and the kernel's BTF are looked for. ``caches``: see generate.
    SetupError when there are neither real headers nor BTF, or no safe folder to keep the tree in.
    """
    release = os.uname().release
    if _has_real_headers(root / "lib/modules" / release, release):
        return None
    return generate(_require_btf(btf_of(root)), caches=caches)


def generate(btf: Path = KERNEL_BTF, *, caches: Sequence[Path] = (), release: str | None = None) -> Path:
    """The header tree for the kernel described by ``btf``, from the cache, or made and put there.

    ``caches``: folders to keep trees in, of which the first that can be written is taken; by default /var/cache/bpfnb
    and bpfnb in the user's cache folder. ``release``: as ``uname -r`` says, by default this kernel's.
    """
    release = release or os.uname().release
    name = _tree_name(btf, release)
    failed = []
    for folder in caches or (_CACHE, _user_cache()):
        tree = folder / name
        if tree.is_dir() and whole(_trusted(tree)):
            return _used(_trusted(tree))
        try:
            if _prepare(folder):
                return _put(tree, lambda: _files(btf.read_bytes(), release))
            failed.append(f"{folder} cannot be written")
        except OSError as error:
            failed.append(f"{folder}: {error.strerror}")
    raise SetupError(
        f"the kernel's types cannot be kept: {'; '.join(failed)}", hint="XDG_CACHE_HOME may name another folder"
    )


def whole(tree: Path) -> bool:
    """Whether a tree of ``generate`` is as it was written. All of it is read the first time, and when a file's date or
    size is another than then."""
    try:
        dates = _dates(tree)
        if _verified.get(tree) != dates:
            _verified.pop(tree, None)
            text = (tree / _DIGESTS).read_text()
            if text != _digests({name: (tree / name).read_bytes() for name in dates if name != _DIGESTS}):
                return False
            _verified[tree] = dates
    except (OSError, ValueError):
        return False
    return True


def _require_btf(btf: Path) -> Path:
    if not btf.exists():
        release = os.uname().release
        raise SetupError(
            f"there are no headers for Linux {release}, and its kernel has no BTF ({btf}) to make them from",
            hint="where headers of this kernel are in some other place, name it: --headers PATH",
        )
    return btf


def lacks_a_type(log: str, source: str | Path) -> bool:
    """Whether clang misses a type or a constant that EVERYTHING would bring; a misspelt name is not worth the wait.

    ``source``: a tree of ``generate``.
    """
    said = " ".join(found[1] for found in _LACKING.finditer(log))
    lacking = set(re.findall(r"(?:struct |union |enum )?\w+", said))
    return bool(lacking) and not lacking.isdisjoint((Path(source) / _NAMES).read_text().splitlines())


# Where trees are kept.


def _has_real_headers(modules: Path, release: str) -> bool:
    """Whether bcc will find headers in a /lib/modules folder, and they are of exactly this release.

    As bcc chooses: ``source`` for the sources when both ``source`` and ``build`` are there, else ``build``.
    Headers of another kernel are often symlinked there; generated/utsrelease.h says whose they are.
    """
    build = modules / "build"
    source = modules / "source" if (modules / "source").is_dir() else build
    generated = build / "include" / "generated"
    if not (source / "include/linux/kconfig.h").is_file() or not (generated / "autoconf.h").is_file():
        return False
    try:
        return f'"{release}"' in read_text(str(generated / "utsrelease.h"))
    except UNREADABLE:
        return False


def _chosen(folder: Path) -> Tree:
    """Headers of a kernel's build: a folder in /lib/modules, what its ``build`` points to, or a kernel's sources.

    Debian and openSUSE keep what the build generated apart from the sources, and a Makefile there that names them.
    ProgramError where they are not there, or may not be read.
    """
    try:
        return _installed(folder)
    except ProgramError:
        raise
    except UNREADABLE as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise ProgramError(f"the headers in {folder} cannot be read: {why}") from None


def _installed(folder: Path) -> Tree:
    build = folder / "build" if (folder / "build").is_dir() else folder
    source = build
    if not (build / _KCONFIG).is_file() and (build / "Makefile").is_file():
        named = re.search(r"^include (/.*)/Makefile$", read_text(str(build / "Makefile"), _MAX_MAKEFILE), re.M)
        source = Path(named[1]) if named else build
    for root, file in ((source, _KCONFIG), (build, "include/generated/autoconf.h")):
        if not (root / file).is_file():
            raise ProgramError(
                f"no kernel headers in {folder}: there is no {root / file}",
                hint="name the headers of a kernel that was built: /lib/modules/RELEASE/build",
            )
    flags = () if source == build else tuple(f"-I{build / name}" for name in _generated_folders(build))
    return Tree(str(source), flags, warning=_of_another_release(build))


_KCONFIG = "include/linux/kconfig.h"
_MAX_MAKEFILE = 1 << 20  # bytes
_MAX_ARCHITECTURES = 64


def _generated_folders(build: Path) -> list[str]:
    """Where a build that is apart from its sources has its headers (the kernel's Makefile: LINUXINCLUDE)."""
    folders = ["include", "include/generated/uapi"]
    for arch in itertools.islice((build / "arch").glob("*/include/generated"), _MAX_ARCHITECTURES):
        folders += [str(arch.relative_to(build)), str(arch.relative_to(build) / "uapi")]
    return folders


def _of_another_release(build: Path) -> str:
    try:
        text = read_text(str(build / "include/generated/utsrelease.h"))
    except FileNotFoundError:  # as one that is no ordinary file
        text = ""
    found = re.search(r'UTS_RELEASE "(.*)"', text)
    release = found[1] if found else "an unknown release"
    if release == os.uname().release:
        return ""
    return (
        f"the headers in {build} are of Linux {release}, this kernel is {os.uname().release}: "
        "its structs may be laid out differently"
    )


@functools.lru_cache(maxsize=8)
def _tree_name(btf: Path, release: str) -> str:
    """The name of a tree: changes with the kernel's build and with whatever else decides the tree's contents."""
    digest = hashlib.blake2b(digest_size=10)
    for path in (
        btf,
        Path(__file__),
        _TRACER / "kernel/btf.py",
        HELPERS_FILE,
        *sorted(p for p in _HAND_WRITTEN.rglob("*") if p.is_file()),
    ):
        digest.update(path.read_bytes())
    return f"headers-{release}-{digest.hexdigest()}"


def _user_cache() -> Path:
    # An XDG_CACHE_HOME that is not absolute must be ignored, says the XDG Base Directory Specification.
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if named.is_absolute():
        return named / "bpfnb"
    try:
        return Path.home() / ".cache" / "bpfnb"
    except RuntimeError:  # no HOME, and no entry in the password file either
        return Path("/nonexistent/bpfnb")


def _prepare(folder: Path) -> bool:
    """Make a cache folder when it is missing. False when it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    except OSError:
        return False
    return os.access(_trusted(folder), os.W_OK | os.X_OK, effective_ids=True)


def _trusted(folder: Path) -> Path:
    """The folder, symlinks resolved, if only root and we can change what is in it. SetupError if others can.

    Root compiles what is here into the kernel. Whoever can rename a folder on the way can replace the tree, so
    the whole way counts; a sticky folder such as /tmp protects what is in it from all but its owner.
    """
    folder = folder.resolve()
    for part in (folder, *folder.parents):
        status = part.stat()
        shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        sticky = status.st_mode & stat.S_ISVTX and part != folder
        if status.st_uid not in (0, os.geteuid()) or (shared and not sticky):
            raise SetupError(f"{folder} cannot be trusted with kernel headers: others can write to {part}")
    return folder


def _put(tree: Path, files: Callable[[], dict[str, str]]) -> Path:
    """Write a tree, in the place of one that is damaged. Of several processes one does, and the others wait."""
    with _locked(tree.parent):
        if tree.is_dir() and not whole(tree):
            _remove(tree)
        return _used(_trusted(tree) if tree.is_dir() else write_tree(tree, files()))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Be alone among those who write trees there; not for ever, since who holds the lock may hang."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    deadline = time.monotonic() + _LOCK_TIMEOUT
    try:
        while time.monotonic() < deadline:
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.02)
        yield
    finally:
        os.close(fd)


def write_tree(tree: Path, files: dict[str, str]) -> Path:
    """Write the files and give them their place in one step, so that nobody sees half a tree."""
    new = Path(tempfile.mkdtemp(prefix=_NEW, dir=tree.parent))
    try:
        for name, text in (files | {_DIGESTS: _digests({name: text.encode() for name, text in files.items()})}).items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for path in (new, *new.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)  # whatever the umask
        _sync(new)  # so that its contents reach the disk before its name does
        new.rename(tree)
    except OSError:
        # Renaming onto a folder that is not empty fails: another process was faster, with the same tree.
        if not tree.is_dir():
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return _trusted(tree)


def _sync(folder: Path) -> None:
    """Have the file system this is on, and no other, write what it has. OSError where it could not."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc.syncfs(fd):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(fd)


def _remove(tree: Path) -> None:
    """Remove a tree, so that nobody sees half of it either."""
    gone = Path(tempfile.mkdtemp(prefix=_NEW, dir=tree.parent))
    with suppress(FileNotFoundError):
        tree.rename(gone / tree.name)
    shutil.rmtree(gone, ignore_errors=True)


def _used(tree: Path) -> Path:
    """Note that a tree is in use; remove those that have not been for long, and what those left who were killed while
    they wrote theirs. The first time."""
    if tree in _in_use:
        return tree
    _in_use.add(tree)
    now = time.time()
    with suppress(OSError):
        os.utime(tree)
        for other in tree.parent.iterdir():
            age = now - other.stat().st_mtime
            if other.name.startswith("headers-") and other != tree and age > _UNUSED_DAYS * 86400:
                _remove(other)
            elif other.name.startswith(_NEW) and age > _ABANDONED_SECONDS:
                shutil.rmtree(other, ignore_errors=True)
    return tree


def _dates(tree: Path) -> dict[str, tuple[int, int]]:
    """The size and the time of the last change of each file, by its name in the tree."""
    found = {}
    for folder, _, names in os.walk(tree):
        for name in names:
            status = os.stat(f"{folder}/{name}")  # noqa: PTH116 (they are hundreds)
            found[f"{folder}/{name}"[len(str(tree)) + 1 :]] = status.st_size, status.st_mtime_ns
    return found


def _digests(files: dict[str, bytes]) -> str:
    return "".join(f"{hashlib.blake2b(files[name], digest_size=16).hexdigest()} {name}\n" for name in sorted(files))


# What is in a tree.


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
    "PERF_COUNT_", "PERF_TYPE_", "PIDTYPE_PID", "REQ_OP_", "RQF_", "SKB_DROP", "SKB_NOT_DROPPED", "SS_CONNECTED",
    "TCPF_", "TCP_CA_Open", "VM_FAULT_", "WMARK_MIN", "WORK_STRUCT", "ZONE_NORMAL", "__REQ_", "__RQF_",
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


def _files(btf: bytes, release: str) -> dict[str, str]:
    """The whole tree: path to text."""
    types = KernelTypes(btf)
    core, kernel, everything = _dump(btf, (_core(types), _kernel(types), range(1, len(types.all))))
    constants = types.enumerators()
    files = {
        f"include/{path.relative_to(_HAND_WRITTEN)}": _replaceable(_without(constants, path.read_text()))
        for path in _HAND_WRITTEN.rglob("*.h")
    }
    files["include/bpfnb/config.h"] = _guarded("config.h", _config(types))
    files["include/bpfnb/core.h"] = _guarded("core.h", core + _missing_typedefs(types) + _missing_helpers(constants))
    kernel += _without(constants, _derived(types, constants))
    files["include/bpfnb/kernel.h"] = _guarded("kernel.h", _includes("bpfnb/core.h") + kernel)
    files["include/bpfnb/all.h"] = _guarded("all.h", _includes("bpfnb/kernel.h") + everything)
    files["include/bpfnb/constants.h"] = _guarded("constants.h", _without(constants, _python_constants()))
    files["include/linux/version.h"] = _guarded("version.h", _version(release))
    macros = set(re.findall(r"#define (\w+)", kernel))
    files[_NAMES] = "\n".join(sorted(types.tags() | types.names(TYPEDEF) | constants | macros))
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


def _guarded(name: str, text: str) -> str:
    guard = _guard(name)
    return _replaceable(f"#ifndef {guard}\n#define {guard}\n{text}\n#endif\n")


_GUARDED = re.compile(r"(#ifndef (BPFNB_\w+_H)\n#define \2\n)(.*)(#endif\n)\Z", re.S)
_REPLACEABLE = re.compile(r"#include BPFNB_\w+_H_OTHER\n#else\n(.*)#endif\n#endif\n\Z", re.S)


def _replaceable(text: str) -> str:
    """A file that includes another in its own place where a macro says so."""
    return _GUARDED.sub(
        lambda found: (
            f"{found[1]}#ifdef {found[2]}_OTHER\n#include {found[2]}_OTHER\n#else\n{found[3]}#endif\n{found[4]}"
        ),
        text,
    )


def body(text: str) -> str:
    """What a file of bpfnb/ has between its guards: what another one has to hold in its place."""
    found = _REPLACEABLE.search(text)
    return found[1] if found else ""


def replaced(file: str, other: str) -> str:
    """The flag that has clang read ``other`` in place of a file of bpfnb/, "core.h"."""
    return f'-D{_guard(file)}_OTHER="{other}"'


def _without(constants: set[str], text: str) -> str:
    """The text without macros that this kernel has as enumerators: there they would break the enumeration."""

    def keep(found: re.Match[str]) -> str:
        return "" if found[1] in constants else found[0]

    return re.sub(r"^#define (\w+) .*\n", keep, text, flags=re.MULTILINE)


def _config(types: KernelTypes) -> str:
    """The CONFIG_ macros that bcc and its tools ask for, as far as the kernel's types tell."""
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
    # Functions of internals.h read these.
    functions = {"SCATTERLIST": ("scatterlist", "page_link"), "SKB_QUEUES": ("sk_buff", "queue_mapping")}
    return text + "".join(f"#define BPFNB_HAS_{n} 1\n" for n, field in functions.items() if types.has_field(*field))


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
    """The types of core.h."""
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
    """The types of kernel.h."""
    roots = types.named(_ROOTS, STRUCT, UNION)
    private = set(types.named(_PRIVATE, STRUCT))
    return types.enums_with(_KERNEL_CONSTANTS) + roots + types.reachable(roots, private)


class KernelTypes(Types):
    """The kernel's types, and ways to choose among them."""

    def __init__(self, btf: bytes) -> None:
        super().__init__(btf, "the kernel's")

    def names(self, kind: int) -> set[str]:
        return {t.name for t in self.all if t.kind == kind}

    def tags(self) -> set[str]:
        """The names of all structs, unions and enumerations, as C has them: with the word in front."""
        words = {STRUCT: "struct", UNION: "union", ENUM: "enum", ENUM64: "enum"}
        return {f"{words[t.kind]} {t.name}" for t in self.all if t.kind in words}

    def has_function(self, *names: str) -> bool:
        return bool(self.named(names, FUNC))

    def has_field(self, type_name: str, field: str) -> bool:
        for i in self.named((type_name,), STRUCT, TYPEDEF):
            plain = self.plain(i)
            if self.all[plain].kind == STRUCT and any(member.name == field for member in self.members(plain)):
                return True
        return False

    def _enums(self) -> Iterator[tuple[int, list[str]]]:
        for i, t in enumerate(self.all):
            if t.kind in (ENUM, ENUM64):
                yield i, [name for name, _ in self.constants(i)]

    def enumerators(self) -> set[str]:
        """The name of every constant."""
        return {name for _, names in self._enums() for name in names}

    def enums_with(self, prefixes: tuple[str, ...]) -> list[int]:
        """The enumerations with a constant that begins in one of these ways."""
        return [i for i, names in self._enums() if any(name.startswith(prefixes) for name in names)]

    def integer_typedefs(self) -> list[int]:
        return [i for i, t in enumerate(self.all) if t.kind == TYPEDEF and self.all[self.plain(i)].kind == INT]

    def targets(self, i: int) -> list[int]:
        """The types a type is made of or points to; not a function's arguments, since BPF calls no pointer."""
        type_ = self.all[i]
        if type_.kind in (STRUCT, UNION):
            return [member.type_id for member in self.members(i)]
        if type_.kind == ARRAY:
            return [self.array(i)[0]]
        return [type_.ref] if type_.kind == PTR or type_.kind in OTHER_NAMES else []

    def array_length(self, type_name: str, field: str) -> int:
        """How many elements a field has that is an array; 0 where there is no such field."""
        for i in self.named((type_name,), STRUCT, UNION):
            for member in self.members(i):
                if member.name == field and self.all[member.type_id].kind == ARRAY:
                    return self.array(member.type_id)[1][0]
        return 0

    def reachable(self, roots: Iterable[int], private: Collection[int] = ()) -> list[int]:
        """The structs and unions that can be got to from the roots, pointers followed, but not through these."""
        seen: set[int] = set(private)
        queue = list(roots)
        while queue:
            i = queue.pop()
            if i not in seen:
                seen.add(i)
                queue += self.targets(i)
        seen -= set(private)
        return sorted(i for i in seen if self.all[i].kind in (STRUCT, UNION) and self.all[i].name)


# libbpf writes the C: order, forward declarations, padding and bit-fields are a science of their own.


def _dump(btf: bytes, tiers: Iterable[Iterable[int]]) -> list[str]:
    """The C of each tier: its types and all they need, without what an earlier tier has had.

    libbpf hands each piece of text to a function of vprintf's kind with a pointer of our choice in front. That is
    the signature of vfprintf, so libc's own goes in, with a stream in memory: half a million calls, none in Python.
    """
    libbpf, libc = _libbpf(), ctypes.CDLL(None)
    libc.open_memstream.restype = ctypes.c_void_p
    buffer, size = ctypes.c_void_p(), ctypes.c_size_t()
    stream = ctypes.c_void_p(libc.open_memstream(ctypes.byref(buffer), ctypes.byref(size)))
    quiet = libbpf.libbpf_set_print(None)
    types = dumper = None
    texts: list[str] = []
    try:
        types = _made(libbpf.btf__new(btf, len(btf)), "btf__new")
        dumper = _made(_new_dumper(libbpf, types, ctypes.cast(libc.vfprintf, ctypes.c_void_p), stream), "btf_dump__new")
        start = 0
        for tier in tiers:
            for i in tier:
                if error := libbpf.btf_dump__dump_type(dumper, i):
                    raise SetupError(f"libbpf cannot describe type {i} of the kernel's BTF: {os.strerror(-error)}")
            libc.fflush(stream)
            texts.append(ctypes.string_at(buffer.value or 0, size.value)[start:].decode("ascii", "replace"))
            start = size.value
    finally:
        libbpf.btf_dump__free(dumper)
        libbpf.btf__free(types)
        libbpf.libbpf_set_print(quiet)
        libc.fclose(stream)
        libc.free(buffer)
    return texts


def _libbpf() -> ctypes.CDLL:
    """libbpf, which bcc's library links, or has inside it."""
    for name in ("libbpf.so.1", "libbpf.so.0", "libbcc.so.0"):
        try:
            lib = ctypes.CDLL(name, use_errno=True)
            lib.btf__new.argtypes, lib.btf__new.restype = (ctypes.c_char_p, ctypes.c_uint32), ctypes.c_void_p
            lib.btf__free.argtypes, lib.btf__free.restype = (ctypes.c_void_p,), None
            lib.btf_dump__new.argtypes, lib.btf_dump__new.restype = (ctypes.c_void_p,) * 4, ctypes.c_void_p
            lib.btf_dump__free.argtypes, lib.btf_dump__free.restype = (ctypes.c_void_p,), None
            lib.btf_dump__dump_type.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
            lib.libbpf_set_print.argtypes, lib.libbpf_set_print.restype = (ctypes.c_void_p,), ctypes.c_void_p
        except (OSError, AttributeError):
            continue
        return lib
    raise SetupError("libbpf is not installed; bcc needs it too")


def _new_dumper(libbpf: ctypes.CDLL, types: int, write: ctypes.c_void_p, stream: ctypes.c_void_p) -> int | None:
    """btf_dump__new, whose arguments changed in libbpf 0.6; that release also brought libbpf_major_version."""
    if hasattr(libbpf, "libbpf_major_version"):
        return libbpf.btf_dump__new(types, write, stream, None)  # type: ignore[no-any-return]
    # Before: (btf, btf_ext, opts, printf), and opts is a struct of one pointer, the first argument of printf.
    return libbpf.btf_dump__new(types, None, ctypes.byref(stream), write)  # type: ignore[no-any-return]


def _made(pointer: int | None, function: str) -> int:
    """The pointer libbpf returned. Its errors are NULL since 1.0, and before that a number just below 2**64."""
    if pointer is None or pointer > 2**64 - 4096:
        raise SetupError(f"libbpf cannot read the kernel's BTF ({function} failed); it may be older than the kernel")
    return pointer
