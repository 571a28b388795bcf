"""A tree of kernel headers for bcc, made from the running kernel's own type information (BTF).

bcc compiles against the kernel's headers. A headers package is often not installed, and headers of another
release give wrong struct layouts without a word. BTF is always the running kernel's.

    choice         the headers to compile a cell against
    trees          header trees on disk
    contents       the files of a tree
    kernel_types   the kernel's types, and their C
    clashes        names of the cell's own that the headers have too

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

from bpfnb.tracer.compile.headers.choice import Tree, choose, kernel_source
from bpfnb.tracer.compile.headers.contents import EVERYTHING, lacks_a_type
from bpfnb.tracer.compile.headers.trees import generate, whole

__all__ = ["EVERYTHING", "Tree", "choose", "generate", "kernel_source", "lacks_a_type", "whole"]
