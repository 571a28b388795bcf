"""Two sessions side by side: ``bpfnb.compare(a, b)``."""

from bpfnb.comparison.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]
