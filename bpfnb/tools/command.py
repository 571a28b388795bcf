"""A tool's options on a command's line: ``bpfnb run NAME ...`` in a terminal, ``%bpf run NAME ...`` in a notebook."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from bpfnb.errors import ProgramError, did_you_mean
from bpfnb.options import add_options, options_of
from bpfnb.tools.describe import column_lines, explanation
from bpfnb.tools.tool import Option, Tool

__all__ = ["Parser", "parser_of", "values_of"]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ProgramErrors, of one line, with near names."""

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse; unlike parse_args it does not take -time for -t ime."""
        known = self._option_string_actions
        for word in words:
            if word.startswith("-") and f"-{word}" in known:
                self.error(f"there is no option {word}; did you mean -{word}?")
        return self.parse_args(words)

    def option_names(self) -> list[str]:
        """Return the long names of the options, in alphabetical order."""
        return sorted(option for option in self._option_string_actions if option.startswith("--"))

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (-[^\s=]+)", message)
        near = did_you_mean(unknown[1], self._option_string_actions) if unknown else ""
        hint = f"{self.prog} --help lists the options"
        raise ProgramError(f"{self.prog}: {message}{near and f'; {near}'}", hint=hint)


def parser_of(tool: Tool, prog: str, *, live: bool = False) -> Parser:
    """Return a parser of the tool's own options and every session's. ``live``: for a notebook."""
    parser = Parser(
        prog=prog,
        description=explanation(tool),
        epilog="columns:\n" + "\n".join(column_lines(tool)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    own = parser.add_argument_group("its own options") if tool.options else parser
    for option in tool.options:
        own.add_argument(*_flags(option), dest=option.name, **_arguments(option))
    add_options(parser.add_argument_group("options of every session"), live=live)
    return parser


def values_of(tool: Tool, parsed: argparse.Namespace) -> dict[str, Any]:
    """Return what was parsed as ``Tool.start`` takes it; only what was given. ProgramError for no such value."""
    own = {option.name: tool.parse(option, value) for option in tool.options if (value := getattr(parsed, option.name))}
    return {**own, **options_of(parsed)}


def _flags(option: Option) -> list[str]:
    return [*([f"-{option.short}"] if option.short else []), f"--{option.name.replace('_', '-')}"]


def _arguments(option: Option) -> dict[str, Any]:
    if option.default is False:
        return {"action": "store_true", "default": None, "help": option.help}
    default = "" if option.default is None else f"; without it {option.default}"
    choices = f"; one of {', '.join(option.choices)}" if option.choices else ""
    text = f"{option.help}{choices}{default}".replace("%", "%%")
    return {"metavar": option.name.upper(), "default": None, "help": text}
