"""C for whole paths of files, from the root of the file system on, across mounts."""

from __future__ import annotations

import pandas as pd

from bpfnb.results.columns.text import text_dtype

__all__ = ["PATHS", "whole"]

# path_of(text, dentry, mount) writes a file's path into text, PATH_ROOM bytes, innermost name first: "c/b/a/", NUL.
# Returns how many bytes. Of a path of more than 4096 bytes or 64 names the outermost are missing.
PATHS = r"""
#include <linux/dcache.h>
#include <linux/mount.h>

#define PATH_ROOM (4096 + 256)
BPF_PERCPU_ARRAY(path_length, u64, 1);

static inline u64 path_of(char *text, struct dentry *dentry, struct vfsmount *mount) {
    int zero = 0;
    // In memory: each round begins with any length, and so the verifier has to follow a round but once.
    u64 *length = path_length.lookup(&zero);
    if (!length)
        return 0;
    *length = 0;
    for (int i = 0; i < 64; i++) {
        struct dentry *above = NULL, *root = NULL;
        bpf_probe_read_kernel(&root, sizeof(root), &mount->mnt_root);
        bpf_probe_read_kernel(&above, sizeof(above), &dentry->d_parent);
        if (dentry == root || dentry == above) {
            void *inner = (void *)mount - BPFNB_OFFSET_MOUNT_MNT, *outer = NULL;
            bpf_probe_read_kernel(&outer, sizeof(outer), inner + BPFNB_OFFSET_MOUNT_MNT_PARENT);
            if (!outer || outer == inner)
                break;
            bpf_probe_read_kernel(&dentry, sizeof(dentry), inner + BPFNB_OFFSET_MOUNT_MNT_MOUNTPOINT);
            mount = outer + BPFNB_OFFSET_MOUNT_MNT;
            continue;
        }
        struct qstr name = {};
        bpf_probe_read_kernel(&name, sizeof(name), &dentry->d_name);
        u64 at = *length, size = name.len & 255;
        if (at >= 4096 || bpf_probe_read_kernel(text + at, size, name.name))
            break;
        text[at + size] = '/';
        *length = at + size + 1;
        dentry = above;
    }
    u64 end = *length;
    if (end >= PATH_ROOM)
        return 0;
    text[end] = 0;
    return end + 1;
}
"""


def whole(texts: pd.Series[str]) -> pd.Series[str]:
    """Return paths as people write them, of texts that ``path_of`` made: "c/b/a/" is /a/b/c."""
    known = {text: "/".join(reversed(f"{text}".split("/"))) for text in texts.unique()}
    return texts.map(known).astype(text_dtype())
