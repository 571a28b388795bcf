"""Check what this machine and this process can do for tracing, by trying it, not by versions.

``run`` returns the doctor's rows about the machine. The tracer answers the notebook with them. Where no tracer can
start, the doctor runs this module as a program, which prints the rows as JSON:

    python -m bpfnb.tracer.doctor.checks

It then reports what can be found out with the rights it has. The kernel's configuration is shown next to what was
tried, never instead of it: the configuration may be that of another build, and what is built in may be forbidden.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from errno import EACCES, EPERM
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from bpfnb.errors import BpfnbError, PrivilegeError, SetupError
from bpfnb.protocol.messages import Check, CheckLevel
from bpfnb.tracer.compile import engine, headers
from bpfnb.tracer.doctor import distribution, kconfig
from bpfnb.tracer.doctor.distribution import Distribution, as_root
from bpfnb.tracer.doctor.kconfig import Config, Option
from bpfnb.tracer.kernel import capabilities, features, tracefs
from bpfnb.tracer.kernel.btf import btf_of
from bpfnb.tracer.kernel.files import mounts
from bpfnb.tracer.kernel.uapi import Capability
from bpfnb.tracer.link import syscall

__all__ = ["ROWS", "Finding", "Machine", "Outcome", "Row", "attempt", "checks", "run"]

_CAPABILITIES = {
    capability: f"CAP_{capability.name}"
    for capability in (Capability.DAC_READ_SEARCH, Capability.SYS_ADMIN, Capability.PERFMON, Capability.BPF)
}
_MIN_LOCKED = 64 << 20  # bytes


class Outcome(NamedTuple):
    """The result of a try. ``works``: None where it could not be tried. ``why``: why not, or why it failed."""

    works: bool | None
    why: str = ""
    errno: int = 0


class Machine(NamedTuple):
    """What the checks look at.

    ``attempt`` tries one of the functions of features.py. ``root``: the folder whose /proc, /sys and /lib/modules are
    read.
    """

    release: str
    architecture: str
    distribution: Distribution
    config: Config
    attempt: Callable[[Callable[[], object]], Outcome]
    alone: bool = False  # there is no tracer, and bcc is not called
    root: Path = Path("/")

    @classmethod
    def here(cls, alone: bool = False) -> Machine:
        release = platform.release()
        try_once = cache(partial(attempt, _forbidden()))
        return cls(release, platform.machine(), distribution.here(), kconfig.read(release), try_once, alone)

    def kernel_with(self, option: str) -> str:
        """Return how to get a kernel with this option."""
        own = self.distribution.owns_kernel(self.release)  # then that kernel is the one without the option
        command = "" if own else self.distribution.install_kernel(self.architecture)
        other = f", such as the distribution's own: {command}" if command else ""
        return f"boot a kernel built with {option} (make menuconfig){other}"


def run(alone: bool = False) -> tuple[Check, ...]:
    """Return every row. ``alone``: this is not a tracer."""
    return tuple(checks(Machine.here(alone)))


def checks(machine: Machine, rows: Sequence[Row] = ()) -> Iterator[Check]:
    """Yield one row for each fact, required ones first. ``rows`` replaces ROWS."""
    rows_or_none = [*map(partial(_guarded, machine), rows or ROWS), *_feature_rows(machine), *option_rows(machine)]
    found = [row for row in rows_or_none if row]
    for level in ("required", "optional", "info"):
        yield from (row for row in found if row.level == level)


class Row(NamedTuple):
    """A row and its check, which returns None where the row does not apply to this machine."""

    name: str
    level: CheckLevel
    check: Callable[[Machine], Finding | None]


class Finding(NamedTuple):
    """The result of a check. ``ok``: None where it is unknown."""

    ok: bool | None
    found: str
    remedy: str = ""


def _guarded(machine: Machine, row: Row) -> Check | None:
    """Return a row, or that it cannot be checked: a check that raises must not prevent the others."""
    try:
        finding = row.check(machine)
    except BpfnbError as error:
        finding = Finding(False, str(error), error.hint or "")
    except Exception as error:
        finding = Finding(None, f"cannot be checked: {error or type(error).__name__}")
    return finding and _as_check(row.name, row.level, finding)


def _as_check(name: str, level: CheckLevel, finding: Finding) -> Check:
    return Check(name, level, bool(finding.ok), finding.found, finding.remedy, finding.ok is not None)


# --- trying -------------------------------------------------------------------------------------------------------


def _forbidden() -> str:
    """Return why nothing that needs rights can be tried here; "" when it can."""
    try:
        capabilities.require()
    except PrivilegeError:
        return "not tried: it takes the tracer's rights"
    return ""


def attempt(forbidden: str, act: Callable[[], object]) -> Outcome:
    """Try something, unless ``forbidden`` gives a reason not to. Never raises."""
    if forbidden:
        return Outcome(None, forbidden)
    try:
        with capabilities.with_sys_admin():
            return Outcome(act() is not False)
    except OSError as error:
        return Outcome(False, error.strerror or str(error), error.errno or 0)
    except BpfnbError as error:
        return Outcome(False, str(error))
    except Exception as error:
        return Outcome(None, f"cannot be tried: {error or type(error).__name__}")


class _Feature(NamedTuple):
    """A kernel feature that a cell may use. ``options``: the kernel options that it needs."""

    name: str
    act: Callable[[], object]
    gives: str
    options: tuple[str, ...] = ()


_PERF, _BTF = "CONFIG_PERF_EVENTS", "CONFIG_DEBUG_INFO_BTF"
_FEATURES = (
    _Feature(
        "kprobes", features.kprobe, "kprobe: and kretprobe: attach", ("CONFIG_KPROBES", "CONFIG_KPROBE_EVENTS", _PERF)
    ),
    _Feature("fentry", features.fentry, "fentry: and fexit: attach", (_BTF, "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS")),
    _Feature("tracepoints", features.tracepoint, "tracepoint: attaches", ("CONFIG_TRACEPOINTS", _PERF)),
    _Feature("raw tracepoints", features.raw_tracepoint, "rawtracepoint: attaches", ("CONFIG_TRACEPOINTS",)),
    _Feature("uprobes", features.uprobe, "uprobe:, uretprobe: and usdt: attach", ("CONFIG_UPROBE_EVENTS", _PERF)),
    _Feature("software events", features.profile, "profile: and software: attach", (_PERF,)),
    _Feature("hardware events", features.hardware_event, "hardware: attaches", (_PERF,)),
    _Feature("LSM hooks", features.lsm, "lsm: attaches", (_BTF, "CONFIG_BPF_LSM")),
    _Feature("ring buffers", features.ring_buffer, "BPF_RINGBUF_OUTPUT can be made"),
    _Feature("perf buffers", features.perf_buffer, "BPF_PERF_OUTPUT can be made", (_PERF,)),
    _Feature("cookies", features.attach_cookie, "bpfnb_probe(ctx) tells a function's probes apart"),
    _Feature("kprobe.multi", features.kprobe_multi, "kprobe: with a wildcard attaches at once", ("CONFIG_FPROBE",)),
    _Feature("uprobe.multi", features.uprobe_multi, "uprobe: with a wildcard attaches at once", ("CONFIG_UPROBES",)),
)


def _feature_rows(machine: Machine) -> Iterator[Check]:
    for feature in _FEATURES:
        finding = _feature(machine, feature)
        if feature.act is features.lsm and finding.ok:
            finding = _asked(machine, finding)
        yield _as_check(feature.name, "optional", finding)


def _feature(machine: Machine, feature: _Feature) -> Finding:
    outcome = machine.attempt(feature.act)
    if outcome.works is None:
        return Finding(None, outcome.why)
    unset = [option for option in feature.options if machine.config.source and not machine.config.is_set(option)]
    if outcome.works:
        return Finding(True, feature.gives + (f", though {machine.config.say(unset[0])}" if unset else ""))
    if unset:
        return Finding(False, f"no: {outcome.why}; {machine.config.say(unset[0])}", machine.kernel_with(unset[0]))
    configured = ", ".join(filter(None, map(machine.config.say, feature.options)))
    found = f"no: {outcome.why}" + (f", though {configured}" if configured else "")
    return Finding(False, found, _permission(machine, outcome) if _PERF in feature.options else "")


def _permission(machine: Machine, outcome: Outcome) -> str:
    """Return the remedy where kernel.perf_event_paranoid is what forbids a perf event."""
    tight = _number(machine, "kernel/perf_event_paranoid") > 2 and Capability.SYS_ADMIN not in _capabilities(machine)
    return as_root("sysctl kernel.perf_event_paranoid=2") if tight and outcome.errno in (EACCES, EPERM) else ""


def _asked(machine: Machine, finding: Finding) -> Finding:
    """Check that LSM programs run: without BPF among the active security modules they attach and never run."""
    try:
        active = (machine.root / "sys/kernel/security/lsm").read_text().strip()
    except OSError:
        return finding._replace(found=f"{finding.found}; whether they run is not seen: securityfs is not mounted")
    if "bpf" in active.split(","):
        return finding
    return Finding(False, f"attach, but never run: the active modules are {active}", f"boot with lsm={active},bpf")


# --- the kernel's configuration -----------------------------------------------------------------------------------

# Which try shows whether an option has its effect, and how success and failure are said.
_EFFECTS: dict[str, tuple[Callable[[], object], str, str]] = {
    "CONFIG_BPF": (features.socket_program, "a program loads", "no program loads"),
    "CONFIG_BPF_SYSCALL": (features.socket_program, "a program loads", "no program loads"),
    "CONFIG_BPF_EVENTS": (features.tracing_program, "tracing programs load", "no tracing program loads"),
    "CONFIG_BPF_JIT": (features.is_jited, "programs are made machine code", "programs are not made machine code"),
    "CONFIG_HAVE_BPF_JIT": (features.is_jited, "programs are made machine code", "programs are not made machine code"),
    "CONFIG_HAVE_EBPF_JIT": (features.is_jited, "programs are made machine code", "programs are not made machine code"),
}


def option_rows(machine: Machine) -> Iterator[Check]:
    """Yield the kernel options that BPF and bcc need, each with its effect where that could be tried."""
    for option in kconfig.options(machine.release):
        readable = bool(machine.config.source)
        yield _as_check(option.name, option.level if readable else "info", _option(machine, option))


def _option(machine: Machine, option: Option) -> Finding:
    act, works, fails = _EFFECTS.get(option.name, (None, "", ""))
    outcome = machine.attempt(act) if act else Outcome(None)
    reason = f" ({outcome.why})" if outcome.why else ""
    effect = {True: works, False: fails + reason, None: ""}[outcome.works]
    if not machine.config.source:
        return Finding(None, "cannot be read" + (f"; {effect}" if effect else f"; for {option.purpose}"))
    value = machine.config.values.get(option.name, "not set")
    is_set = machine.config.is_set(option.name)
    text = "m, a module" if value == "m" else value
    if not effect:
        text += f", for {option.purpose}"
    else:
        text += f", {'and' if is_set == outcome.works else 'yet'} {effect}"
    ok = is_set or outcome.works is True
    return Finding(ok, text, "" if ok else machine.kernel_with(option.name))


def _configuration(machine: Machine) -> Finding:
    if machine.config.source:
        return Finding(True, f"read from {machine.config.source}")
    package = machine.distribution.install_configuration(machine.release)
    ways = [f"{as_root('modprobe configs')} makes /proc/config.gz where the kernel has it as a module"]
    ways += [f"/boot/config-{machine.release} comes with: {package}"] if package else []
    return Finding(None, f"cannot be read: {machine.config.why}", "; ".join(ways))


# --- required -----------------------------------------------------------------------------------------------------


def _bcc(machine: Machine) -> Finding:
    install = machine.distribution.install_bcc()
    try:
        folder = engine.find_bcc()
    except SetupError as error:
        return Finding(False, str(error), install or error.hint or "")
    found = re.search(r"__version__ = '(.+?)'", (folder / "version.py").read_text())
    version = found[1] if found else "of an unknown version"
    try:
        ctypes.CDLL("libbcc.so.0")
    except OSError as error:
        return Finding(False, f"{version} in {folder}, but its library cannot be loaded: {error}", install)
    return Finding(True, f"{version} in {folder}")


def _kernel_headers(machine: Machine) -> Finding:
    if machine.alone and btf_of(machine.root).exists():
        return Finding(True, "can be made from the kernel's BTF")  # the tracer makes and caches them
    try:
        generated = headers.kernel_source(machine.root)
    except SetupError as error:
        install = machine.distribution.install_headers(machine.release)
        return Finding(False, str(error), install or error.hint or machine.kernel_with(_BTF))
    return Finding(True, "made from the kernel's BTF" if generated else "installed, of exactly this kernel")


def _rights(machine: Machine) -> Finding:
    held = [name for number, name in _CAPABILITIES.items() if number in _capabilities(machine)]
    found = f"user {os.geteuid()} with {', '.join(held) or 'none of ' + ', '.join(_CAPABILITIES.values())}"
    try:
        capabilities.require()
    except PrivilegeError as error:
        return Finding(False, found, error.hint or "")
    return Finding(True, found)


def _programs(machine: Machine) -> Finding:
    outcome = machine.attempt(features.tracing_program)
    found = f"no tracing program loads: {outcome.why}" if outcome.works is False else outcome.why
    return Finding(outcome.works, found or "tracing programs load")


def _tracefs(machine: Machine) -> Finding:
    try:
        return Finding(True, f"mounted at {tracefs.root()}")
    except PermissionError:
        place = _mounted(machine, "tracefs")
        return Finding(None, f"mounted at {place}, where only root may look" if place else "not to be seen")
    except SetupError:
        return Finding(False, "not mounted", as_root("mount -t tracefs nodev /sys/kernel/tracing"))


def _syscalls(machine: Machine) -> Finding:
    """Check that probes on system calls attach, in the way that sessions attach them."""
    mode = syscall.mode()
    outcome = machine.attempt(features.kprobe if mode == "kprobe" else features.syscall_tracepoint)
    if outcome.works is not False:
        return Finding(outcome.works, outcome.why or f"attach as {mode}s")
    needed = "CONFIG_KPROBES" if mode == "kprobe" else "CONFIG_FTRACE_SYSCALLS"
    remedy = "" if machine.config.is_set(needed) else machine.kernel_with(needed)
    return Finding(False, f"do not attach as {mode}s: {outcome.why}", _permission(machine, outcome) or remedy)


def _lockdown(machine: Machine) -> Finding:
    """Check for lockdown "confidentiality", which forbids reading kernel memory, kprobes, perf events, tracefs."""
    try:
        mode = re.findall(r"\[(\w+)\]", (machine.root / "sys/kernel/security/lockdown").read_text())[0]
    except FileNotFoundError:
        mode = ""  # no such security module, or securityfs is not mounted; only trying can tell
    outcome = machine.attempt(features.read_kernel_memory)
    strict = mode == "confidentiality"
    if outcome.works is False or strict:
        why = "" if strict else f": {outcome.why}"
        remedy = "boot without lockdown=confidentiality" if strict else ""
        return Finding(False, f"{mode or 'unknown'}; programs may not read the kernel's memory{why}", remedy)
    if outcome.works:
        return Finding(True, f"{mode or 'not visible'}; programs may read the kernel's memory")
    return Finding(True if mode else None, mode or "not visible")


# --- optional -----------------------------------------------------------------------------------------------------


def _printk(machine: Machine) -> Finding:
    if not tracefs.is_writable() and machine.attempt(features.snprintf).works:
        return Finding(True, "goes through a ring buffer: only user 0 may make a tracefs instance")
    if (outcome := machine.attempt(_make_instance)).works is None:
        return Finding(None, outcome.why)
    if not (tracefs.root() / "events/bpf_trace/bpf_trace_printk").is_dir():
        return Finding(False, "no: this kernel has no event bpf_trace:bpf_trace_printk (Linux 5.9 brought it)")
    if not outcome.works:
        return Finding(False, f"no: {outcome.why}", "start Jupyter as root, or allow this user `sudo -n`")
    return Finding(True, "is read through a tracefs instance of its own")


def _make_instance() -> None:
    tracefs.Instance("check", 8).close()


def _kernel_btf(machine: Machine) -> Finding:
    btf = btf_of(machine.root)
    try:
        size = btf.stat().st_size
    except FileNotFoundError:
        said = machine.config.say(_BTF)
        return Finding(False, f"no {btf}" + (f"; {said}" if said else ""), machine.kernel_with(_BTF))
    return Finding(True, f"{btf}, {size / 1e6:.1f} MB")


def _jit(machine: Machine) -> Finding:
    outcome = machine.attempt(features.is_jited)
    if outcome.works is not False:
        return Finding(outcome.works, outcome.why or "programs run as machine code")
    off = _number(machine, "net/core/bpf_jit_enable") == 0
    remedy = as_root("sysctl net.core.bpf_jit_enable=1") if off else ""
    return Finding(False, "programs are interpreted" + (": net.core.bpf_jit_enable is 0" if off else ""), remedy)


def _locked_memory(machine: Machine) -> Finding | None:
    """Check the limit of locked memory on kernels before v5.11, which count maps and programs against it.

    Newer ones count them as the control group's memory: Linux commit 97306be45fbe ("Merge branch 'switch to memcg-based
    memory accounting'").
    """
    if kconfig.version(machine.release) >= (5, 11):
        return None
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit == resource.RLIM_INFINITY:
        return Finding(True, "not limited")
    found = f"{limit:,} bytes, which maps and programs are counted against before Linux 5.11"
    enough = limit >= _MIN_LOCKED
    return Finding(enough, found, "" if enough else "ulimit -l unlimited, as root, in the shell that starts Jupyter")


def _cost(machine: Machine) -> Finding:
    """Check that the kernel times programs, so that their cost is known."""
    outcome = machine.attempt(features.run_statistics)
    if outcome.works is None:
        return Finding(None, outcome.why)
    if outcome.works:
        return Finding(True, "the kernel times programs: session.cost tells, and max_cost is guarded")
    found = f"the kernel does not time programs: {outcome.why}; max_rate and max_memory are guarded, max_cost is not"
    return Finding(False, found, "give the tracer CAP_SYS_ADMIN" if outcome.errno == EPERM else "")


# --- for information ----------------------------------------------------------------------------------------------


def _kernel(machine: Machine) -> Finding:
    return Finding(True, f"Linux {machine.release} on {machine.architecture}")


def _distribution(machine: Machine) -> Finding:
    return Finding(True, machine.distribution.name)


def _debugfs(machine: Machine) -> Finding:
    return _mount(machine, "debugfs", "debugfs", "/sys/kernel/debug", "tracefs has all that bpfnb reads")


def _bpffs(machine: Machine) -> Finding:
    return _mount(machine, "bpf", "bpffs", "/sys/fs/bpf", "bpfnb pins nothing")


def _mount(machine: Machine, kind: str, source: str, target: str, why: str) -> Finding:
    place = _mounted(machine, kind)
    if place:
        return Finding(True, f"mounted at {place}")
    return Finding(False, f"not mounted, and not needed: {why}", as_root(f"mount -t {kind} {source} {target}"))


def _unprivileged(machine: Machine) -> Finding:
    meaning = {
        0: "any user may load some kinds of programs",
        1: "only the privileged may load programs, until the next boot",
        2: "only the privileged may load programs",
    }
    value = _number(machine, "kernel/unprivileged_bpf_disabled")
    return Finding(True, f"{value}: {meaning[value]}") if value in meaning else Finding(None, "cannot be read")


def _paranoid(machine: Machine) -> Finding:
    value = _number(machine, "kernel/perf_event_paranoid")
    if value == _UNREADABLE:
        return Finding(None, "cannot be read")
    strict = "perf events, and so most probes, may take CAP_SYS_ADMIN, which the tracer has while it attaches"
    return Finding(True, f"{value}: {strict if value > 2 else 'CAP_PERFMON is enough for perf events'}")


# --- pieces -------------------------------------------------------------------------------------------------------

_UNREADABLE = -1000


def _number(machine: Machine, name: str) -> int:
    """Return a setting of /proc/sys; _UNREADABLE where it cannot be read."""
    try:
        return int((machine.root / "proc/sys" / name).read_text())
    except (OSError, ValueError):
        return _UNREADABLE


def _capabilities(machine: Machine) -> set[int]:
    """Return this thread's permitted capabilities."""
    text = (machine.root / "proc/thread-self/status").read_text()
    mask = int(re.findall(r"^CapPrm:\s*(\w+)", text, re.M)[0], 16)
    return {number for number in range(64) if mask >> number & 1}


def _mounted(machine: Machine, kind: str) -> str:
    """Return where a file system of this kind is mounted; "" where none is."""
    return next((place for place, type_ in mounts(machine.root) if type_ == kind), "")


ROWS = (
    Row("bcc", "required", _bcc),
    Row("kernel headers", "required", _kernel_headers),
    Row("capabilities", "required", _rights),
    Row("BPF programs", "required", _programs),
    Row("tracefs", "required", _tracefs),
    Row("syscall probes", "required", _syscalls),
    Row("lockdown", "required", _lockdown),
    Row("bpf_trace_printk", "optional", _printk),
    Row("BTF", "optional", _kernel_btf),
    Row("JIT", "optional", _jit),
    Row("locked memory", "optional", _locked_memory),
    Row("cost of programs", "optional", _cost),
    Row("kernel", "info", _kernel),
    Row("distribution", "info", _distribution),
    Row("kernel configuration", "info", _configuration),
    Row("debugfs", "info", _debugfs),
    Row("bpffs", "info", _bpffs),
    Row("unprivileged_bpf_disabled", "info", _unprivileged),
    Row("perf_event_paranoid", "info", _paranoid),
)


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(run(alone=True)))
