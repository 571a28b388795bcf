"""fentry, fexit and lsm: BPF trampolines into kernel functions and into the hooks of security modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial

from bpfnb.errors import few_descriptors
from bpfnb.language.probes import Probe
from bpfnb.tracer.kernel import bpf, capabilities, features
from bpfnb.tracer.link.errors import near, rejection
from bpfnb.tracer.link.functions import alternative, no_function
from bpfnb.tracer.link.link import Link, by_link
from bpfnb.tracer.signatures.kernel import kernel_types

__all__ = ["attach", "functions", "hook_names", "hooks", "no_functions", "no_hooks", "require"]

_HOOK = "bpf_lsm_"


def require(probe: Probe) -> None:
    """AttachError where the kernel does not let programs into its functions, or does not know the function's type."""
    hook = probe.kind == "lsm"
    function = f"{_HOOK}{probe.target}" if hook else probe.target
    if why := no_hooks() if hook else no_functions():
        raise rejection(probe, why, hint=alternative(probe, function))
    if ":" in function or kernel_types.mentions(function):  # of a module's function its own BTF knows
        return
    known = kernel_types.functions()
    if hook:
        hint = near(probe.target, hook_names(known), "lsm:")
        raise rejection(probe, f"this kernel has no hook {probe.target}", hint=hint)
    raise no_function(probe, function, known)


def no_functions() -> str:
    """Return why programs cannot be attached to functions; "" where they can."""
    return _because("its functions (fentry, fexit)", _rejection(features.fentry))


def no_hooks() -> str:
    """Return why programs cannot be attached to the hooks of security modules; "" where they can."""
    return _because("the hooks of its security modules (lsm)", _rejection(features.lsm))


def _because(what: str, why: str) -> str:
    return f"this kernel does not let programs attach to {what}: {why}" if why else ""


def functions() -> Iterable[str]:
    """Return the functions that can be attached to."""
    return () if no_functions() else kernel_types.functions()


def hooks() -> Iterable[str]:
    """Return the hooks that can be attached to."""
    return () if no_hooks() else hook_names(kernel_types.functions())


def hook_names(functions: Iterable[str]) -> list[str]:
    """Return the hooks among the names of functions."""
    return [name.removeprefix(_HOOK) for name in functions if name.startswith(_HOOK)]


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
