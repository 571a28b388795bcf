"""Pictures of histograms and heat maps for a saved notebook, by matplotlib."""

from __future__ import annotations

import pandas as pd

from bpfnb.results.distributions.sources import Unit

__all__ = ["heat_picture", "picture"]


def picture(table: pd.DataFrame, unit: Unit) -> bytes:
    """Return a histogram as a PNG. ``table``: low, high, label, and counts."""
    return b""


def heat_picture(table: pd.DataFrame, unit: Unit) -> bytes:
    """Return a heat map as a PNG. ``table``: time, low, high, label, count."""
    return b""
