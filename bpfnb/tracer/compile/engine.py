"""The sole importer of bcc: finding it, compiling with it, loading programs through it.

Cells are compiled in processes of their own (compiler.py); nothing is attached through bcc.
"""

from __future__ import annotations

import atexit
import ctypes
import glob
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from bpfnb.errors import SetupError, UnsupportedError
from bpfnb.tracer.compile import headers
from bpfnb.tracer.kernel.bpf import MapShape
from bpfnb.tracer.kernel.uapi import AttachType
from bpfnb.tracer.loaded import ProgramSpec

__all__ = ["Compiled", "Engine", "Function", "find_bcc"]

# Where distributions put Python modules that are not for one interpreter alone.
_PLACES = (
    "/usr/lib/python3/dist-packages",
    "/usr/lib/python3*/site-packages",
    "/usr/lib64/python3*/site-packages",
    "/usr/local/lib/python3*/dist-packages",
    "/usr/local/lib/python3*/site-packages",
)


def find_bcc() -> Path:
    """Return the folder of iovisor's bcc. SetupError, naming the package to install, when there is none."""
    patterns = [os.environ["BPFNB_BCC"]] if "BPFNB_BCC" in os.environ else _PLACES
    for pattern in patterns:
        for place in sorted(glob.glob(pattern), reverse=True):  # noqa: PTH207 (absolute patterns)
            if Path(place, "bcc", "libbcc.py").exists():
                return Path(place, "bcc")
    impostor = importlib.util.find_spec("bcc")
    other = " (the package named bcc on PyPI, installed here, is another project)" if impostor else ""
    raise SetupError(
        f"iovisor's bcc for Python is not installed{other}; looked in {', '.join(patterns)}",
        hint="install your distribution's package: Debian, Ubuntu: python3-bpfcc; Fedora: python3-bcc; "
        "Arch: python-bcc; openSUSE: python3-bcc",
    )


def _import_bcc() -> ModuleType:
    """Import bcc from its own folder alone: the rest of that folder belongs to another Python."""
    folder = find_bcc()
    spec = importlib.util.spec_from_file_location(
        "bcc", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["bcc"] = module
    try:
        spec.loader.exec_module(module)
    except (ImportError, OSError) as error:
        raise SetupError(f"bcc in {folder} cannot be imported: {error}") from None
    return module


_PREFIXES: dict[int, str] = {
    AttachType.TRACE_FENTRY: "kfunc__",
    AttachType.TRACE_FEXIT: "kretfunc__",
    AttachType.LSM_MAC: "lsm__",
}

# The verifier's log levels (include/linux/bpf_verifier.h): 1 follows every instruction, 4 is the verdict alone.
_VERDICT = 4
_LOG_BYTES = 1 << 20


class Engine:
    """bcc, imported, with headers to compile against this kernel."""

    def __init__(self) -> None:
        self.bcc: Any = _import_bcc()
        self.lib: Any = self.bcc.lib
        self.version: str = self.bcc.__version__
        self._number = tuple(int(n) for n in re.findall(r"\d+", self.version)[:2])
        self._tree = headers.Tree()
        with suppress(SetupError):  # a cell may name others; if not, it will hear what is missing
            self._tree = headers.choose("auto")
        _use(self._tree)

        class WithoutAutoload(self.bcc.BPF):  # type: ignore[misc, name-defined]
            def _trace_autoload(self) -> None:
                """bcc would attach by name here; bpfnb does, and can fall back."""

        self._bpf: Any = WithoutAutoload

    def compile(
        self, text: str, cflags: Sequence[str] = (), tree: headers.Tree | None = None, usdt: Sequence[Any] = ()
    ) -> Compiled:
        """Compile C. bcc's bare Exception when clang refuses; what clang says goes to descriptor 2.

        ``tree``: the headers, by default those of the machine. ``usdt``: bcc's own USDT objects. Leaves the process in
        another directory, LLVM's memory behind, and may end the process altogether.
        """
        tree = tree or self._tree
        _use(tree)
        bpf = self._bpf(text=text.encode(), cflags=[*tree.flags, *cflags], usdt_contexts=list(usdt))
        atexit.unregister(bpf.cleanup)  # bcc pins every object until exit
        return Compiled(self, bpf.module, bpf)

    def load_name(self, spec: ProgramSpec) -> str:
        """Return what bcc wants a program called: it reads from the name what the program is loaded for.

        UnsupportedError for a function of a kernel module before bcc 0.28: since then the module is part of the name.
        """
        prefix = _PREFIXES.get(spec.attach_type)
        if not prefix:
            return spec.function
        owner, _, target = spec.attach_to.rpartition(":")
        if spec.attach_type == AttachType.LSM_MAC:
            return prefix + target
        if self._number >= (0, 28):
            return f"{prefix}{owner or 'vmlinux'}__{target}"
        if owner:
            raise UnsupportedError(f"bcc {self.version} cannot trace functions of kernel modules ({spec.attach_to})")
        return prefix + target


def _use(tree: headers.Tree) -> None:
    if tree.source:
        os.environ["BCC_KERNEL_SOURCE"] = tree.source
    else:
        os.environ.pop("BCC_KERNEL_SOURCE", None)


class Function(NamedTuple):
    """A compiled function: its instructions as the compiler left them, and what else the kernel is told of it.

    ``attach_type``: of one that is loaded to be attached to many functions at once.
    """

    instructions: bytes
    licence: bytes
    version: int
    attach_type: int = 0


class Compiled:
    """A compiled cell, in the process that compiled it."""

    def __init__(self, engine: Engine, module: Any, owner: Any) -> None:
        self._engine = engine
        self._lib = engine.lib
        self._module = module
        self._owner = owner  # frees the module when it goes

    def has(self, function: str) -> bool:
        """Return whether a function was compiled: one under an ``#if`` may not have been."""
        return self._compiled_name(function) is not None

    def table(self, name: str) -> int | None:
        """Return the descriptor of a map or output, which this object owns; None when it was not compiled."""
        fd: int = self._lib.bpf_table_fd(self._module, name.encode())
        return fd if fd >= 0 else None

    def declared(self, name: str) -> MapShape:
        """Return what the cell says of a table there is; a pinned one may be another."""
        lib, module, table = self._lib, ctypes.c_void_p(self._module), name.encode()
        number = ctypes.c_size_t(lib.bpf_table_id(module, table))
        sizes = lib.bpf_table_key_size_id(module, number), lib.bpf_table_leaf_size_id(module, number)
        return MapShape(lib.bpf_table_type(module, table), 0, *sizes, 0, 0)

    def tables(self) -> list[int]:
        """Return the descriptors of all tables: also of those that nobody has asked for by name."""
        lib, module = self._lib, ctypes.c_void_p(self._module)  # bcc's binding does not say what these two take
        return [lib.bpf_table_fd_id(module, ctypes.c_size_t(i)) for i in range(lib.bpf_num_tables(module))]

    def function(self, function: str) -> Function:
        """Return a function there is (see ``has``)."""
        lib, module, compiled = self._lib, self._module, self._compiled_name(function)
        start, size = lib.bpf_function_start(module, compiled), lib.bpf_function_size(module, compiled)
        licence, version = lib.bpf_module_license(module), lib.bpf_module_kern_version(module)
        return Function(ctypes.string_at(start, size), licence or b"", version)

    def section(self, function: str) -> str:
        """Return the section of the object file that a function is compiled into."""
        return f".bpf.fn.{(self._compiled_name(function) or b'').decode()}"

    def log(self, spec: ProgramSpec, code: bytes = b"") -> str:
        """Return the verifier's log of a program that it follows too far, as far as it is kept, with its verdict.

        Linux keeps a log's end since v6.4, and before that its beginning: then the verdict takes another round.
        """
        log = self._log(spec, code, 1)
        return log if "\nprocessed " in log else f"{log}\n{self._log(spec, code, _VERDICT)}"

    def _log(self, spec: ProgramSpec, code: bytes, level: int) -> str:
        buffer = ctypes.create_string_buffer(_LOG_BYTES)
        self._load(spec, code, level, buffer)
        return buffer.value.decode(errors="replace")

    def load(self, spec: ProgramSpec, code: bytes = b"") -> int:
        """Have the kernel verify and load a function: return its descriptor.

        ``code``: its instructions, where they are not as the compiler left them. OSError when the kernel rejects it;
        what the verifier says goes to descriptor 2. UnsupportedError: see load_name.
        """
        fd = self._load(spec, code)
        if fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return fd

    def _load(self, spec: ProgramSpec, code: bytes, level: int = 0, log: Any = None) -> int:
        lib, module, compiled = self._lib, self._module, self._compiled_name(spec.function)
        start, size = lib.bpf_function_start(module, compiled), lib.bpf_function_size(module, compiled)
        if code:
            held = ctypes.create_string_buffer(code, len(code))
            start, size = ctypes.addressof(held), len(code)
        licence, version = lib.bpf_module_license(module), lib.bpf_module_kern_version(module)
        no_attach_type = 0xFFFFFFFF  # bcc's -1: deduce it from the name
        room = len(log) if log else 0
        name = self._engine.load_name(spec).encode()
        fd: int = lib.bcc_func_load(
            module, spec.type, name, start, size, licence, version, level, log, room, None, 0, no_attach_type
        )
        return fd

    def _compiled_name(self, function: str) -> bytes | None:
        """The name bcc's macros gave a function: KFUNC_PROBE(f) is kfunc__f, since bcc 0.28 kfunc__vmlinux__f."""
        for name in (function, function.replace("func__", "func__vmlinux__", 1)):
            if self._lib.bpf_function_start(self._module, name.encode()):
                return name.encode()
        return None
