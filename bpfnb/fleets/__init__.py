"""Many machines as one: the workers of a Dask cluster, each with a tracer of its own.

    fleet = bpfnb.fleet(client)                  # distributed.Client, of any cluster
    opens = fleet.count("syscall:openat", by="comm")
    opens.top("comm")

This package's modules import dask; this one does not, until ``fleet`` is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bpfnb.errors import ProgramError, UnsupportedError

if TYPE_CHECKING:
    from bpfnb.fleets.fleet import Fleet
    from bpfnb.host.connector import Launch

__all__ = ["fleet"]


def fleet(client: Any, *, machine: Callable[[Any], str] | None = None, launch: Launch | None = None) -> Fleet:
    """Return the machines of a Dask cluster's workers as a fleet: one tracer a machine, however many workers it has.

        client = distributed.Client(cluster)      # with distributed.Security: see docs/fleets.md
        with bpfnb.fleet(client) as fleet:
            opens = fleet.trace(source, attach={"syscall:openat": "f"})
            opens.df                              # a dask DataFrame, with a column host

    ``client``    a distributed.Client. Machines that join its cluster later are joined.
    ``machine``   a function of a worker (distributed.Worker), called there, that returns the name of its machine. By
                  default workers on one kernel (its boot id) are on one machine, called as its hostname.
    ``launch``    what starts a tracer there: see ``Host``. A function that workers can import.

    Machines that cannot be had are in ``failures`` and warned of once. Whoever reaches the cluster's scheduler runs
    code on every worker, as its user: that is how dask works, and bpfnb makes it no safer. Use TLS.

    UnsupportedError without dask, ProgramError for what is no client.
    """
    try:
        import dask.dataframe  # noqa: F401
        import distributed
    except ImportError as error:
        raise UnsupportedError(
            f"a fleet needs dask, and {error.name} is not installed", hint="pip install 'bpfnb[fleet]'"
        ) from None
    if not isinstance(client, distributed.Client):
        raise ProgramError(f"fleet() takes a distributed.Client, not {type(client).__name__}")
    from bpfnb.fleets.fleet import Fleet

    return Fleet(client, machine, launch)
