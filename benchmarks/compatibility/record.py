"""What a tool asks of bcc on this kernel: the C it has put together, clang's flags, and what it attaches.

A tool runs as it is, in a process of its own, with the distribution's own bcc of which one class is replaced: this BPF
notes what it is asked for, says yes, and ends the process where the tool would begin to wait for events. What only
looks at the kernel (which functions, tracepoints and fields there are) is bcc's own and answers for this kernel.
"""

from __future__ import annotations

import builtins
import curses
import io
import os
import re
import runpy
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from benchmarks.compatibility.tools import Run, runs
from bpfnb.language.probes import KINDS
from bpfnb.tracer.compile.engine import Engine

__all__ = ["Recorder", "Recording"]

_SHARE = Path("/usr/share/bpfcc-tools")
_VARIABLES = "".join(
    f"ffffffff81000000 D {name}\n" for name in ("btrfs_file_operations", "ext4_file_operations", "vm_zone_stat")
)
_PATIENCE = 120.0  # seconds; a guest's processor is emulated


class Recording(msgspec.Struct, frozen=True):
    """``text``: "" where the tool gave up before it had a program; ``said`` then tells why. ``probes``: pairs of a
    probe, as bpfnb writes it, and a function. ``usdt``: whether bcc generates code for USDT arguments."""

    text: str = ""
    cflags: tuple[str, ...] = ()
    probes: tuple[tuple[str, str], ...] = ()
    said: str = ""


class Recorder:
    """Runs tools. ``bcc``: the distribution's package, imported. ``fentry``: whether this kernel lets programs be
    attached that way; bcc itself asks only whether the kernel was built with it."""

    def __init__(self, bcc: Any, *, fentry: bool) -> None:
        self._bcc = bcc
        self._fentry = fentry
        self._functions = _traceable(bcc)
        bcc.BPF.ksymname(b"bpf_prog_put")  # reads the kernel's symbols, which every tool's process then has

    def record(self, run: Run, names: dict[str, str]) -> Recording:
        """``names``: what the arguments' {placeholders} stand for."""
        arguments = [argument.format(**names) if "{" in argument else argument for argument in run.arguments]
        recording = self._run(run.script, arguments, strict=True)
        if not recording.said:
            return recording
        # It gave up over something that this kernel does not have: let it go on, to have the program whole.
        whole = self._run(run.script, arguments, strict=False)
        return msgspec.structs.replace(whole, said=recording.said) if whole.text else recording

    def _run(self, script: Path, arguments: Sequence[str], *, strict: bool) -> Recording:
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as result:
            pid = os.fork()
            if pid == 0:
                _Tool(self._bcc, result.fileno(), self._fentry, self._functions, strict).run(
                    script, arguments, said.fileno()
                )
            _await(pid)
            result.seek(0)
            said.seek(0)
            noted = result.read()
            if noted:
                return msgspec.json.decode(noted, type=Recording)
            return Recording(said=_last_line(said.read().decode(errors="replace")) or "ended without a word")


def _await(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    if not select.select([pidfd], [], [], _PATIENCE)[0]:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(pidfd)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _traceable(bcc: Any) -> list[bytes]:
    """What BPF.get_kprobe_functions chooses from, read once. Without kprobes there is no blacklist to open."""
    blacklist = Path("/sys/kernel/debug/kprobes/blacklist")
    if blacklist.exists():
        return sorted(bcc.BPF.get_kprobe_functions(b""))
    lines = [line.split()[:3] for line in Path("/proc/kallsyms").read_bytes().splitlines()]
    odd = re.compile(rb"_kbl_addr_|__perf|perf_|__SCT__|.*\.cold(\.\d+)?$")
    return sorted({name for _, kind, name in lines if kind.lower() in b"tw" and not odd.match(name)})


class _Anything(int):
    """A table, a callback, a number: whatever a tool does with it before it waits."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, _: Any) -> Any:
        return self

    def __setitem__(self, *_: Any) -> None:
        pass

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


class _Tool:
    """The process of one tool."""

    def __init__(self, bcc: Any, result: int, fentry: bool, functions: list[bytes], strict: bool) -> None:
        self.bcc = bcc
        self.result = result
        self.fentry = fentry
        self.functions = functions
        self.strict = strict
        self.text = b""
        self.cflags: list[str] = []
        self.probes: list[tuple[str, str]] = []
        self.said: Callable[[], str] = lambda: ""
        self.script = Path()

    def run(self, script: Path, arguments: Sequence[str], said: int) -> NoReturn:
        self.script = script
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        self.said = lambda: _last_line(os.pread(said, 1 << 16, 0).decode(errors="replace"))
        why = ""
        try:
            self._replace()
            sys.argv = [str(script), *arguments]
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as error:
            why = error.code if isinstance(error.code, str) else self._flushed() if error.code else ""
        except BaseException as error:
            traceback.print_exc()
            why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        self.finish(why)

    def _flushed(self) -> str:
        sys.stdout.flush()
        sys.stderr.flush()
        return self.said() or "gave up"

    def finish(self, why: str = "") -> NoReturn:
        """Note what is known, and end. Nothing is written where there was no program: what was said has to do."""
        sys.stdout.flush()
        sys.stderr.flush()
        if self.text or why:
            recording = Recording(self.text.decode(), tuple(self.cflags), tuple(dict.fromkeys(self.probes)), why)
            os.write(self.result, msgspec.json.encode(recording))
        os._exit(0)

    def wait(self, *_: Any, **__: Any) -> Any:
        """Where a tool waits for events its program is complete; before, it may wait for something else."""
        if self.text:
            self.finish()

    def _replace(self) -> None:
        self.bcc.BPF = self.bcc.BPF = _recording_class(self)
        self.bcc.USDT = _recording_usdt(self.bcc.USDT)
        for module, name in ((time, "sleep"), (signal, "pause"), (select, "select"), (threading.Event, "wait")):
            setattr(module, name, self.wait)
        self._redirect(open)
        curses.wrapper = lambda function, *args: function(_Anything(), *args)  # type: ignore[assignment]

    def _redirect(self, real_open: Callable[..., Any]) -> None:
        """Three tools read C from where their package puts it, which may be unpacked elsewhere. Others look for
        variables of the kernel's, whose addresses it may not tell."""
        unpacked = self.script.parent.parent / "share/bpfcc-tools"

        def redirected(file: Any, *arguments: Any, **named: Any) -> Any:
            if file == "/proc/kallsyms" and not self.strict:
                return io.StringIO(Path(file).read_text() + _VARIABLES)
            if isinstance(file, str) and not _SHARE.exists():
                file = file.replace(str(_SHARE), str(unpacked))
            return real_open(file, *arguments, **named)

        setattr(builtins, "open", redirected)  # noqa: B010 (mypy knows the real one's overloads)

    def attach(self, probe: str, function: bytes | str, *, there: bool = True) -> None:
        if not there and self.strict:
            raise Exception(f"Failed to attach {_text(function)}: there is no {probe}")
        self.probes.append((probe, _text(function)))


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _bytes(name: bytes | str) -> bytes:
    return name if isinstance(name, bytes) else str(name).encode()


def _recording_usdt(real: Any) -> Any:
    class Usdt(real):  # type: ignore[misc]
        def __init__(self, pid: Any = None, path: Any = None) -> None:
            super().__init__(pid=pid, path=path)
            self.enabled: list[tuple[str, str]] = []

        def enable_probe(self, probe: str, fn_name: str) -> None:
            super().enable_probe(probe, fn_name)
            provider, _, name = probe.rpartition(":")
            for known in self.enumerate_probes():
                if known.name.decode() == name and provider in ("", known.provider.decode()):
                    target = f"usdt:{known.bin_path.decode()}:{known.provider.decode()}:{name}"
                    self.enabled.append((target, fn_name))
                    break

    return Usdt


def _recording_class(tool: _Tool) -> Any:
    """The BPF class that a tool gets."""
    real: Any = tool.bcc.BPF
    names = set(tool.functions)

    class Bpf(real):  # type: ignore[misc]
        def __init__(  # bcc's own arguments
            self,
            src_file: Any = b"",
            hdr_file: Any = b"",
            text: Any = None,
            debug: int = 0,
            cflags: Sequence[Any] = (),
            usdt_contexts: Sequence[Any] = (),
            **_: Any,
        ) -> None:
            if src_file:
                with open(_text(src_file), "rb") as file:  # noqa: PTH123 (which is redirected)
                    text = file.read()
            tool.text = _bytes(text)
            tool.cflags = [_text(flag) for flag in cflags]
            for usdt in usdt_contexts:
                tool.probes += usdt.enabled
            self.tables: Any = _Anything()
            self.funcs: Any = {}

        # What it would do to the kernel.

        def load_func(self, func_name: Any, *_: Any, **__: Any) -> Any:
            return self.Function(self, func_name, 0)

        def attach_kprobe(self, event: Any = b"", event_off: int = 0, fn_name: Any = b"", event_re: Any = b"") -> Any:
            self._kernel("kprobe", event, event_re, fn_name, event_off)

        def attach_kretprobe(
            self, event: Any = b"", fn_name: Any = b"", event_re: Any = b"", maxactive: int = 0
        ) -> Any:
            self._kernel("kretprobe", event, event_re, fn_name, 0)

        def _kernel(self, kind: str, event: Any, event_re: Any, function: Any, offset: int) -> None:
            wanted = sorted(self.get_kprobe_functions(_bytes(event_re))) if event_re else [_bytes(event)]
            if not wanted:  # bcc is content to attach nothing; the table is to say so
                plain = re.search(r"\w+", _text(event_re))
                tool.probes.append((f"{kind}:{plain[0] if plain else '?'}", _text(function)))
            for name in wanted:
                probe = f"{kind}:{_text(name)}" + (f"+{offset}" if offset else "")
                tool.attach(probe, function, there=name in names)

        def attach_tracepoint(self, tp: Any = b"", tp_re: Any = b"", fn_name: Any = b"") -> Any:
            for name in self.get_tracepoints(_bytes(tp_re)) if tp_re else [_text(tp)]:
                tool.attach(f"tracepoint:{name}", fn_name, there=self.tracepoint_exists(*name.split(":")))

        def attach_raw_tracepoint(self, tp: Any = b"", fn_name: Any = b"") -> Any:
            tool.attach(f"rawtracepoint:{_text(tp)}", fn_name)

        def attach_kfunc(self, fn_name: Any = b"") -> Any:
            """Named so, it is attached anyway."""

        attach_kretfunc = attach_lsm = attach_kfunc

        def attach_uprobe(self, *arguments: Any, **named: Any) -> Any:
            self._user("uprobe", *arguments, **named)

        def attach_uretprobe(self, *arguments: Any, **named: Any) -> Any:
            self._user("uretprobe", *arguments, **named)

        def _user(
            self,
            kind: str,
            name: Any = b"",
            sym: Any = b"",
            sym_re: Any = b"",
            addr: Any = None,
            fn_name: Any = b"",
            pid: int = -1,
            sym_off: int = 0,
        ) -> None:
            if sym_re:
                for function, _ in self.get_user_functions_and_addresses(_bytes(name), _bytes(sym_re)):
                    self._user(kind, name, function, fn_name=fn_name, pid=pid)
                return
            path, address = self._check_path_symbol(_bytes(name), _bytes(sym), addr, pid, sym_off)
            symbol = _text(sym) + (f"+{sym_off}" if sym_off else "") if sym else f"{address:#x}"
            tool.attach(f"{kind}:{_text(path)}:{symbol}", fn_name)

        def attach_perf_event(
            self, ev_type: int = -1, ev_config: int = -1, fn_name: Any = b"", sample_period: int = 0,
            sample_freq: int = 0, pid: int = -1, cpu: int = -1, group_fd: int = -1,
        ) -> Any:  # fmt: skip
            tool.attach(_perf(ev_type, ev_config, sample_period, sample_freq), fn_name)

        # What it would do with the kernel's answers.

        def get_table(self, *_: Any, **__: Any) -> Any:
            return _Anything()

        __getitem__ = get_table
        perf_buffer_poll = perf_buffer_consume = ring_buffer_poll = ring_buffer_consume = tool.wait
        kprobe_poll = trace_fields = trace_readline = trace_print = trace_open = tool.wait

        def num_open_kprobes(self) -> int:
            return sum(probe.startswith(("kprobe:", "kretprobe:")) for probe, _ in tool.probes)

        def num_open_uprobes(self) -> int:
            return sum(probe.startswith(("uprobe:", "uretprobe:")) for probe, _ in tool.probes)

        def num_open_tracepoints(self) -> int:
            return sum(probe.startswith("tracepoint:") for probe, _ in tool.probes)

        def cleanup(self) -> None:
            pass

        close = detach_kprobe = detach_kretprobe = cleanup

        # What it asks of the kernel and bcc cannot answer everywhere.

        @staticmethod
        def get_kprobe_functions(event_re: Any) -> Any:
            return {name for name in tool.functions if re.match(event_re, name)}

        @staticmethod
        def ksymname(name: Any) -> Any:
            address = real.ksymname(name)
            # Kernels without CONFIG_KALLSYMS_ALL do not tell where their data is.
            return 0xFFFFFFFF81000000 if address == -1 and not tool.strict else address

        @staticmethod
        def support_kfunc() -> bool:
            return tool.fentry and bool(real.support_kfunc())

    return Bpf


def _perf(kind: int, config: int, period: int, frequency: int) -> str:
    """A perf event by bpfnb's name: include/uapi/linux/perf_event.h."""
    if (kind, config) == (1, 0) and frequency:
        return f"profile:{frequency}"
    event = list(KINDS["software" if kind == 1 else "hardware"].events)[config]
    return f"{'software' if kind == 1 else 'hardware'}:{event}" + (f":{period}" if period else "")


def main(arguments: list[str]) -> None:
    """SBIN TOOL ...: what each does at its defaults, as JSON; for tools that need no arguments."""
    sbin, *wanted = arguments
    recorder = Recorder(Engine().bcc, fentry=False)
    found = {run.tool: recorder.record(run, {}) for run in runs(Path(sbin)) if run.first and run.tool in wanted}
    sys.stdout.write(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    main(sys.argv[1:])
