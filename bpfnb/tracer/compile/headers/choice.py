"""Choose the headers to compile a cell against: those installed, a folder's, or a tree made from BTF."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bpfnb.errors import ProgramError, SetupError
from bpfnb.tracer.compile.headers.trees import generate
from bpfnb.tracer.kernel.btf import KERNEL_BTF, btf_of
from bpfnb.tracer.kernel.files import UNREADABLE, read_text

__all__ = ["Tree", "choose", "has_real_headers", "kernel_source"]

_ROOT = Path("/")


class Tree(NamedTuple):
    """Headers to compile against. ``source``: what BCC_KERNEL_SOURCE should be, "" where bcc finds them by itself.
    ``flags``: for clang, where that is not all. ``generated``: made from BTF. ``warning``: for the user, or "".
    """

    source: str = ""
    flags: tuple[str, ...] = ()
    generated: bool = False
    warning: str = ""


def choose(requested: str) -> Tree:
    """Return the headers for a cell. ``requested``: "auto" (as kernel_source), "btf", or a folder of kernel headers.

    ProgramError where the folder has none; SetupError as kernel_source and generate.
    """
    if requested == "auto":
        source = kernel_source()
        return Tree(str(source), generated=True) if source else Tree()
    if requested == "btf":
        return Tree(str(generate(_require_btf(KERNEL_BTF))), generated=True)
    return _chosen(Path(requested))


def kernel_source(root: Path = _ROOT, caches: Sequence[Path] = ()) -> Path | None:
    """The folder for BCC_KERNEL_SOURCE, made when missing; None when bcc finds this kernel's real headers by itself.

    ``root``: where /lib/modules and the kernel's BTF are looked for. ``caches``: see generate.
    SetupError when there are neither real headers nor BTF, or no safe folder to keep the tree in.
    """
    release = os.uname().release
    if has_real_headers(root / "lib/modules" / release, release):
        return None
    return generate(_require_btf(btf_of(root)), caches=caches)


def _require_btf(btf: Path) -> Path:
    if not btf.exists():
        release = os.uname().release
        raise SetupError(
            f"there are no headers for Linux {release}, and its kernel has no BTF ({btf}) to make them from",
            hint="where headers of this kernel are in some other place, name it: --headers PATH",
        )
    return btf


def has_real_headers(modules: Path, release: str) -> bool:
    """Return whether bcc will find headers in a /lib/modules folder, and they are of exactly this release.

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
    """Return where a build that is apart from its sources has its headers (the kernel's Makefile: LINUXINCLUDE)."""
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
