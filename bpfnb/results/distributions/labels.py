"""Labels of buckets, in units."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bpfnb.results import buckets
from bpfnb.results.buckets import HistKind

__all__ = ["labels_of"]


def labels_of(low: npt.NDArray[np.float64], high: npt.NDArray[np.float64], unit: str, kind: HistKind) -> list[str]:
    """Return a label for each bucket, as ``df.bpf.hist`` has them: "[1.02us, 2.05us)", "[4KiB, 8KiB)", "[4]".

    ``unit``: of the bounds; "" for plain numbers, which are written as powers of two are where they are some.
    """
    write = buckets.writer(kind, unit or None)
    return buckets.labels_of(low.tolist(), high.tolist(), write, singles=not unit)
