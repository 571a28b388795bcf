"""The kernel lane: real BPF on the kernel under us."""

from tracing import _tracing, no_leaks

__all__ = ["_tracing", "no_leaks"]
