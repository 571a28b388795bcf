"""One-liners: the questions that a host answers without C. ``Host`` has these methods; ``bpfnb.count`` and the others
are the default host's."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec

from bpfnb.errors import AttachError, ProgramError, UnsupportedError
from bpfnb.host.tracer import Tracer
from bpfnb.language.oneliner.generate import generate
from bpfnb.language.oneliner.question import VERBS, Question, Verb, ask
from bpfnb.language.oneliner.sites import ENTRY_OF, with_columns
from bpfnb.language.program import Program, parse
from bpfnb.language.signature import Signature
from bpfnb.options import SessionOptions, check_options
from bpfnb.origins import stack_level
from bpfnb.results.answers import Known, presentation
from bpfnb.results.presentation import Presentation, Shown
from bpfnb.session import Session

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Questions", "presentation_of"]

_MAX_PROBES = 10_000

Probes = str | Sequence[str]
Columns = str | Sequence[str] | Mapping[str, str] | None


class Questions:
    """The six questions. Each starts a session and returns it; see docs/reference.md, "One-liners".

    ``probe``    one probe as -a takes it, or several
    ``where``    an expression: only the events that it is true of
    ``by``       a name, a list of names, or {column: expression}: one result for each of their values
    ``value``    an expression that is a number

    Expressions are Python's, over the probe's arguments by their names, ``arg0`` ... ``arg5``, ``retval``, ``errno``,
    ``latency`` (nanoseconds), ``pid``, ``tid``, ``ppid``, ``comm``, ``cpu``, ``uid``, ``gid``, ``cgroup``, ``probe``,
    ``time``; where an argument has one of these names, it is ``args.NAME``. Events that an expression has no value for
    are left out and counted: ``df.attrs["unread"]``.

    ``options``: those of every session, see ``Host.trace``. Raises what that raises, ProgramError for expressions.
    """

    if TYPE_CHECKING:

        def connect(self) -> Tracer: ...

        def run(
            self, program: Program, presentation: Presentation | None = None, **options: Unpack[SessionOptions]
        ) -> Session: ...

    def count(
        self, probe: Probes, *, by: Columns = None, where: str | None = None, **options: Unpack[SessionOptions]
    ) -> Session:
        """Count events. ``df``: the columns of ``by``, then ``count`` (int64), the largest first."""
        return self._ask("count", options, probe=probe, columns=by, where=where)

    def stats(
        self,
        probe: Probes,
        value: str,
        *,
        by: Columns = None,
        where: str | None = None,
        **options: Unpack[SessionOptions],
    ) -> Session:
        """Sum up a value. ``df``: the columns of ``by``, then ``count`` (int64), ``sum``, ``mean`` (float64), ``min``,
        ``max`` (int64; uint64 where the value has no sign), the most frequent first."""
        return self._ask("stats", options, probe=probe, value=value, columns=by, where=where)

    def hist(
        self,
        probe: Probes,
        value: str,
        *,
        by: Columns = None,
        where: str | None = None,
        kind: Literal["log2", "linear"] = "log2",
        bins: Sequence[int] | None = None,
        **options: Unpack[SessionOptions],
    ) -> Session:
        """Make a histogram of a value. ``df``: the columns of ``by``, then ``low``, ``high`` (float64: values from low
        to below high), ``label`` (str), ``count`` (int64): a row for each bucket with a value, the lowest first.

        ``kind``   "log2": powers of two, zero and negative values in buckets of their own
                   "linear": ``bins=(low, high, step)``; what is below or above is counted in one bucket each
        """
        return self._ask("hist", options, probe=probe, value=value, columns=by, where=where, kind=kind, bins=bins)

    def latency(
        self, probe: Probes, *, by: Columns = None, where: str | None = None, **options: Unpack[SessionOptions]
    ) -> Session:
        """Make a histogram of the time from a function's entry to its return. ``df`` as that of ``hist``: ``low`` and
        ``high`` are nanoseconds. ``session.quantiles(.5, .99)`` has quantiles."""
        return self._ask("latency", options, probe=probe, columns=by, where=where)

    def rows(
        self, probe: Probes, columns: Columns = None, *, where: str | None = None, **options: Unpack[SessionOptions]
    ) -> Session:
        """Report each event. ``df``: ``time`` (datetime64[ns, UTC]), then the columns asked for; without any, ``pid``,
        ``comm`` and the probe's arguments that are numbers or strings."""
        return self._ask("rows", options, probe=probe, columns=columns, where=where)

    def stacks(
        self,
        probe: Probes,
        *,
        by: Columns = None,
        where: str | None = None,
        kernel: bool = True,
        user: bool = True,
        **options: Unpack[SessionOptions],
    ) -> Session:
        """Count stacks. ``df``: the columns of ``by``, then ``stack`` (str: the outermost function first, with ";"
        between, the kernel's with "_[k]" behind) and ``count`` (int64), the largest first.

        ``kernel``, ``user``: whose functions. A stack that was not kept is "[no stack: EEXIST]", and counted in
        ``df.attrs["lost"]``.
        """
        return self._ask("stacks", options, probe=probe, columns=by, where=where, kernel=kernel, user=user)

    def _described(self, question: Question, missing: object) -> tuple[Signature, ...]:
        """Return the probes' signatures; without those that are not there, where ``missing`` says so."""
        describe = partial(self.connect().describe, paths=question.paths, limit=_MAX_PROBES)
        if missing not in ("warn", "ignore") or len(question.probes) == 1:
            return describe(question.probes)
        found: list[Signature] = []
        for probe in question.probes:
            try:
                found += describe([probe])
            except (AttachError, UnsupportedError) as error:
                if missing == "warn":
                    warnings.warn(f"{error}: left out", RuntimeWarning, stacklevel=stack_level())
        return tuple(found) or describe(question.probes)

    def _ask(self, verb: Verb, options: Mapping[str, Any], **asked: Any) -> Session:
        question = ask(verb, **asked)
        check_options(options)
        signatures = self._described(question, options.get("missing"))
        question = with_columns(question, signatures)
        answer = generate(question, signatures)
        known = {signature.probe for signature in signatures}
        started: list[Session] = []

        def probes() -> list[str]:
            """Return the probes by number; a call's return as its entry, where that was asked for."""
            names = [probe.name or probe.requested for probe in started[0].probes] if started else []
            return [_asked(name, known) for name in names] if len(signatures) > 1 else [signatures[0].probe]

        names = Known(probes)

        def shown() -> Shown:
            for column in answer.columns:
                if column.kind == "cgroup" and verb == "rows" and started:
                    names.cgroup_paths(started[0].main_output.newest(sys.maxsize)[column.member].unique().tolist())
            plain = {name: _plain(value) for name, value in asked.items()}
            facts = msgspec.to_builtins(signatures), names.probes(), list(names.cgroups.items())
            return Shown("question", verb, plain | dict(zip(_FACTS, facts, strict=True)))

        session = self.run(parse(answer.source), presentation(question, answer, names, shown), **options)
        started.append(session)
        return session


_FACTS = ("signatures", "probes", "cgroups")


def presentation_of(shown: Shown) -> Presentation:
    """Return what makes ``df`` of a recorded question. Its ``options`` are what ``ask`` takes; "signatures" of its
    probes, and names that its machine had: "probes" by number, and "cgroups", numbers and paths.

    ProgramError for a question that cannot be. Nothing is compiled or run.
    """
    options = dict(shown.options)
    try:
        signatures = msgspec.convert(options.pop("signatures"), tuple[Signature, ...], strict=False)
        probes = msgspec.convert(options.pop("probes"), list[str])
        cgroups = dict(msgspec.convert(options.pop("cgroups"), list[tuple[int, str]]))
        question = with_columns(ask(cast("Verb", shown.name), **options), signatures)
        if question.verb not in VERBS or not signatures:
            raise ProgramError(f"there is no question {shown.name!r}")
        return presentation(question, generate(question, signatures), Known(lambda: probes, cgroups), lambda: shown)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, msgspec.MsgspecError) as error:
        if isinstance(error, ProgramError):
            raise
        raise ProgramError(f"no question of this bpfnb: {type(error).__name__} {error}") from None


def _plain(value: Any) -> Any:
    """Return an argument as a file has it."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


_MACRO = re.compile(r"TRACEPOINT_PROBE\((\w+), (\w+)\)")


def _asked(probe: str, known: Collection[str]) -> str:
    """Return a probe of the program as it was asked for: one of ``known``."""
    if macro := _MACRO.fullmatch(probe):
        return f"tracepoint:{macro[1]}:{macro[2]}"
    kind, _, target = probe.partition(":")
    return f"{ENTRY_OF[kind]}:{target}" if kind in ENTRY_OF and probe not in known else probe
