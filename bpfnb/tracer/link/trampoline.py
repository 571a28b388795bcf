"""fentry, fexit and lsm: BPF trampolines into kernel functions and into the hooks of security modules."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from bpfnb.errors import few_descriptors
from bpfnb.language.probes import Probe
from bpfnb.tracer.kernel import bpf, capabilities, features
from bpfnb.tracer.kernel.btf import FUNC, KERNEL_BTF, Types
from bpfnb.tracer.link.errors import near, rejection
from bpfnb.tracer.link.functions import alternative, no_function
from bpfnb.tracer.link.link import Link, by_link

__all__ = ["attach", "require"]


def require(probe: Probe) -> None:
    """AttachError where the kernel does not let programs into its functions, or does not know the function's type."""
    hook = probe.kind == "lsm"
    function = f"bpf_lsm_{probe.target}" if hook else probe.target
    why = _rejection(features.lsm if hook else features.fentry)
    if why:
        what = "the hooks of its security modules (lsm)" if hook else "its functions (fentry, fexit)"
        message = f"this kernel does not let programs attach to {what}: {why}"
        raise rejection(probe, message, hint=alternative(probe, function))
    btf = KERNEL_BTF.read_bytes()
    if ":" in function or f"\0{function}\0".encode() in btf:  # of a module's function its own BTF knows
        return
    known = [t.name for t in Types(btf, "the kernel's").all if t.kind == FUNC]
    if hook:
        hooks = [name.removeprefix("bpf_lsm_") for name in known if name.startswith("bpf_lsm_")]
        raise rejection(probe, f"this kernel has no hook {probe.target}", hint=near(probe.target, hooks, "lsm:"))
    raise no_function(probe, function, known)


def attach(probe: Probe, program: int) -> Link:
    """Attach a program where it was loaded for."""
    return by_link(probe, partial(bpf.attach_traced, program))


@cache
def _rejection(feature: Callable[[], None]) -> str:
    """Return why the kernel rejects what a function of features.py tries; "" where it does not."""
    try:
        with capabilities.with_sys_admin():
            feature()
    except OSError as error:
        if few_descriptors(error):  # that says nothing of the kernel
            raise
        return error.strerror or str(error)
    return ""
