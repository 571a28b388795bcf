"""C that the tools of file systems share: system calls that read, write, open and sync regular files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bpfnb.errors import ProgramError
from bpfnb.language import syscalls

__all__ = ["CALLS", "flags"]

_CALLS = {
    "R": ("read", "readv", "pread64", "preadv", "preadv2"),
    "W": ("write", "writev", "pwrite64", "pwritev", "pwritev2"),
    "O": ("open", "creat", "openat", "openat2"),
    "S": ("fsync", "fdatasync"),
}
_AT = ("pread64", "preadv", "preadv2", "pwrite64", "pwritev", "pwritev2")  # the fourth argument says where
_MACHINES = {"bpf_target_x86": "x86_64", "bpf_target_arm64": "aarch64"}
_TYPE_BYTES = 16  # of a file system's name


def flags(type_: str | None) -> Sequence[str]:
    """Return the macros for a file system's name, such as "ext4"; None: any. ProgramError for one that is too long."""
    data = (type_ or "").encode()
    if len(data) >= _TYPE_BYTES:
        raise ProgramError(f"no file system is called {type_!r}: names have {_TYPE_BYTES - 1} bytes at most")
    words = [int.from_bytes(data.ljust(_TYPE_BYTES, b"\0")[i : i + 8], "little") for i in (0, 8)]
    return [f"-DTYPED={int(type_ is not None)}", *(f"-DTYPE{i}={word}ULL" for i, word in enumerate(words))]


def _operation() -> str:
    """Return C: a system call's number -> its letter, with AT where the fourth argument is an offset; 0 for others."""
    parts = [f"defined({macro})\n{_cases(syscalls.numbers(machine))}" for macro, machine in _MACHINES.items()]
    return (
        "static inline u32 operation(u64 number) {\n    switch (number) {\n#if "
        + "#elif ".join(parts)
        + "#endif\n    }\n    return 0;\n}\n"
    )


def _cases(numbers: Mapping[str, int]) -> str:
    return "".join(
        f"    case {numbers[name]}: return '{letter}'{' | AT' if name in _AT else ''};  // {name}\n"
        for letter, names in _CALLS.items()
        for name in names
        if name in numbers
    )


# ends(): at a system call's end, whether it was one of these, of a regular file of the file system that is asked for.
# A file that another thread has closed meanwhile is not looked at.
CALLS = (
    r"""
#include <linux/fs.h>
#include <linux/fdtable.h>
#include <linux/sched.h>

#define AT 256
"""
    + _operation()
    + r"""
#if defined(bpf_target_x86)
#define FOURTH(regs) (regs)->r10
#else
#define FOURTH(regs) PT_REGS_PARM4(regs)
#endif

struct call_t { u64 since, offset; struct file *file; u32 op; int fd; };
BPF_HASH(calls, u64, struct call_t);

static inline struct file *file_of(u32 fd) {
    struct task_struct *task = (struct task_struct *)bpf_get_current_task();
    struct files_struct *files = NULL;
    struct fdtable *table = NULL;
    struct file **all = NULL, *file = NULL;
    u32 size = 0;
    bpf_probe_read_kernel(&files, sizeof(files), &task->files);
    bpf_probe_read_kernel(&table, sizeof(table), &files->fdt);
    bpf_probe_read_kernel(&size, sizeof(size), &table->max_fds);
    bpf_probe_read_kernel(&all, sizeof(all), &table->fd);
    if (fd < size)
        bpf_probe_read_kernel(&file, sizeof(file), &all[fd]);
    return file;
}

static inline u64 position(struct file *file, u32 op) {
    struct inode *inode = NULL;
    u32 flags = 0;
    loff_t at = 0;
    bpf_probe_read_kernel(&flags, sizeof(flags), &file->f_flags);
    bpf_probe_read_kernel(&inode, sizeof(inode), &file->f_inode);
    if (op == 'W' && (flags & O_APPEND))
        bpf_probe_read_kernel(&at, sizeof(at), &inode->i_size);
    else
        bpf_probe_read_kernel(&at, sizeof(at), &file->f_pos);
    return at;
}

static inline bool is_asked_for(struct file *file, char *type) {
    struct inode *inode = NULL;
    struct super_block *super = NULL;
    struct file_system_type *kind = NULL;
    const char *name = NULL;
    umode_t mode = 0;
    bpf_probe_read_kernel(&inode, sizeof(inode), &file->f_inode);
    bpf_probe_read_kernel(&mode, sizeof(mode), &inode->i_mode);
    if ((mode & S_IFMT) != S_IFREG)
        return false;
    bpf_probe_read_kernel(&super, sizeof(super), &inode->i_sb);
    bpf_probe_read_kernel(&kind, sizeof(kind), &super->s_type);
    bpf_probe_read_kernel(&name, sizeof(name), &kind->name);
    bpf_probe_read_kernel_str(type, 16, name);
#if TYPED
    u64 *words = (u64 *)type;
    return words[0] == TYPE0 && words[1] == TYPE1;
#else
    return true;
#endif
}

static inline bool of_32_bits(void) {
#if defined(bpf_target_x86)
    struct task_struct *task = (struct task_struct *)bpf_get_current_task();
    u32 status = 0;
    bpf_probe_read_kernel(&status, sizeof(status), &task->thread_info.status);
    return status & 2;  // TS_COMPAT: its calls have other numbers
#else
    return false;
#endif
}

RAW_TRACEPOINT_PROBE(sys_enter) {
    struct pt_regs *regs = (struct pt_regs *)ctx->args[0];
    u64 id = bpf_get_current_pid_tgid();
    u32 op = operation(ctx->args[1]);
    struct call_t call = {};

    if (!op || !bpfnb_selected() || of_32_bits())
        return 0;
    call.op = op & ~AT;
    if (call.op != 'O') {
        bpf_probe_read_kernel(&call.fd, sizeof(call.fd), &PT_REGS_PARM1(regs));
        call.file = file_of(call.fd);
        if (!call.file)
            return 0;
        if (op & AT)
            bpf_probe_read_kernel(&call.offset, sizeof(call.offset), &FOURTH(regs));
        else
            call.offset = position(call.file, call.op);
    }
    call.since = bpf_ktime_get_ns();
    calls.update(&id, &call);
    return 0;
}

static inline bool ends(struct call_t *call, long result, char *type) {
    u64 id = bpf_get_current_pid_tgid();
    struct call_t *begun = calls.lookup(&id);
    if (!begun)
        return false;
    *call = *begun;
    calls.delete(&id);
    if (call->op == 'O') {
        if (result < 0)
            return false;
        call->fd = result;
        call->file = file_of(call->fd);
    }
    return call->file && call->file == file_of(call->fd) && is_asked_for(call->file, type);
}
"""
)
