"""Pieces of attaching, without the kernel's part."""

from __future__ import annotations

from pathlib import Path

from bpfnb.tracer.link.functions import KernelFunctions


def test_functions_of_a_module_loaded_later_are_known(tmp_path: Path) -> None:
    now = 100.0
    kallsyms = tmp_path / "kallsyms"
    kallsyms.write_text("0000000000000000 T vfs_read\n")
    functions = KernelFunctions(kallsyms, lambda: now)
    assert "vfs_read" in functions
    kallsyms.write_text("0000000000000000 T vfs_read\n0000000000000000 t nf_nat_setup\t[nf_nat]\n")
    assert "nf_nat_setup" not in functions  # just read
    now += 3
    assert "nf_nat_setup" in functions
    kallsyms.unlink()
    assert "vfs_read" in functions  # what is known is not looked for again
