"""The two tables of kinds of probe: how each is written, and how it is attached."""

from __future__ import annotations

from bpfnb.language import probes
from bpfnb.tracer.kernel.uapi import AttachType
from bpfnb.tracer.link import kinds


def test_what_can_be_written_can_be_attached() -> None:
    assert kinds.KINDS.keys() == probes.KINDS.keys()


def test_a_function_is_loaded_for_a_target_only_where_the_kernel_wants_that() -> None:
    specs = {kind: kinds.spec(probes.Probe(kind, "a:b", "f", f"{kind}:a:b", 1)) for kind in kinds.KINDS}
    assert {kind: spec.attach_type for kind, spec in specs.items() if spec.attach_type} == {
        "fentry": AttachType.TRACE_FENTRY,
        "fexit": AttachType.TRACE_FEXIT,
        "lsm": AttachType.LSM_MAC,
    }
    assert {kind for kind, spec in specs.items() if spec.attach_to == "a:b"} == {"fentry", "fexit", "lsm"}
