"""Session: one program that runs in the kernel, and all that it has delivered so far."""

from bpfnb.session.session import DETACH_TIMEOUT, Session

__all__ = ["DETACH_TIMEOUT", "Session"]
