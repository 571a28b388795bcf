"""The table of loaders."""

from __future__ import annotations

from typing import cast, get_args

from bpfnb.language.program import Kind
from bpfnb.tracer.compile.compiler import Compiler
from bpfnb.tracer.loaders import loaders


def test_each_kind_of_program_has_a_loader() -> None:
    assert loaders(cast(Compiler, None)).keys() == set(get_args(Kind))
