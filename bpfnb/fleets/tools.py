"""The ready-made tools, on every host of a fleet."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bpfnb.fleets.session import FleetSession
from bpfnb.tools.describe import documentation
from bpfnb.tools.toolbox import find, names

if TYPE_CHECKING:
    from bpfnb.fleets.fleet import Fleet

__all__ = ["FleetTools"]


class FleetTools:
    """The tools of ``bpfnb.tools``: each is a function that starts it on every host of the fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def __getattr__(self, name: str) -> Callable[..., FleetSession]:
        if name.startswith("_"):
            raise AttributeError(name)
        tool = find(name)

        def start(**options: Any) -> FleetSession:
            return self._fleet.start(f"tools.{name}", (), options)

        start.__name__ = start.__qualname__ = name
        start.__doc__ = documentation(tool)
        return start

    def __dir__(self) -> list[str]:
        return list(names())
