"""Read the configuration that this kernel was built with, and list the options that BPF and bcc need.

The options are those of bcc's INSTALL.md, section "Kernel Configuration".
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from bpfnb.protocol.messages import CheckLevel

__all__ = ["Config", "Option", "options", "read", "version"]


class Option(NamedTuple):
    """A kernel option. ``since``, ``until``: the first and the last kernel version that has it."""

    name: str
    level: CheckLevel  # "required" for tracing, or "optional"
    purpose: str  # what it is for
    since: tuple[int, int] = (0, 0)
    until: tuple[int, int] = (9999, 0)


_EXAMPLES = "bcc's networking examples"
_OPTIONS = (
    Option("CONFIG_BPF", "required", "BPF itself"),
    Option("CONFIG_BPF_SYSCALL", "required", "loading programs"),
    # bcc calls it optional, "for kprobes"; programs on tracepoints and perf events need it as well.
    Option("CONFIG_BPF_EVENTS", "required", "programs on kprobes, tracepoints and perf events"),
    Option("CONFIG_BPF_JIT", "optional", "running programs as machine code"),
    Option("CONFIG_HAVE_BPF_JIT", "optional", "running programs as machine code", (4, 1), (4, 6)),
    # Linux commit 6077776b5908 ("bpf: split HAVE_BPF_JIT into cBPF and eBPF variant") (in v4.7).
    Option("CONFIG_HAVE_EBPF_JIT", "optional", "running programs as machine code", (4, 7)),
    Option("CONFIG_NET_CLS_BPF", "optional", "tc filters"),
    Option("CONFIG_NET_ACT_BPF", "optional", "tc actions"),
    Option("CONFIG_NET_SCH_SFQ", "optional", _EXAMPLES),
    Option("CONFIG_NET_ACT_POLICE", "optional", _EXAMPLES),
    Option("CONFIG_NET_ACT_GACT", "optional", _EXAMPLES),
    Option("CONFIG_DUMMY", "optional", _EXAMPLES),
    Option("CONFIG_VXLAN", "optional", _EXAMPLES),
)


def options(release: str) -> list[Option]:
    """Return the options that BPF and bcc need of a kernel of this release."""
    return [option for option in _OPTIONS if option.since <= version(release) <= option.until]


def version(release: str) -> tuple[int, int]:
    """Return the version of a release: (6, 18) for "6.18.44-fc", (7, 0) for "7.0-rc1"."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


class Config(NamedTuple):
    """A kernel's configuration. ``source``: the file it was read from; "" where there was none, and ``why`` says so."""

    source: str
    values: Mapping[str, str]
    why: str = ""

    def is_set(self, option: str) -> bool:
        """Return whether an option is built in or a module."""
        return self.values.get(option) in ("y", "m")

    def say(self, option: str) -> str:
        """Return ``CONFIG_BPF=y`` or ``CONFIG_DUMMY is not set``; "" where the configuration cannot be read."""
        if not self.source:
            return ""
        return f"{option}={self.values[option]}" if option in self.values else f"{option} is not set"


def read(release: str, root: Path = Path("/")) -> Config:
    """Read the configuration of the running kernel, which is of this release."""
    why = []
    for path in (
        root / "proc/config.gz",
        root / f"boot/config-{release}",
        root / f"lib/modules/{release}/config",  # Fedora
    ):
        try:
            data = path.read_bytes()
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode(errors="replace")
        except FileNotFoundError:
            continue
        except (OSError, EOFError, zlib.error) as error:
            why.append(f"{path}: {getattr(error, 'strerror', None) or error}")
            continue
        # An option that is not set has a comment, or no line at all where what it depends on is not set either.
        return Config(str(path), dict(re.findall(r"^(CONFIG_\w+)=(.*)$", text, re.M)))
    return Config("", {}, "; ".join(why) or f"there is neither /proc/config.gz nor /boot/config-{release}")
