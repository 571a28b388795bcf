"""Durations, sizes, shares and rates as people write them."""

from __future__ import annotations

import argparse
import inspect
import shlex

import pytest

from bpfnb.errors import ProgramError
from bpfnb.hosts import Host
from bpfnb.options import (
    SessionOptions,
    add_options,
    options_of,
    parse_duration,
    parse_rate,
    parse_share,
    parse_size,
)
from magics.options import split


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("10", 10), ("500ms", 0.5), ("2m", 120), ("2min", 120), ("1h", 3600), ("1.5s", 1.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0s", "0.0ms", "-1s", "s", "10 s", "10x", "1e3", "nan", "inf", "\u0661s", "1s1s"]
)
def test_no_durations(text: str) -> None:
    with pytest.raises(ProgramError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("512M", 512 << 20), ("512mb", 512 << 20), ("2G", 2 << 30), ("1.5k", 1536), ("1KiB", 1024)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "0G", "-1M", "M", "lots", "1X", "1e9"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ProgramError):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "share"),
    [("25%", 0.25), ("0.25", 0.25), (".25", 0.25), ("100%", 1), ("1", 1), ("2.5%", 0.025), ("25 %", 0.25)],
)
def test_shares(text: str, share: float) -> None:
    assert parse_share(text) == share


@pytest.mark.parametrize("text", ["", "0", "0%", "-1%", "101%", "1.5", "%", "all", "1e-1", "nan", "25%%"])
def test_no_shares(text: str) -> None:
    with pytest.raises(ProgramError) as caught:
        parse_share(text)
    assert caught.value.hint in ("write 25% or 0.25", "write 1.5%")


def test_a_share_without_its_sign() -> None:
    with pytest.raises(ProgramError, match="not a share of all CPUs: '25'") as caught:
        parse_share("25")
    assert caught.value.hint == "write 25%"
    assert parse_share("25%") == 0.25


@pytest.mark.parametrize(("text", "rate"), [("1", 1), ("5000", 5000), ("0.5", 0.5), ("20k", 20_000), ("1.5M", 1.5e6)])
def test_rates(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "0", "0k", "-1", "k", "1K", "1m", "10/s", "inf"])
def test_no_rates(text: str) -> None:
    with pytest.raises(ProgramError):
        parse_rate(text)


def test_quotes() -> None:
    assert split("a 'b c' \"d e\"") == ["a", "b c", "d e"]
    with pytest.raises(ProgramError, match="No closing quotation"):
        split("a 'b")


def test_every_option_of_a_session_is_one_of_trace_and_of_a_command() -> None:
    """README's table has those of %%bpf: tests/unit/test_docs.py."""
    wanted = set(SessionOptions.__annotations__)
    parameters = inspect.signature(Host.trace).parameters
    assert wanted == set(parameters) - {"self", "source", "attach", "cflags", "headers"}
    parser = argparse.ArgumentParser(add_help=False)
    add_options(parser)
    assert {action.dest.removeprefix("no_") for action in parser._actions} == wanted | {"time", "host"}
    line = "--name s --keep 1M --cpu --missing warn --comm a --cgroup /b --uid 0 --pid 1 --follow 1 --command true"
    line += " --max-cost 10% --max-rate 1k --max-memory 1M --record /x --record-failed stop"
    given = options_of(parser.parse_args(shlex.split(line)))
    assert given.keys() | options_of(parser.parse_args(["--no-guard"])).keys() == wanted
