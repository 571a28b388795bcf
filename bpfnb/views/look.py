"""What all pictures share, by whatever they are drawn: colours, and numbers with their units. Needs no matplotlib."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from bpfnb.errors import ProgramError, near_or_all

__all__ = [
    "COLOURS",
    "HEAT",
    "NANOSECONDS",
    "OTHER",
    "THEMES",
    "Colours",
    "Theme",
    "Unit",
    "Write",
    "colour",
    "dashes",
    "is_other",
    "known_unit",
    "pandas_unit",
    "power_of_two",
    "short",
    "theme_of",
    "with_unit",
]

# Colours of a series. Light and dark pages show the same ones, so each has a contrast of 3:1 at least with white and
# with JupyterLab's dark #111111 (what WCAG 2 asks of graphics): a luminance from 0.117 to 0.300. Okabe and Ito's and
# Tableau's colour-blind ones do not fit in there: yellow is 1.3:1 on white. These are eight within it that differ the
# most, also for colour-blind people: distances in OKLab (times 100) of at least 16 in normal sight, 9.9 in simulated
# deuteranopia and protanopia, 9.0 in tritanopia (Machado, Oliveira, Fernandes 2009), where Okabe and Ito's seven have
# 15.6, 7.6, 9.6 and 8.5. A test holds them to that. Each differs the most from those before it.
COLOURS = ("#1296fc", "#fc5a66", "#7e5a00", "#006c96", "#009c12", "#b4246c", "#b484ba", "#7e54d8")
OTHER = "#8b9099"  # what is summed as "other"
HEAT = ((0.0, COLOURS[0], 0.16), (0.5, COLOURS[0], 0.9), (1.0, COLOURS[1], 1.0))
"""Places, colours and opacities of a heat map: more is stronger on a white page and on a dark one, as the page shines
through what is little; then blue becomes red, which colour-blind people tell apart as well."""

Theme = Literal["auto", "light", "dark"]
Unit = Literal["ns", "us", "ms", "s", "bytes"]
Write: TypeAlias = Callable[[float], str]


class Colours(NamedTuple):
    """``ink``: of text and axes; ``background``: behind all."""

    ink: str
    background: str


# "auto" is for either page: transparent, with an ink that has 4.3:1 on white and on #111111 alike.
THEMES: dict[Theme, Colours] = {
    "auto": Colours("#7a7a7e", "none"),
    "light": Colours("#3b3f46", "#ffffff"),
    "dark": Colours("#c6cad1", "#111111"),
}


def theme_of(theme: str) -> Colours:
    """Return a theme's colours. ValueError for an unknown one."""
    if theme not in THEMES:
        raise ProgramError(f"no theme {theme!r}{near_or_all(str(theme), get_args(Theme))}")
    return THEMES[theme]


def colour(number: int) -> str:
    """Return the colour of a series by its number."""
    return COLOURS[number % len(COLOURS)]


def dashes(number: int) -> str:
    """Return the line style of a series by its number: solid, and from the ninth on dashed in the same colours."""
    return ("-", "--", ":")[number // len(COLOURS) % 3]


def is_other(name: object) -> bool:
    """Return whether a series is the sum of those that have none of their own."""
    return isinstance(name, str) and (name == "other" or (name.startswith("other (") and name.endswith(")")))


# --- numbers ------------------------------------------------------------------------------------------------------

NANOSECONDS: dict[str, int] = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")


def short(value: float) -> str:
    """Write a number with SI prefixes: ``0``, ``0.25``, ``950``, ``1.5k``, ``20M``."""
    if not math.isfinite(value):
        return str(value)
    power, scaled = 0, value
    while abs(float(f"{scaled:.4g}")) >= 1000 and power < 6:
        power, scaled = power + 1, value / 1000 ** (power + 1)
    return f"{scaled:.4g}{' kMGTPE'[power].strip()}"


def with_unit(unit: str | None) -> Write:
    """Return how numbers of a unit are written: ``4us``, ``20ms``, ``4KiB``; of none with SI prefixes."""
    if unit in NANOSECONDS:
        return lambda value: _duration(value * NANOSECONDS[unit])
    return _bytes if unit == "bytes" else short


def known_unit(unit: str | None) -> str | None:
    """Return a unit as it is. ValueError for an unknown one."""
    if unit is not None and unit not in get_args(Unit):
        raise ProgramError(f"no unit {unit!r}{near_or_all(str(unit), get_args(Unit))}")
    return unit


def pandas_unit(unit: str | None) -> Any:
    """Return a unit of time, ns unless told. ValueError for another."""
    if unit is not None and unit not in NANOSECONDS:
        raise ProgramError(f"durations are not in {unit}{near_or_all(unit, NANOSECONDS)}")
    return unit or "ns"


def _duration(ns: float) -> str:
    if not ns:
        return "0"
    name, size = max(
        ((u, s) for u, s in NANOSECONDS.items() if s <= max(abs(ns) * (1 + 1e-9), 1)), key=lambda pair: pair[1]
    )
    return f"{short(ns / size) if name == 's' else f'{ns / size:.4g}'}{name}"


def _bytes(value: float) -> str:
    power = min(int(math.log2(abs(value)) // 10), 6) if abs(value) >= 1024 else 0
    return f"{value / 1024**power:.4g}{_BINARY[power]}B" if value else "0"


def power_of_two(value: float) -> str:
    """Write as the labels of histograms do: 1024 is 1K."""
    power = min(int(math.log2(value) // 10), 6) if value >= 1024 else 0
    return f"{value / 1024**power:.4g}{' KMGTPE'[power].strip()}"
