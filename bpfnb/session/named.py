"""Outputs and maps by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TypeVar

from bpfnb.errors import UnknownName

__all__ = ["NamedMapping"]

Value = TypeVar("Value")


class NamedMapping(Mapping[str, Value]):
    """A read-only mapping whose KeyError, an UnknownName, says what there is."""

    def __init__(self, values: dict[str, Value], why: Callable[[str], str]) -> None:
        self._values = MappingProxyType(values)
        self._why = why

    def __getitem__(self, name: str) -> Value:
        if name in self._values:
            return self._values[name]
        raise UnknownName(self._why(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(dict(self._values))
