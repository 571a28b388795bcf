"""Sessions and checks as HTML and as text, from immutable snapshots.

Names, notes and messages come from other processes. They reach a page only through ``escape`` and a terminal only
through ``printable``, which leave neither markup nor control characters. Styles are inline, since a notebook's page has
no stylesheet of ours; they take JupyterLab's theme colours where there are any. Without styles plain tables remain.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Collection, Iterable, Sequence

from msgspec.structs import replace

from bpfnb.errors import CompileError, VerifierError, escape, log_lines, printable
from bpfnb.protocol.messages import Check, ProbeInfo
from bpfnb.results.events.rows import Sample
from bpfnb.results.snapshot import Snapshot

__all__ = [
    "checks_table",
    "checks_text",
    "error_panel",
    "hosts_table",
    "hosts_text",
    "session_card",
    "session_text",
    "sessions_table",
    "sessions_text",
    "what_was_dropped",
]


# Colours that are legible on white and on black where no theme names them.
GOOD = "var(--jp-success-color1,#2e9e55)"
BAD = "var(--jp-error-color1,#e0453a)"
WARN = "var(--jp-warn-color1,#d9822b)"
LINE = "var(--jp-border-color2,rgba(128,128,128,.35))"
MUTED = "opacity:.68"
_FONT = (
    "font-family:var(--jp-ui-font-family,system-ui,sans-serif);font-size:13px;line-height:1.5;"
    "color:var(--jp-ui-font-color1,inherit)"
)
_CODE = "font-family:var(--jp-code-font-family,monospace);font-size:12px"
_STATES = {"running": GOOD, "failed": BAD}
_MAX_SHOWN = 5  # probes of a wildcard, else their number is shown
_LIST = ("session", "state", "for", "rows", "lost", "probes")
# JupyterLab stripes and right-aligns tables of its own accord.
_TABLE = "border-collapse:collapse;margin:0;border:none;color:inherit;font-size:inherit;table-layout:auto"
_CELL = "text-align:left;vertical-align:top;padding:2px 18px 2px 0;background:transparent;border:none;max-width:none"
_NUMBER = ";text-align:right;font-variant-numeric:tabular-nums"
_FACTS = "background:transparent;border:none;padding:0;display:flex;flex-wrap:wrap"
_HEAD = f"{MUTED};font-weight:normal;font-size:11px"


# --- a session ----------------------------------------------------------------------------------------------------


def session_text(snapshot: Snapshot, *, told: Collection[str] = ()) -> str:
    """Write a session for a terminal: ``<Session clones: running, 12 rows, 0 lost>``, then a line a probe.

    ``told``: as in ``session_card``.
    """
    s = snapshot
    facts = [printable(f"{s.state} on {s.host}" if s.host else s.state)]
    if s.has_rows:
        facts += [count(s.rows, "row"), f"{s.lost:,} lost"]
    else:
        facts += [f"{printable(name)} has {_entries(n)}" for name, n in s.entries]
    if s.dropped:
        facts.append(f"{s.dropped:,} {what_was_dropped([s])}")
    lines = [f"<Session {printable(s.name)}: {', '.join(facts)}>"]
    lines += [f"  {printable(s.recorded)}"] if s.recorded else []
    lines += [f"  {printable(s.title)}"] if s.title else []
    lines += [f"  only {printable(s.filters)}"] if s.filters else []
    probes = _summarised(s.probes)
    lines += ["  " + _probe_text(probe) for probe in probes]
    lines += ["  " + printable(note) for note in _notes(probes) if note not in told]
    if s.maps:
        held = dict(s.entries) if s.has_rows else {}
        lines.append("  maps: " + printable(", ".join(_map_text(*map_, held.get(map_[0])) for map_ in s.maps)))
    lines += [f"  {printable(line)}" for line in (*_pins(s), *filter(None, [s.recording]))]
    if s.cost:
        lines.append("  cost: " + printable(s.cost))
    lines += ["  " + printable(note) for note in s.notes]
    if why := _ending(s):
        lines.append("  " + printable(why))
    return "\n".join(lines)


def session_card(
    snapshot: Snapshot, *, mark: str = "", seconds: float | None = None, told: Collection[str] = ()
) -> str:
    """Write a session for a notebook: its state, how much it delivered and lost, what each probe was attached to.

    ``mark``: of a card that is kept up to date: its widget has the class bpfnb-live-MARK, see ``_rules``. ``seconds``:
    how long it is to run. ``told``: remarks on probes that the notebook has already.
    """
    s = snapshot
    parts = [_rules(mark) if mark else "", _header(s, mark, seconds)]
    if s.recorded:
        parts.append(f"<div>{escape(s.recorded)}</div>")
    if s.title:
        parts.append(f"<div>{escape(s.title)}</div>")
    if s.filters:
        parts.append(f"<div>only {escape(s.filters)}</div>")
    if facts := _facts(s):
        parts.append(f'<table style="{_TABLE};margin:6px 0 8px"><tr style="{_FACTS}">{"".join(facts)}</tr></table>')
    if len(s.outputs) > 1:
        parts.append(_outputs_table(s.outputs))
    if s.probes:
        parts.append(_probes_table(_summarised(s.probes), told))
    if s.maps:
        held = dict(s.entries)
        names = ", ".join(_map(*map_, held.get(map_[0])) for map_ in s.maps)
        parts.append(f'<div style="margin-top:6px">{muted("maps")} {names}</div>')
    if s.newest:
        parts.append(_newest_rows(s.newest))
    parts += [f"<div>{muted(escape(line))}</div>" for line in (*_pins(s), *filter(None, [s.recording]))]
    if s.cost:
        parts.append(f'<div style="margin-top:6px">{muted("cost")} {escape(s.cost)}</div>')
    parts += [f'<div style="margin-top:6px">{muted(escape(note))}</div>' for note in s.notes]
    if why := _ending(s):
        colour = BAD if s.state == "failed" else WARN
        parts.append(f'<div style="color:{colour};margin-top:8px">{escape(why)}</div>')
    return card("".join(parts))


def _rules(mark: str) -> str:
    """Return the rules of a card that is kept up to date. A running session's state is green where the card's widget is
    on the page; where its kernel is gone, what JupyterLab says of such widgets is hidden, and so are empty outputs."""
    child = ".jp-OutputArea-child"
    own = f"{child}:has(.bpfnb-badge-{mark})"
    return (
        f"<style>body:has(.bpfnb-live-{mark}) .bpfnb-badge-{mark}.bpfnb-running {{ color: {GOOD} !important }} "
        f"{own} + {child} > .jupyter-widgets:not(:has(*)) {{ display: none }}</style>"
    )


def _facts(s: Snapshot) -> list[str]:
    """Return the numbers in large type: of a session of maps alone how many entries they have, else its rows."""
    if not s.has_rows:
        return [_fact(f"entries of {escape(name)}", f"{n:,}") for name, n in s.entries]
    facts = [
        _fact("rows", f"{s.rows:,}"),
        _fact("rows/s on average", average(s)),
        _fact("lost", f"{s.lost:,}", BAD if s.lost else ""),
    ]
    return [*facts, _fact(what_was_dropped([s]), f"{s.dropped:,}", WARN)] if s.dropped else facts


def what_was_dropped(snapshots: Iterable[Snapshot]) -> str:
    """Return what became of rows that were delivered and are not there."""
    words = {"not in the recording" if s.recorded else "dropped by keep" for s in snapshots if s.dropped}
    return " or ".join(sorted(words))


def _newest_rows(sample: Sample) -> str:
    heads = [escape(head) for head in sample.heads]
    rows = [[f'<span style="white-space:nowrap">{escape(text)}</span>' for text in row] for row in sample.rows]
    return f'<div style="margin-top:8px">{table(heads, rows, numbers=sample.right)}</div>'


def _summarised(probes: Sequence[ProbeInfo]) -> list[ProbeInfo]:
    """Return the probes, those of a wildcard that matches many as one."""
    groups: dict[tuple[str, str, str], list[ProbeInfo]] = {}
    for probe in probes:
        groups.setdefault((probe.requested, probe.function, probe.kind), []).append(probe)
    shown: list[ProbeInfo] = []
    for group in groups.values():
        shown += group if len(group) <= _MAX_SHOWN else [_summary(group)]
    return shown


def _summary(group: Sequence[ProbeInfo]) -> ProbeInfo:
    places, notes = ({getattr(probe, part) for probe in group} for part in ("attached", "note"))
    shared = f" at {group[0].attached}" if len(places) == 1 else ""
    attached = f"{len(group):,} probes{shared}, {group[0].name} to {group[-1].name}"
    return replace(group[0], attached=attached, note=group[0].note if len(notes) == 1 else "")


def _probe_text(probe: ProbeInfo) -> str:
    text = printable(probe.requested)
    if probe.attached != probe.requested:
        text += f" -> {printable(probe.attached)}"
    text += f" ({printable(probe.kind)}), runs {printable(probe.function)}"
    return text


def _header(s: Snapshot, mark: str, seconds: float | None) -> str:
    """Write name, state and time. A state that may have changed since has the time at which it was so, and is green
    only where the page is known to be kept up to date."""
    passed = duration(s.seconds)
    if s.state in ("running", "starting"):
        passed += f" of {duration(seconds)}" if seconds is not None and seconds >= 1 else ""
        passed += f", as of {time.strftime('%H:%M:%S')}"
    return (
        f'<div style="display:flex;flex-wrap:wrap;align-items:center;gap:2px 10px">'
        f'<b style="font-size:15px;overflow-wrap:anywhere">{escape(s.name)}</b> {badge(s.state, mark)} '
        f"{f'on <b>{escape(s.host)}</b> ' if s.host else ''}"
        f'<span style="{MUTED}">{passed}</span></div>{_bar(s, seconds)}'
    )


def _bar(s: Snapshot, seconds: float | None) -> str:
    """Draw how much of its time has passed, of a session that ends by itself."""
    if seconds is None or s.state != "running":
        return ""
    share = min(s.seconds / seconds, 1.0) if seconds > 0 else 1.0
    return (
        f'<div style="height:3px;border-radius:2px;background:{LINE};margin:4px 0"><div style="height:3px;'
        f'border-radius:2px;width:{share:.0%};background:var(--jp-brand-color1,#2f7fd1)"></div></div>'
    )


def _probes_table(probes: Sequence[ProbeInfo], told: Collection[str]) -> str:
    rows = []
    for p in probes:
        rows.append((code(p.requested), code(p.attached), escape(p.kind), code(p.function)))
    new = [note for note in _notes(probes) if note not in told]
    notes = "".join(f'<div style="margin-top:6px">{muted(escape(note))}</div>' for note in new)
    return table(("probe", "attached to", "as", "runs"), rows) + notes


def _notes(probes: Sequence[ProbeInfo]) -> list[str]:
    """Return the probes' notes, each once."""
    return list(dict.fromkeys(probe.note for probe in probes if probe.note))


def _pins(s: Snapshot) -> list[str]:
    """Describe what stays when the session has ended."""
    return [
        f"{name} stays after the session, pinned at {path}: rm {shlex.quote(path)} removes it" for name, path in s.pins
    ]


def _ending(s: Snapshot) -> str:
    """Return why a session ended, "" where somebody stopped it."""
    return "" if s.reason == "stopped" else s.reason


def _map(name: str, kind: str, lost: int, entries: int | None) -> str:
    refused = f' <span style="color:{BAD}">{lost:,} updates refused</span>' if lost else ""
    held = f" {_entries(entries)}" if entries is not None else ""
    return f"{code(name)} {muted(escape(kind))}{held}{refused}"


def _map_text(name: str, kind: str, lost: int, entries: int | None) -> str:
    held = f", {_entries(entries)}" if entries is not None else ""
    return f"{name} ({kind}{held}{f', {lost:,} updates refused' if lost else ''})"


def _entries(n: int) -> str:
    return f"{n:,} {'entry' if n == 1 else 'entries'}"


def _outputs_table(outputs: Sequence[tuple[str, int, int]]) -> str:
    rows = [(code(name), f"{rows:,}", lost_cell(lost)) for name, rows, lost in outputs]
    return table(("output", "rows", "lost"), rows, numbers=(1, 2)) + '<div style="height:8px"></div>'


def _fact(label: str, value: str, colour: str = "") -> str:
    tint = f"color:{colour};" if colour else ""
    return (
        f'<td style="{_CELL};padding-right:28px;display:block"><div style="{tint}font-size:18px;line-height:1.3;'
        f'font-variant-numeric:tabular-nums">{value}</div><div style="{MUTED};font-size:11px">{label}</div></td>'
    )


# --- several sessions ---------------------------------------------------------------------------------------------


def sessions_table(snapshots: Sequence[Snapshot]) -> str:
    """Write ``%bpf list`` for a notebook."""
    if not snapshots:
        return card("No session is running.")
    elsewhere = any(s.host for s in snapshots)
    rows = []
    for s in snapshots:
        probes = "<br>".join(code(requested) for requested in dict.fromkeys(p.requested for p in s.probes))
        name = f"<b>{escape(s.name)}</b>"
        where = [escape(s.host)] if elsewhere else []
        rows.append((name, *where, badge(s.state), duration(s.seconds), f"{s.rows:,}", lost_cell(s.lost), probes))
    return card(table(_list_heading(elsewhere), rows, numbers=(3 + elsewhere, 4 + elsewhere)))


def sessions_text(snapshots: Sequence[Snapshot]) -> str:
    """Write ``%bpf list`` for a terminal."""
    if not snapshots:
        return "No session is running."
    elsewhere = any(s.host for s in snapshots)
    rows = []
    for s in snapshots:
        probes = printable(", ".join(dict.fromkeys(probe.requested for probe in s.probes)))
        where = [printable(s.host)] if elsewhere else []
        numbers = (f"{s.rows:,}", f"{s.lost:,}")
        rows.append((printable(s.name), *where, printable(s.state), duration(s.seconds), *numbers, probes))
    return columns([_list_heading(elsewhere), *rows], numbers=(3 + elsewhere, 4 + elsewhere))


def _list_heading(elsewhere: bool) -> tuple[str, ...]:
    """``elsewhere``: whether some session runs on another host than this machine."""
    return (_LIST[0], *(["host"] if elsewhere else []), *_LIST[1:])


_HOSTS = ("host", "destination", "state", "kernel", "bcc", "sessions")


def hosts_table(rows: Sequence[tuple[str, ...]]) -> str:
    """Write ``%bpf host list`` for a notebook: see _HOSTS."""
    return card(table(_HOSTS, [tuple(map(escape, row)) for row in rows], numbers=(5,)))


def hosts_text(rows: Sequence[tuple[str, ...]]) -> str:
    """Write ``%bpf host list`` for a terminal: see _HOSTS."""
    return columns([_HOSTS, *(tuple(map(printable, row)) for row in rows)], numbers=(5,))


# --- the doctor ---------------------------------------------------------------------------------------------------


_LEVELS = {
    "required": "without these nothing is traced",
    "optional": "without these something is lacking",
    "info": "good to know",
}


def checks_table(checks: Iterable[Check]) -> str:
    """Write the doctor's findings for a notebook."""
    checks = list(checks)
    rows = []
    for level, group in _by_level(checks):
        rows.append(("", f'<b style="line-height:2.4">{level}</b>', muted(_LEVELS[level])))
        rows += [_check_cells(check) for check in group]
    works, sentence = _conclusion(checks)
    head = f'<div style="color:{GOOD if works else BAD};margin-bottom:6px"><b>{escape(sentence)}</b></div>'
    return card(head + table(("", "checked", "found"), rows))


def checks_text(checks: Iterable[Check]) -> str:
    """Write the doctor's findings for a terminal."""
    checks = list(checks)
    first = max((len(_verdict(check)[0]) for check in checks), default=0)
    second = max((len(printable(check.name)) for check in checks), default=0)
    lines = [printable(_conclusion(checks)[1])]
    for level, group in _by_level(checks):
        lines += ["", f"{level}: {_LEVELS[level]}"]
        for check in group:
            name, found = printable(check.name), printable(check.found)
            lines.append(f"  {_verdict(check)[0]:{first}}  {name:{second}}  {found}".rstrip())
            if check.remedy:
                lines.append(" " * (first + second + 6) + _remedy(check))
    return "\n".join(lines)


def _check_cells(check: Check) -> tuple[str, str, str]:
    mark, colour = _verdict(check)
    remedy = f"<br>{muted(escape(_remedy(check)))}" if check.remedy else ""
    return (
        f'<span style="color:{colour};white-space:nowrap">{mark}</span>',
        escape(check.name),
        escape(check.found) + remedy,
    )


def _remedy(check: Check) -> str:
    return f"\N{RIGHTWARDS ARROW} {printable(check.remedy)}"


def _by_level(checks: Sequence[Check]) -> list[tuple[str, list[Check]]]:
    """Return the checks of each level that has any."""
    groups = [(level, [check for check in checks if check.level == level]) for level in _LEVELS]
    return [(level, group) for level, group in groups if group]


def _conclusion(checks: Sequence[Check]) -> tuple[bool, str]:
    """Return whether tracing works, and a sentence that says so."""
    lacking = [check.name for check in checks if check.level == "required" and not check.ok]
    return not lacking, f"Tracing does not work: {', '.join(lacking)}" if lacking else "Tracing works."


def _verdict(check: Check) -> tuple[str, str]:
    """Return the word for how a check came out, and its colour: where something optional is missing, a warning."""
    if check.ok:
        return ("\N{CHECK MARK} ok", GOOD)
    if not check.known:
        return ("? unknown", BAD if check.level == "required" else "inherit")
    if check.level == "required":
        return ("\N{BALLOT X} missing", BAD)
    return ("\N{EN DASH} missing", WARN) if check.level == "optional" else ("\N{EN DASH} no", "inherit")


# --- an error -----------------------------------------------------------------------------------------------------

_MAX_LOG_LINES = 2_000  # of a log: all that is shown is kept in the notebook's file
_LOG = f"{_CODE};margin:6px 0 0;max-height:40em;overflow:auto;color:inherit;background:transparent"


def error_panel(error: BaseException) -> str:
    """Write the verifier's or the compiler's log, folded, to be shown before the error is raised; "" where there is
    none. Of a long log the end is shown, which has the reason."""
    if not isinstance(error, VerifierError | CompileError) or not error.log.strip():
        return ""
    lines = log_lines(error.log)
    shown = "\n".join(escape(line.expandtabs()) for line in lines[-_MAX_LOG_LINES:])
    size = count(len(lines), "line")
    if len(lines) > _MAX_LOG_LINES:
        size += f"; here the last {_MAX_LOG_LINES:,}, all are in error.log"
    who = "verifier" if isinstance(error, VerifierError) else "compiler"
    summary = f'<summary style="cursor:pointer">What the {who} said {muted(f"({size})")}</summary>'
    return card(f'<details>{summary}<pre style="{_LOG}">{shown}</pre></details>')


# --- pieces -------------------------------------------------------------------------------------------------------


def code(text: str) -> str:
    """Escape text for HTML, in the fixed-width font. On a narrow page it breaks after a colon, a slash, a comma or
    an underscore."""
    broken = re.sub(r"([:/,]|_+)(?=\w)", r"\g<0><wbr>", escape(text))
    return f'<span style="{_CODE}">{broken}</span>'


def badge(state: str, mark: str = "") -> str:
    """Write a session's state as a coloured word in a frame; with a ``mark`` it is ``_rules`` that colour it."""
    colour = "var(--jp-ui-font-color2,inherit)" if mark else _STATES.get(state, "var(--jp-ui-font-color2,inherit)")
    classes = f' class="bpfnb-badge-{mark} bpfnb-{escape(state)}"' if mark else ""
    return (
        f'<span{classes} style="color:{colour};border:1px solid;border-radius:9px;padding:0 8px;font-size:11px;'
        f'line-height:16px;display:inline-block;vertical-align:1px">{escape(state)}</span>'
    )


def muted(content: str) -> str:
    """Write HTML in a lighter colour."""
    return f'<span style="{MUTED}">{content}</span>'


def lost_cell(lost: int) -> str:
    """Write a count of lost events, bold and red when there are any."""
    return f'<b style="color:{BAD}">{lost:,}</b>' if lost else muted("0")


def card(content: str) -> str:
    """Put HTML into the frame that all of ours has."""
    return (
        f'<div style="{_FONT};border:1px solid {LINE};border-radius:6px;padding:10px 14px;margin:2px 0;'
        f'display:inline-block;max-width:100%;box-sizing:border-box;overflow-x:auto">{content}</div>'
    )


def line(content: str) -> str:
    """Put HTML into a widget, where line heights and fonts are the page's."""
    return f'<div style="{_FONT}">{content}</div>'


def swatch(name: str, colour: str) -> str:
    """Write a name, with the colour of its line in the picture."""
    mark = f'<span style="color:{colour};margin-right:6px">\N{BLACK SQUARE}</span>' if colour else ""
    return f"{mark}<b>{escape(name)}</b>"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Write a table. Its cells are HTML already. ``numbers``: the columns that are right-aligned."""
    styles = [_CELL + (_NUMBER if i in numbers else "") for i in range(len(heads))]
    head = [f'<th style="{style};{_HEAD}">{text}</th>' for text, style in zip(heads, styles, strict=True)]
    lines = [_tr([f'<td style="{s}">{c}</td>' for c, s in zip(row, styles, strict=True)]) for row in rows]
    body = f'<thead style="border:none">{_tr(head)}</thead><tbody>{"".join(lines)}</tbody>'
    return f'<table style="{_TABLE}">{body}</table>'


def count(n: int, noun: str) -> str:
    """Write a count: ``1 row``, ``1,200 rows``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def average(s: Snapshot) -> str:
    """Write a session's average rows per second: ``0``, ``3.4``, ``120``, ``1,234,567``."""
    value = s.rows / s.seconds if s.seconds > 0 else 0.0
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def duration(seconds: float) -> str:
    """Write a duration: ``8 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def _tr(cells: Sequence[str]) -> str:
    return f'<tr style="background:transparent;border:none">{"".join(cells)}</tr>'


def columns(rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Write rows for a terminal, their columns one under another. ``numbers``: those that are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [f"{c:>{w}}" if i in numbers else f"{c:<{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
