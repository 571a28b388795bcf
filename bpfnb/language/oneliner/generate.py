"""A question and what is known of its probes -> C that answers it, written to be read.

One function a probe, or one for several whose arguments are had in the same way. Where something of the return is asked
(``latency``, arguments at a return) there are two: what the entry's keeps, by thread, is used by the other.

All additions to maps are atomic, since programs on one CPU may interrupt each other; maps are per-CPU, so that CPUs do
not wait for each other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from bpfnb.errors import ProgramError
from bpfnb.language.oneliner import support
from bpfnb.language.oneliner.expressions import Expression, Name
from bpfnb.language.oneliner.names import AT_RETURN, TASK, Kept, Names, unused
from bpfnb.language.oneliner.question import Question, identifier
from bpfnb.language.oneliner.sites import ENTRY_OF, RESERVED, RETURN_OF, Site
from bpfnb.language.oneliner.translate import condition, translate
from bpfnb.language.oneliner.values import Integer, String, Value
from bpfnb.language.signature import Signature, Type

__all__ = ["UNREAD", "Answer", "Shown", "generate"]

UNREAD = "\1unread"  # in place of a string that could not be read
_C_UNREAD = '"\\001unread", 8'
_ROW_TEXT = 256
_KEY_TEXT = (128, 128, 64, 48, 32)  # bytes of each string, by how many there are: a stack has 512
_CALLS = 65_536  # calls that are kept; those of threads that have ended go, the oldest first
_RING_PAGES = 256
_TRACES = 32_768
_MAP = {"latency": "hist", "count": "counts", "stacks": "counts"}
# Columns of the maps that no column of the key may be called as, and of the events.
_OURS = frozenset(
    (
        *("slot", "tgid", "kernel_stack", "user_stack", "cpu", "key", "value", "time", "stack", "most", "least"),
        *("count", "sum", "mean", "min", "max", "low", "high", "label"),
    )
)
# Columns of the answers: a column of the question's that is called so has "_" behind it.
_RESULTS = {
    "count": ("count",),
    "stats": ("count", "sum", "mean", "min", "max"),
    "hist": ("low", "high", "label", "count"),
    "latency": ("low", "high", "label", "count"),
    "rows": ("time",),
    "stacks": ("stack", "count"),
}
# Names that mean something in the generated C, and yet may be a member's.
_FINE = frozenset(
    [
        "comm",
        "pid",
        "tid",
        "ppid",
        "uid",
        "gid",
        "cpu",
        "cgroup",
        "probe",
        "retval",
        "errno",
        "latency",
        "time",
        "value",
        "event",
        "length",
        "count",
    ]
)


@dataclass(frozen=True)
class Shown:
    """A column and its member in the C. ``kind``: what it holds; ``meaning``: its type, where it has one by itself."""

    column: str
    member: str
    kind: Literal["number", "text", "probe", "cgroup"]
    meaning: Type | None = None


@dataclass(frozen=True)
class Answer:
    """C that answers a question. ``unsigned``: whether the value of stats and hist is."""

    source: str
    columns: tuple[Shown, ...]
    unsigned: bool = True


@dataclass
class _Place:
    """What a site's programs compute: C of each expression. ``early``: ``where`` is decided at the call's entry."""

    names: Names
    where: str = ""
    early: bool = False
    columns: list[Value] = field(default_factory=list)
    value: Value | None = None

    @property
    def site(self) -> Site:
        return self.names.site


def generate(question: Question, signatures: Sequence[Signature]) -> Answer:
    """Write the program. ProgramError for expressions that do not fit the probes."""
    return _Generator(question, signatures).answer()


class _Generator:
    def __init__(self, question: Question, signatures: Sequence[Signature]) -> None:
        self.question, self.signatures = question, signatures
        names = (name for expression in question.expressions() for name in expression.names())
        self.used = tuple(dict.fromkeys(names))
        self.latency = question.verb == "latency" or "latency" in self.used
        self.returning = self.latency or any(name in AT_RETURN for name in self.used)
        self.asked = [name for name in self.used if name not in (*TASK, *AT_RETURN, "comm", "probe")]

    def answer(self) -> Answer:
        places = [self.place(site) for site in self.sites()]
        columns = self.columns(places)
        values = [place.value for place in places if isinstance(place.value, Integer)]
        unsigned = all(value.low >= 0 for value in values)
        body = "\n".join(self.programs(place, columns, unsigned) for place in places)
        return Answer(self.opening(places, columns, unsigned, body) + "\n" + body, tuple(columns), unsigned)

    # --- sites

    def sites(self) -> list[Site]:
        """Return the functions to write, with the probes of each."""
        groups: dict[object, Site] = {}
        for signature in self.signatures:
            asked, _, target = signature.probe.partition(":")
            kind = self.kind(asked, signature.probe)
            key = self.alike(kind, signature)
            site = groups.setdefault(key, Site(kind, signature, [], "", set()))
            site.probes = [*site.probes, f"{kind}:{target}"]
        for site in groups.values():
            site.probes = self.patterns(site) or site.probes
        taken: set[str] = set()
        for site in groups.values():
            name = identifier(site.probes[0].rpartition(":")[2]) if len(site.probes) == 1 else ""
            site.function = unused(f"on_{name or site.kind}", taken)
            taken.add(site.function)
        return list(groups.values())

    def patterns(self, site: Site) -> list[str]:
        """Return the probes as they were asked for, with their wildcards, where this site has all that match."""
        kinds = {signature.probe.partition(":")[0] for signature in self.signatures}
        alike = {kind for kind in kinds if self.kind(kind, kind) == site.kind}
        of_kind = [signature for signature in self.signatures if signature.probe.partition(":")[0] in alike]
        asked = [probe for probe in self.question.probes if probe.partition(":")[0] in alike]
        if (
            len(of_kind) != len(site.probes)
            or site.attaches_itself
            or (site.kind in ("tracepoint", "usdt") and self.asked)
        ):
            return []
        return list(dict.fromkeys(f"{site.kind}:{probe.partition(':')[2]}" for probe in asked))

    def kind(self, kind: str, probe: str) -> str:
        """Return the kind of probe that answers: the return's, where something of the return is asked."""
        if not self.returning or kind in ENTRY_OF:
            return kind
        if kind not in RETURN_OF:
            what = next((name for name in AT_RETURN if name in self.used), self.question.verb)
            raise ProgramError(f"{probe} has no {what}: it does not return, as syscall, kprobe, fentry and uprobe do")
        return RETURN_OF[kind]

    def alike(self, kind: str, signature: Signature) -> object:
        """Return what is equal for probes that one function serves."""
        returned = signature.returns if self.returning and kind != "sysret" else None
        count = len(signature.arguments) if kind == "fexit" else 0
        if not self.asked:
            return kind, returned, count
        if kind in ("tracepoint", "usdt"):
            return signature.probe
        used = tuple(a for a in signature.arguments if a.name in self.asked or f"arg{a.position}" in self.asked)
        names = {a.name for a in used}
        missing = tuple(name for name in self.asked if name not in names)
        return kind, returned, count, used, signature.members, missing and signature.arguments

    # --- expressions

    def place(self, site: Site) -> _Place:
        """Translate the expressions for a site."""
        question = self.question
        keeps = site.returns and site.kind != "fexit" and (self.latency or bool(self.asked))
        context = "args" if site.kind == "tracepoint" and self.asked else "ctx"
        number = f"bpfnb_probe({context})" if len(self.signatures) > 1 else "0"
        size = _KEY_TEXT[min(len(question.columns), 4)]
        place = _Place(Names(site, site.returns, question.paths, number, {} if keeps else None, size))
        if question.where:
            place.early = self.pairs(place) and self.decided_early(place, question.where)
            if not place.early:
                place.where = condition(question.where, place.names)
        place.columns = [translate(column.expression, place.names) for column in question.columns]
        if question.value or question.verb == "latency":
            place.value = translate(question.value or Expression("latency", "value", Name("latency")), place.names)
        if question.value and isinstance(place.value, String):
            raise question.value.error(f"{question.verb} is of a number, and this is a string")
        return place

    def decided_early(self, place: _Place, where: Expression) -> bool:
        """Return whether ``where`` is decided at a call's entry: where it asks nothing of the return, and reads no
        strings of a system call's, whose memory is certainly there only at the return."""
        if any(name in AT_RETURN for name in where.names()):
            return False
        return place.site.kind != "sysret" or "bpf_probe_read" not in condition(
            where, replace(place.names, kept={}, declared={})
        )

    def pairs(self, place: _Place) -> bool:
        """Return whether the site's calls are seen at their entry as well."""
        return place.site.returns and (self.latency or place.names.kept is not None)

    # --- columns

    def columns(self, places: Sequence[_Place]) -> list[Shown]:
        """Return the columns and their members in the C, each of one type for all places."""
        taken: set[str] = set(_OURS)
        found = []
        for at, column in enumerate(self.question.columns):
            values = [place.columns[at] for place in places]
            texts = [isinstance(value, String) for value in values]
            if len(set(texts)) > 1:
                odd = places[texts.index(False)].site.probes[0]
                raise column.expression.error(f"a string of some of the probes, but a number of {odd}")
            name = identifier(column.name) or f"column{at}"
            name = unused(f"{name}_" if name in RESERVED - _FINE else name, taken)
            taken.add(name)
            meaning = values[0].meaning if isinstance(values[0], Integer) else None
            special = meaning.text if meaning and meaning.text in ("probe", "cgroup") else "number"
            shown = f"{column.name}_" if column.name in _RESULTS[self.question.verb] else column.name
            found.append(Shown(shown, name, "text" if texts[0] else special, meaning))  # type: ignore[arg-type]
        return found

    def declared(self, places: Sequence[_Place], columns: Sequence[Shown]) -> str:
        """Return the members of a key or an event, the widest first, so that there are no gaps between them."""
        size = self.text_size(columns)
        lines = []
        for at, column in enumerate(columns):
            values = [place.columns[at] for place in places]
            if column.kind == "text":
                is_comm = all(isinstance(value, String) and value.code == "comm" for value in values)
                lines.append((1, f"    char {column.member}[{'TASK_COMM_LEN' if is_comm else size}];\n"))
            else:
                type_ = _common(value for value in values if isinstance(value, Integer))
                lines.append((8 if "64" in type_ else 4, f"    {type_} {column.member};\n"))
        return "".join(line for _, line in sorted(lines, key=lambda pair: -pair[0]))

    def text_size(self, columns: Sequence[Shown]) -> int:
        texts = sum(column.kind == "text" for column in columns)
        if self.question.verb == "rows":
            return _ROW_TEXT
        if texts >= len(_KEY_TEXT):
            raise ProgramError(f"{texts} strings to tell apart by, and at most {len(_KEY_TEXT) - 1} fit in a key")
        return _KEY_TEXT[texts]

    def filled(self, place: _Place, columns: Sequence[Shown], into: str) -> str:
        """Return the lines that fill a key or an event."""
        return "".join(
            self.put(place, f"{into}{column.member}", value)
            for column, value in zip(columns, place.columns, strict=True)
        )

    def taken_before(self, place: _Place) -> str:
        """Compute, before an event is reserved, what may leave it out: a program may not end with one reserved."""
        lines = ""
        for at, value in enumerate(place.columns):
            if "skip()" in value.code:
                kind = value.member if isinstance(value, Integer) else "void *"
                code = value.code if isinstance(value, Integer) else f"(void *){value.code}"
                lines += f"    {kind}{'' if kind.endswith('*') else ' '}column{at} = {code};\n"
                place.columns[at] = replace(value, code=f"column{at}")
        return lines

    def put(self, place: _Place, target: str, value: Value) -> str:
        if isinstance(value, Integer):
            return f"    {target} = {value.code};\n"
        if value.code == "comm":
            if "comm" in _words(place.where):  # it is there already
                return f"    __builtin_memcpy(&{target}, comm, sizeof(comm));\n"
            place.names.declared.pop("comm", None)
            return f"    bpf_get_current_comm(&{target}, sizeof({target}));\n"
        if value.place == "constant":
            return f"    __builtin_memcpy(&{target}, {value.code}, {value.size});\n"
        if value.place == "local":
            return f"    __builtin_memcpy(&{target}, {value.code}, sizeof({value.code}));\n"
        return _copied(target, value)

    # --- before the programs

    def opening(self, places: Sequence[_Place], columns: Sequence[Shown], unsigned: bool, body: str) -> str:
        """Return includes, types, maps and helpers; those that are used."""
        question = self.question
        kinds = {place.site.kind for place in places}
        lines = f"// {_comment(self.title())}\n"
        if any(place.site.reads_registers for place in places):
            lines += "#include <uapi/linux/ptrace.h>\n"
        if kinds & {"profile", "software", "hardware"}:
            lines += "#include <uapi/linux/bpf_perf_event.h>\n"
        if "parent()" in body:
            lines += "#include <linux/sched.h>\n"
        members = self.declared(places, columns)
        if question.verb in ("hist", "latency"):
            members += "    int slot;\n"
        elif question.verb == "stacks":
            members += "    int tgid;\n"
            members += "    int kernel_stack;\n" * question.kernel + "    int user_stack;\n" * question.user
        if question.verb == "rows":
            lines += f"\nstruct event_t {{\n{members}}};\nBPF_RINGBUF_OUTPUT(events, {_RING_PAGES});\n"
        else:
            keyed = bool(columns) or question.verb == "stacks"
            lines += f"\nstruct key_t {{\n{members}}};\n" * keyed + "\n" * (not keyed) + self.map(keyed, unsigned)
        helpers = support.used_in(body) + (support.slot_of(unsigned, question.bins) if "slot_of(" in body else [])
        return "\n".join([lines + self.calls(places), *helpers])

    def title(self) -> str:
        question = self.question
        text = f"{question.verb} {', '.join(question.probes)}"
        if question.value:
            text += f" of {question.value.text}"
        if question.columns:
            how = "columns" if question.verb == "rows" else "by"
            text += f" {how} {', '.join(column.name for column in question.columns)}"
        return text + (f" where {question.where.text}" if question.where else "")

    def map(self, keyed: bool, unsigned: bool) -> str:
        """Return the map of the result."""
        verb, bins = self.question.verb, self.question.bins
        name, value, lines = _MAP.get(verb, verb), "u64", ""
        if verb == "stats":
            value = "struct stats_t"
            how = "" if unsigned else ", with the sign turned around"
            lines = (
                f"// Entries begin as zeros and are only raised: the least value is kept as ~value{how}.\n"
                f"struct stats_t {{\n    u64 count;\n    {'u' if unsigned else 's'}64 sum;\n"
                "    u64 most;\n    u64 least;\n};\n"
            )
        if keyed:
            lines += f"BPF_PERCPU_HASH({name}, struct key_t, {value});\n"
        else:
            slots = 1 if name != "hist" else bins.count + 2 if bins else support.LOG2_SLOTS
            lines += f"BPF_PERCPU_ARRAY({name}, {value}, {slots});\n"
        return lines + f"BPF_STACK_TRACE(traces, {_TRACES});\n" * (verb == "stacks")

    def calls(self, places: Sequence[_Place]) -> str:
        """Return the map of the calls that threads are in."""
        pairs = [place for place in places if self.pairs(place)]
        if not pairs:
            return ""
        members = {"start": "    u64 start;\n"} if self.latency else {}
        for place in pairs:
            for kept in (place.names.kept or {}).values():
                members.setdefault(kept.member, f"    {self.kept_type(place, kept)};\n")
        members = members or {"": "    u8 nothing;\n"}
        key, frames = "u64", ""
        if any(place.site.kind != "sysret" for place in pairs):
            key, frames = "struct thread_t", "struct thread_t {\n    u64 thread;\n    u64 frame;\n};\n"
        if "PT_REGS_SP" in "".join(self.thread(place.site, returning=True) for place in pairs):
            frames += (
                "#if defined(bpf_target_x86)\n#define RETURN_ADDRESS 8  // off the stack when the function returns\n"
                "#else\n#define RETURN_ADDRESS 0\n#endif\n"
            )
        return (
            "\n// The calls that threads are in. Those that never return are forgotten, the oldest first.\n"
            f"{frames}struct call_t {{\n{''.join(members.values())}}};\n"
            f'BPF_TABLE("lru_hash", {key}, struct call_t, calls, {_CALLS});\n'
        )

    def kept_type(self, place: _Place, kept: Kept) -> str:
        if kept.text:
            return f"char {kept.member}[{place.names.text_size}]"
        value = self.at_entry(self.entry_names(place), kept)
        return f"{'u64' if isinstance(value, String) or value.type == 'u64' else 's64'} {kept.member}"

    # --- programs

    def programs(self, place: _Place, columns: Sequence[Shown], unsigned: bool) -> str:
        answering = self.program(place, columns, unsigned)
        return f"{self.entry(place)}\n{answering}" if self.pairs(place) else answering

    def entry_names(self, place: _Place) -> Names:
        site = place.site
        kind = ENTRY_OF[site.kind]
        probes = [f"{kind}:{probe.partition(':')[2]}" for probe in site.probes]
        entry = Site(kind, site.signature, probes, f"{site.function}_entry", set())
        return Names(entry, False, self.question.paths, place.names.number, text_size=place.names.text_size)

    def at_entry(self, names: Names, kept: Kept) -> Value:
        return translate(Expression("", "value", kept.node), names)

    def entry(self, place: _Place) -> str:
        """Return the program at a call's entry, which keeps what the return needs."""
        names = self.entry_names(place)
        where = condition(self.question.where, names) if place.early and self.question.where else ""
        lines = f"{_declared(names)}    if (!{_bracketed(where)}) return 0;\n\n" if where else ""
        lines += f"{self.thread(names.site, returning=False)}    struct call_t call = {{}};\n"
        for kept in (place.names.kept or {}).values():
            value = self.at_entry(names, kept)
            if not kept.text:
                lines += f"    call.{kept.member} = {'(u64)' if isinstance(value, String) else ''}{value.code};\n"
            else:
                lines += _copied(f"call.{kept.member}", value if isinstance(value, String) else _at(value))
        if self.latency:
            lines += "    call.start = bpf_ktime_get_ns();\n"
        return self.function(names, f"{lines}    calls.update(&thread, &call);\n    return 0;\n}}\n")

    def thread(self, site: Site, *, returning: bool) -> str:
        """Return the key of a call. A thread is in one system call, but functions may call themselves."""
        kind = ENTRY_OF.get(site.kind, site.kind)
        if kind == "syscall":
            return "    u64 thread = bpf_get_current_pid_tgid();\n"
        frame = "PT_REGS_SP(ctx)" + " - RETURN_ADDRESS" * returning if kind != "fentry" else "(u64)ctx"
        return f"    struct thread_t thread = {{bpf_get_current_pid_tgid(), {frame}}};\n"

    def program(self, place: _Place, columns: Sequence[Shown], unsigned: bool) -> str:
        """Return the program that answers."""
        lines = ""
        if self.pairs(place):
            lines += "    u64 end = bpf_ktime_get_ns();\n" * self.latency
            lines += self.thread(place.site, returning=True)
            lines += (
                "    struct call_t *found = calls.lookup(&thread);\n"
                "    if (!found) return 0;  // it began before the session did, or is left out\n"
                "    struct call_t call = *found;\n    calls.delete(&thread);\n"
            )
        act = self.act(place, columns, unsigned)
        before = _needed(_words(place.where))
        if place.where:
            lines += f"{_declared(place.names, before)}    if (!{_bracketed(place.where)}) return 0;\n\n"
        others = set(place.names.declared) - before if place.where else set(place.names.declared)
        return self.function(place.names, f"{lines}{_declared(place.names, others)}{act}    return 0;\n}}\n")

    def function(self, names: Names, body: str) -> str:
        probes = [] if names.site.attaches_itself else names.site.probes
        return "".join(f"PROBE({_quoted(probe)})\n" for probe in probes) + names.site.head() + body

    def act(self, place: _Place, columns: Sequence[Shown], unsigned: bool) -> str:
        """Return what is done with an event."""
        question = self.question
        if question.verb == "rows":
            before = self.taken_before(place)
            return before + (
                "    struct event_t *event = events.ringbuf_reserve(sizeof(struct event_t));\n"
                "    if (!event) return 0;\n    __builtin_memset(event, 0, sizeof(*event));\n"
                f"{self.filled(place, columns, 'event->')}    events.ringbuf_submit(event, 0);\n"
            )
        keyed = bool(columns) or question.verb == "stacks"
        lines = f"    struct key_t key = {{}};\n{self.filled(place, columns, 'key.')}" if keyed else ""
        if question.verb == "stacks":
            lines += "    key.tgid = bpf_get_current_pid_tgid() >> 32;\n"
            lines += "    key.kernel_stack = traces.get_stackid(ctx, 0);\n" * question.kernel
            lines += "    key.user_stack = traces.get_stackid(ctx, BPF_F_USER_STACK);\n" * question.user
        if question.verb in ("count", "stacks"):
            return f"{lines}    counts.increment({'key' if keyed else '0'});\n"
        assert isinstance(place.value, Integer)
        if question.verb == "stats":
            return lines + _stats(place.value, keyed, unsigned)
        if keyed:
            return f"{lines}    key.slot = slot_of({place.value.code});\n    hist.increment(key);\n"
        return f"    hist.increment(slot_of({place.value.code}));\n"


def _stats(value: Integer, keyed: bool, unsigned: bool) -> str:
    number = f"    {'u' if unsigned else 's'}64 value = {value.code};\n"
    turned = "" if unsigned else " ^ (1ULL << 63)"
    entry = "    struct stats_t *entry = stats.lookup(&(int){0});\n"
    if keyed:
        entry = "    struct stats_t none = {}, *entry = stats.lookup_or_try_init(&key, &none);\n"
    return (
        f"{number}{entry}    if (!entry) return 0;\n"
        "    __sync_fetch_and_add(&entry->count, 1);\n    __sync_fetch_and_add(&entry->sum, value);\n"
        f"    raise(&entry->most, (u64)value{turned});\n    raise(&entry->least, ~((u64)value{turned}));\n"
    )


def _copied(target: str, value: String) -> str:
    read = f"bpf_probe_read_{value.place}_str(&{target}, sizeof({target}), (void *){value.code})"
    return f"    if ({read} < 0)\n        __builtin_memcpy(&{target}, {_C_UNREAD});\n"


def _at(address: Integer) -> String:
    """Return the string at an address."""
    kernel = address.meaning is not None and address.meaning.kind == "pointer" and not address.meaning.user
    return String(f"({address.code})", "kernel" if kernel else "user")


def _common(values: object) -> str:
    numbers: list[Integer] = list(values)  # type: ignore[call-overload]
    return Integer("", "s64", min(v.low for v in numbers), max(v.high for v in numbers)).member


def _words(code: str) -> set[str]:
    return set(re.findall(r"[A-Za-z_]\w*", code))


def _needed(used: set[str]) -> set[str]:
    return used | ({"retval"} if "errno" in used else set())


def _declared(names: Names, wanted: set[str] | None = None) -> str:
    """Return the local variables that are used; errno is made of retval."""
    order = sorted(names.declared, key=lambda name: name == "errno")
    return "".join(f"    {names.declared[name]}\n" for name in order if wanted is None or name in wanted)


def _bracketed(code: str) -> str:
    return f"({code})"


def _comment(text: str) -> str:
    """Return text for a comment of one line: plain characters, none of which continues the line."""
    plain = "".join(c if c.isascii() and c.isprintable() and c not in "\\?" else "." for c in text)
    return plain if len(plain) <= 110 else f"{plain[:110]} ..."


def _quoted(probe: str) -> str:
    return '"' + probe.replace("\\", "\\\\").replace('"', '\\"') + '"'
