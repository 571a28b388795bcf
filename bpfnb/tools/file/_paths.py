"""Complete paths of files, across mounts: C that reads them, and what makes paths of what it read.

For a system call that names a file, a program calls ``read_path`` with the name and the directory that it is relative
to, when the call returns: the kernel has read the name by then, so that it is in memory. For a file that is open it
calls ``read_file_path``.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from bpfnb.results.columns.text import text_dtype

__all__ = ["READ_PATH", "paths"]

READ_PATH = r"""
#include <linux/fs.h>
#include <linux/fs_struct.h>
#include <linux/fdtable.h>
#include <linux/sched.h>

#define MAX_PATH 4096
#define MAX_NAME 256
#define MAX_DEPTH 128

#define ROOM (2 * MAX_PATH + MAX_NAME)

// The text is a name as it was given, then names of directories, from the innermost outwards, at last the root's, which
// is empty; a NUL behind each.

#define READ_KERNEL(TO, FROM) bpf_probe_read_kernel(&(TO), sizeof(TO), &(FROM))

static __always_inline void read_directory(u32 *size, u8 *text, struct path at, struct path root) {
    struct dentry *parent;
    struct mount *mount, *above;
    const unsigned char *name;
    u32 offset;

    for (int i = 0; i < MAX_DEPTH && at.dentry && at.mnt; i++) {
        if (at.dentry == root.dentry && at.mnt == root.mnt)
            goto end;
        struct dentry *top = 0;
        READ_KERNEL(top, at.mnt->mnt_root);
        READ_KERNEL(parent, at.dentry->d_parent);
        if (at.dentry == top || at.dentry == parent) {  // on to where this file system is mounted
            mount = container_of(at.mnt, struct mount, mnt);
            READ_KERNEL(above, mount->mnt_parent);
            if (above == mount)
                goto end;
            READ_KERNEL(at.dentry, mount->mnt_mountpoint);
            at.mnt = &above->mnt;
            continue;
        }
        offset = *(volatile u32 *)size;  // of memory the verifier tracks no values: one state a turn
        asm volatile("" : "+r"(offset));
        if (offset >= 2 * MAX_PATH)
            break;
        READ_KERNEL(name, at.dentry->d_name.name);
        int more = bpf_probe_read_kernel_str(text + (offset & (2 * MAX_PATH - 1)), MAX_NAME, name);
        if (more < 0)
            break;
        *size = offset + more;
        at.dentry = parent;
    }
    return;
end:
    offset = *(volatile u32 *)size;
    asm volatile("" : "+r"(offset));
    if (offset < ROOM) {
        text[offset] = 0;  // the root's name
        *size = offset + 1;
    }
}

// Read the name of a file in user memory, and where it is relative, the path of the directory ``dfd``, into ROOM bytes.
// An empty name is ``dfd`` itself, if ``flags`` have AT_EMPTY_PATH.
static __always_inline void read_path(u32 *size, u8 *text, int dfd, const char *name, u32 flags) {
    struct task_struct *task = (struct task_struct *)bpf_get_current_task();
    struct path at = {}, root = {};
    struct fs_struct *fs;
    int given = bpf_probe_read_user_str(text, MAX_PATH, name);

    if (given == 0)  // older kernels count no NUL where there is nothing else
        given = 1;
    *size = given < 0 ? 0 : given;
    if (given < 0 || text[0] == '/' || (text[0] == 0 && !(flags & 0x1000)))
        return;
    READ_KERNEL(fs, task->fs);
    READ_KERNEL(root, fs->root);
    if (dfd == AT_FDCWD) {
        READ_KERNEL(at, fs->pwd);
    } else {
        struct files_struct *files;
        struct fdtable *table;
        struct file **all, *file = 0;
        u32 most = 0;

        READ_KERNEL(files, task->files);
        READ_KERNEL(table, files->fdt);
        READ_KERNEL(all, table->fd);
        READ_KERNEL(most, table->max_fds);
        if ((u32)dfd < most)
            READ_KERNEL(file, all[(u32)dfd]);
        if (file)
            READ_KERNEL(at, file->f_path);
    }
    read_directory(size, text, at, root);
}

// Read the path of an open file, from the root of all mounts, into ROOM bytes.
static __always_inline void read_file_path(u32 *size, u8 *text, struct file *file) {
    struct path at = {}, root = {};

    READ_KERNEL(at, file->f_path);
    text[0] = 0;  // no name beside those of the file and its directories
    *size = 1;
    read_directory(size, text, at, root);
}
"""


def paths(events: pd.DataFrame) -> pd.Series[Any]:
    """Return the paths of what these read into the members ``text`` and ``size``. A name stays relative where
    its directory is not known, as when the descriptor is none; "..." is what was too long to be read."""
    texts = zip(events["text"].tolist(), events["size"].tolist(), strict=True)
    return pd.Series([_path(text[:size]) for text, size in texts], events.index, text_dtype())


def _path(data: bytes) -> str:
    name, *directories = data.removesuffix(b"\0").split(b"\0")
    if directories:
        name = b"/".join([*reversed(directories), name]) if name else b"/".join(reversed(directories)) or b"/"
        if directories[-1]:
            name = b".../" + name
    return name.decode(errors="backslashreplace")
