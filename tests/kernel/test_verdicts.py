"""A corpus of programs the verifier refuses: each yields its class and its line, on every kernel.

tests/corpus/verifier/*.c: ``// class:`` the class, ``// attach:`` the probe, ``<- here`` on the line; ``// until:``
the first kernel that takes the program, ``// needs: fentry`` a kernel that has it.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

import bpfnb
from bpfnb.language.probes import split_attach

CORPUS = sorted((Path(__file__).parents[1] / "corpus/verifier").glob("*.c"))


def header(source: str, name: str) -> str:
    found = re.search(rf"^// {name}: (.*)$", source, re.M)
    return found[1] if found else ""


def kernel() -> tuple[int, ...]:
    return tuple(int(number) for number in platform.release().split("-")[0].split(".")[:2])


# Also tried on other kernels each time; the others there with scripts/test --full only.
_PORTABLE = {
    "context", "endless_loop", "fentry_result", "jump_out", "kernel_memory", "map_bounds",
    "modified_context", "padding", "stack_bounds", "unchecked_lookup", "uninitialised_struct", "unreleased",
}  # fmt: skip
CASES = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.portable] if path.stem in _PORTABLE else []) for path in CORPUS
]


@pytest.mark.parametrize("path", CASES)
def test_a_refused_program_yields_its_class_and_its_line(path: Path) -> None:
    source = path.read_text()
    start = {"name": "refused", "attach": dict([split_attach(header(source, "attach"))])}
    until = header(source, "until")
    if until and kernel() >= tuple(int(number) for number in until.split(".")):
        bpfnb.trace(source, **start).stop()  # a mistake no more
        return
    with pytest.raises(bpfnb.BpfnbError) as caught:
        bpfnb.trace(source, **start)
    error = caught.value
    if header(source, "needs") == "fentry" and not isinstance(error, bpfnb.VerifierError):
        pytest.skip(f"no fentry on this kernel: {error}")
    assert isinstance(error, bpfnb.VerifierError), error
    assert error.kind == header(source, "class")
    assert error.line == next(n for n, text in enumerate(source.splitlines(), 1) if "<- here" in text)
    assert error.explanation
    assert error.log
    report = "\n".join(error.report())
    assert error.explanation in report
    assert "Failed to compile" not in report
    assert "Traceback" not in report


def test_a_stack_too_large_is_said_with_its_line() -> None:
    source = (
        "int f(void *ctx) {\n    char text[600] = {};\n    bpf_get_current_comm(text, 600);\n    return text[1];\n}"
    )
    with pytest.raises(bpfnb.CompileError, match="512 bytes") as caught:
        bpfnb.trace(source, name="large", attach={"syscall:sync": "f"})
    assert caught.value.line in (1, 2, 3)
    assert "BPF_PERCPU_ARRAY" in (caught.value.hint or "")
