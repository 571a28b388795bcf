"""The kernel's own types, and those of its modules, read when they are first asked for and kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from bpfnb.tracer.kernel.btf import KERNEL_BTF, Types
from bpfnb.tracer.signatures.types import Function, KernelTypes

__all__ = ["BtfFolder", "kernel_types"]

_TRACED = "__traceiter_"
_MAX_MODULES = 8  # modules whose types are kept: each takes a megabyte


class BtfFolder:
    """What /sys/kernel/btf has. Modules come and go: their files are looked for anew each time."""

    def __init__(self, folder: Path = KERNEL_BTF.parent) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._kernel: KernelTypes | None = None
        self._raw: Types | None = None
        self._modules: dict[tuple[str, int], KernelTypes] = {}
        self._names: dict[tuple[str, int], tuple[str, ...]] = {}  # of modules' functions

    def kernel(self) -> KernelTypes | None:
        """Return the kernel's types, without those of modules; None where it has no BTF. SetupError where it is broken.

        It takes about 0.2 s, once.
        """
        with self._lock:
            if self._kernel is None:
                try:
                    blob = (self._folder / KERNEL_BTF.name).read_bytes()
                except OSError:
                    return None
                self._raw = Types(blob, "the kernel's")
                self._kernel = KernelTypes(self._raw)
            return self._kernel

    def modules(self) -> list[str]:
        """Return the names of the loaded modules that have BTF."""
        try:
            return sorted(path.name for path in self._folder.iterdir() if path.name != KERNEL_BTF.name)
        except OSError:
            return []

    def module(self, name: str) -> KernelTypes | None:
        """Return the types of the kernel and of a module; None where it has no BTF, or is gone."""
        path = self._folder / name
        try:
            key = name, path.stat().st_ino
            with self._lock:
                if key in self._modules:
                    return self._modules[key]
            blob = path.read_bytes()
        except OSError:
            return None
        if not self.kernel() or not self._raw:
            return None
        types = KernelTypes(self._raw.extended(blob, f"the module {name}'s"))
        with self._lock:
            self._modules[key] = types
            while len(self._modules) > _MAX_MODULES:
                del self._modules[next(iter(self._modules))]
        return types

    def function(self, name: str) -> tuple[KernelTypes, Function] | None:
        """Return a function's prototype, and the types it is written in; None where there is no such."""
        for types in self._which_may_have(name):
            if found := types.function(name):
                return types, found
        return None

    def mentions(self, name: str) -> bool:
        """Return whether the kernel's types have a function or a typedef of this name, not asking for more.

        Where they have not been read yet, a name of anything else's is taken for it: in milliseconds, and nothing is
        kept.
        """
        if self._kernel:
            return name in self._kernel.functions or self._kernel.number(name) > 0
        try:
            return f"\0{name}\0".encode() in (self._folder / KERNEL_BTF.name).read_bytes()
        except OSError:
            return False

    def functions(self, *, modules: bool = False) -> list[str]:
        """Return the names of the functions whose types are known, with ``modules`` those of modules too."""
        types = self.kernel()
        names = list(types.functions) if types else []
        for module in self.modules() if modules and types else ():
            names += self._names_in(module)
        return names

    def tracepoints(self) -> list[str]:
        """Return the names of the tracepoints whose types are known; [] where the kernel has no BTF."""
        names = self.functions(modules=True)
        return sorted({name.removeprefix(_TRACED) for name in names if name.startswith(_TRACED)})

    def is_complete(self) -> bool:
        """Return whether there is the BTF of the kernel and of all its modules."""
        try:
            loaded = {line.split()[0] for line in Path("/proc/modules").read_text().splitlines()}
        except OSError:
            loaded = set()  # it has none
        return self.kernel() is not None and loaded <= set(self.modules())

    def _names_in(self, module: str) -> tuple[str, ...]:
        try:
            key = module, (self._folder / module).stat().st_ino
        except OSError:
            return ()
        if key not in self._names and (types := self.module(module)):
            kernel = self.kernel()
            self._names[key] = tuple(types.functions.keys() - (kernel.functions.keys() if kernel else ()))
        return self._names.get(key, ())

    def _which_may_have(self, name: str) -> Iterator[KernelTypes]:
        if types := self.kernel():
            yield types
        for module in self.modules():
            try:
                if f"\0{name}\0".encode() not in (self._folder / module).read_bytes():
                    continue
            except OSError:
                continue
            if types := self.module(module):
                yield types


kernel_types = BtfFolder()
