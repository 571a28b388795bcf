"""The constants of constants.txt, by kind; scripts/tables.py makes that file from the kernel's headers."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

__all__ = ["CONSTANTS_FILE", "names"]

CONSTANTS_FILE = Path(__file__).with_name("constants.txt")


@functools.cache
def names(kind: str, machine: str) -> Mapping[int, str]:
    """Return {number: name} of a kind, as a machine has them (``platform.machine()``)."""
    common, special = _tables().get(kind, {}), _tables().get(f"{kind}.{machine}", {})
    return MappingProxyType({number: name for name, number in (common | special).items()})


@functools.cache
def _tables() -> dict[str, dict[str, int]]:
    tables: dict[str, dict[str, int]] = {}
    for line in CONSTANTS_FILE.read_text().splitlines():
        if not line.startswith("#"):
            kind, name, number = line.split()
            tables.setdefault(kind, {})[name] = int(number, 16)
    return tables
