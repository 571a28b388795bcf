"""Many probes at once: patterns, the number of the probe that fires, and cheaper ways to attach many."""
