"""Marks single parameters of a test as portable: on other kernels, in an emulator, one of a kind has to be enough."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

__all__ = ["among", "portable"]


def portable(*values: Any) -> Any:
    """A parameter that is also tried on other kernels."""
    return pytest.param(*values, marks=pytest.mark.portable)


def among(names: Iterable[str], chosen: Collection[str]) -> list[Any]:
    """The names as parameters, of which ``chosen`` are also tried on other kernels."""
    every = list(names)
    assert set(chosen) <= set(every)
    return [portable(name) if name in chosen else name for name in every]
