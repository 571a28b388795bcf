"""The faults lane: what goes wrong on machines that matter, done for real; afterwards nothing is left, and nothing that
was delivered is gone."""

from tracing import _tracing, no_leaks

__all__ = ["_tracing", "no_leaks"]
