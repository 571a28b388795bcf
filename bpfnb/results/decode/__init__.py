"""Numbers of the kernel as what they mean: error numbers, signals, flags, addresses, states.

values(series, "errno")                    a column decoded
with_decoded(frame, {"ret": "errno"})      beside the column, as ret_errno: df.bpf.decode(ret="errno")
KINDS                                      what a column can be decoded as
kind_of("__be16", "dport")                 what a value is by its type, name and probe, or None
"""

from bpfnb.results.decode.guess import kind_of
from bpfnb.results.decode.kinds import KINDS, Kind
from bpfnb.results.decode.values import values, with_decoded

__all__ = ["KINDS", "Kind", "kind_of", "values", "with_decoded"]
