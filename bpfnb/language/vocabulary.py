"""bcc's dialect of C, as data: the macros that declare maps, outputs and functions, the methods of maps, the helpers.

    TABLES      macros that declare a map or an output: BPF_HASH(...), BPF_PERF_OUTPUT(...)
    METHODS     what maps and outputs are asked for: counts.increment(key)
    PROBES      macros that write a function's signature: TRACEPOINT_PROBE(...)
    ATTACH      bpfnb's own macro before a function: PROBE("uprobe:c:malloc") attaches it
    NUMBER      bpfnb's own function, which gives the number of the probe that fires: bpfnb_probe(ctx)
    helpers()   the kernel's functions for programs: bpf_ktime_get_ns()

The others are those of bcc's helpers.h, which cells are compiled with, and of the kernel's list of helpers
(bpf_helpers.txt). Parsing, rewriting and hints read them here. tests/kernel/test_helpers_h.py compares them with the
installed bcc's.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

__all__ = [
    "ATTACH",
    "ATTRIBUTES",
    "ATTRIBUTES_WITH_ARGUMENTS",
    "HELPERS_FILE",
    "METHODS",
    "NUMBER",
    "PINS",
    "PROBES",
    "REGISTERS",
    "TABLES",
    "Helper",
    "Method",
    "ProbeMacro",
    "TableMacro",
    "declares",
    "helpers",
    "usage",
]

# --- methods ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of a map or an output.

    ``returns``, ``parameters``: as C has them, with KEY and VALUE for the types of the map. ``usage``: a call as hints
    show it. ``optional``: how many of the last parameters may be left out. ``helper``: the helper that does the same
    where it is given a map's address, as libbpf's programs do.
    """

    name: str
    returns: str
    parameters: tuple[str, ...]
    usage: str
    optional: int = 0
    helper: str = ""

    def index(self, parameter: str) -> int:
        """Return the position of a parameter, by its name; -1 where there is none."""
        names = [re.findall(r"\w+", text)[-1] for text in self.parameters]
        return names.index(parameter) if parameter in names else -1

    def takes(self, count: int) -> bool:
        """Return whether the method can be called with so many arguments."""
        return len(self.parameters) - self.optional <= count <= len(self.parameters)


_METHODS = (
    Method("lookup", "VALUE *", ("KEY *key",), "lookup(&key)", helper="bpf_map_lookup_elem"),
    Method("lookup_or_try_init", "VALUE *", ("KEY *key", "VALUE *value"), "lookup_or_try_init(&key, &value)"),
    Method("lookup_or_init", "VALUE *", ("KEY *key", "VALUE *value"), "lookup_or_init(&key, &value)"),
    Method("update", "int", ("KEY *key", "VALUE *value"), "update(&key, &value)", helper="bpf_map_update_elem"),
    Method("insert", "int", ("KEY *key", "VALUE *value"), "insert(&key, &value)"),
    Method("delete", "int", ("KEY *key",), "delete(&key)", helper="bpf_map_delete_elem"),
    Method("increment", "void", ("KEY key", "VALUE by"), "increment(key)", optional=1),
    Method("atomic_increment", "void", ("KEY key", "VALUE by"), "atomic_increment(key)", optional=1),
    Method("push", "int", ("VALUE *value", "u64 flags"), "push(&value, 0)", helper="bpf_map_push_elem"),
    Method("pop", "int", ("VALUE *value",), "pop(&value)", helper="bpf_map_pop_elem"),
    Method("peek", "int", ("VALUE *value",), "peek(&value)", helper="bpf_map_peek_elem"),
    Method(
        "perf_submit",
        "int",
        ("void *ctx", "void *data", "u32 size"),
        "perf_submit(ctx, &data, sizeof(data))",
        helper="bpf_perf_event_output",
    ),
    Method(
        "perf_submit_skb",
        "int",
        ("void *ctx", "u32 skb_size", "void *data", "u32 size"),
        "perf_submit_skb(ctx, skb_size, &data, sizeof(data))",
    ),
    Method(
        "ringbuf_output",
        "int",
        ("void *data", "u64 size", "u64 flags"),
        "ringbuf_output(&data, sizeof(data), 0)",
        helper="bpf_ringbuf_output",
    ),
    Method(
        "ringbuf_reserve",
        "void *",
        ("u64 size",),
        "ringbuf_reserve(sizeof(struct data_t))",
        helper="bpf_ringbuf_reserve",
    ),
    Method("ringbuf_submit", "void", ("void *data", "u64 flags"), "ringbuf_submit(data, 0)"),
    Method("ringbuf_discard", "void", ("void *data", "u64 flags"), "ringbuf_discard(data, 0)"),
    Method("ringbuf_query", "u64", ("u64 flags",), "ringbuf_query(BPF_RB_AVAIL_DATA)"),
    Method("get_stackid", "int", ("void *ctx", "u64 flags"), "get_stackid(ctx, 0)", helper="bpf_get_stackid"),
    Method("call", "void", ("void *ctx", "int index"), "call(ctx, index)", helper="bpf_tail_call"),
    Method("perf_read", "u64", ("int cpu",), "perf_read(cpu)", helper="bpf_perf_event_read"),
    Method(
        "perf_counter_value",
        "int",
        ("int cpu", "void *counter", "u32 size"),
        "perf_counter_value(cpu, &counter, sizeof(counter))",
    ),
    Method("check_current_task", "int", ("int index",), "check_current_task(index)"),
    *(
        method
        for owner in ("sk", "inode", "task")
        for method in (
            Method(
                f"{owner}_storage_get",
                "void *",
                (f"void *{owner}", "void *value", "int flags"),
                f"{owner}_storage_get({owner}, &value, BPF_LOCAL_STORAGE_GET_F_CREATE)",
            ),
            Method(f"{owner}_storage_delete", "int", (f"void *{owner}",), f"{owner}_storage_delete({owner})"),
        )
    ),
    Method("get_local_storage", "int", ("u64 flags",), "get_local_storage(0)"),
    Method("redirect_map", "u64", ("int index", "int flags"), "redirect_map(index, 0)"),
    *(
        Method(name, "int", ("void *ctx", "void *key", "u64 flags"), f"{name}(ctx, &key, 0)")
        for name in ("sock_map_update", "sock_hash_update", "msg_redirect_hash", "sk_redirect_hash")
    ),
)
METHODS: Mapping[str, Method] = {method.name: method for method in _METHODS}

# --- tables ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TableMacro:
    """A macro that declares a map or an output.

    ``parameters``: NAME is the table's, "PATH" the file it is pinned at; words in quotes are string literals.
    ``optional``: how many of the last may be left out. ``type``: bcc's word for the kind of map; "" where an argument
    says it. ``output``: where the table is a stream of events. ``methods``: those that make sense, as hints list them.
    ``offered``: hints and completion name it; the others are bcc's own parts of those.
    """

    name: str
    parameters: tuple[str, ...]
    type: str = ""
    methods: tuple[str, ...] = ()
    optional: int = 0
    output: Literal["perf", "ringbuf", ""] = ""
    offered: bool = True

    @property
    def name_at(self) -> int:
        return self.parameters.index("NAME")

    @property
    def pinned_at(self) -> int:
        """The position of the file's name; -1 where the macro does not pin."""
        return self.parameters.index('"PATH"') if '"PATH"' in self.parameters else -1


# Text that may pin a map, whoever's macro writes it: bcc's own names, and the sections that they put maps into.
PINS = re.compile(r"PINNED|maps/pinned")

_TABLE_METHODS = ("lookup", "lookup_or_try_init", "update", "insert", "delete", "increment", "atomic_increment")
_QUEUE_METHODS = ("push", "pop", "peek")
_RING_METHODS = ("ringbuf_output", "ringbuf_reserve", "ringbuf_submit", "ringbuf_discard", "ringbuf_query")
_OF_TABLE = ('"TYPE"', "KEY", "VALUE", "NAME", "SIZE")
_OF_QUEUE = ('"TYPE"', "NAME", "VALUE", "SIZE", "FLAGS")


def _hash(name: str, type_: str, parameters: tuple[str, ...] = ("NAME", "KEY", "VALUE", "SIZE")) -> TableMacro:
    return TableMacro(name, parameters, type_, _TABLE_METHODS, optional=len(parameters) - 1)


def _sized(name: str, type_: str, *methods: str) -> TableMacro:
    return TableMacro(name, ("NAME", "SIZE"), type_, methods or _TABLE_METHODS)


def _storage(name: str, type_: str, *methods: str) -> TableMacro:
    return TableMacro(name, ("NAME", "VALUE"), type_, methods)


_WRITTEN = (
    _hash("BPF_HASH", "hash"),
    _hash("BPF_PERCPU_HASH", "percpu_hash"),
    _hash("BPF_ARRAY", "array", ("NAME", "VALUE", "SIZE")),
    _hash("BPF_PERCPU_ARRAY", "percpu_array", ("NAME", "VALUE", "SIZE")),
    _hash("BPF_HISTOGRAM", "histogram", ("NAME", "KEY", "SIZE")),
    _hash("BPF_LPM_TRIE", "lpm_trie"),
    _sized("BPF_STACK_TRACE", "stacktrace", "get_stackid"),
    _sized("BPF_STACK_TRACE_BUILDID", "stacktrace", "get_stackid"),
    TableMacro("BPF_QUEUE", ("NAME", "VALUE", "SIZE", "FLAGS"), "queue", _QUEUE_METHODS, optional=1),
    TableMacro("BPF_STACK", ("NAME", "VALUE", "SIZE", "FLAGS"), "stack", _QUEUE_METHODS, optional=1),
    _sized("BPF_PROG_ARRAY", "prog", "call"),
    _sized("BPF_PERF_ARRAY", "perf_array", "perf_read", "perf_counter_value"),
    _sized("BPF_CGROUP_ARRAY", "cgroup_array", "check_current_task"),
    TableMacro("BPF_TABLE", _OF_TABLE, "", _TABLE_METHODS),
    TableMacro("BPF_F_TABLE", (*_OF_TABLE, "FLAGS"), "", _TABLE_METHODS),
    TableMacro("BPF_TABLE_PINNED", (*_OF_TABLE, '"PATH"', "FLAGS"), "", _TABLE_METHODS, optional=1),
    TableMacro("BPF_TABLE_PUBLIC", _OF_TABLE, "", _TABLE_METHODS),
    TableMacro("BPF_TABLE_SHARED", _OF_TABLE, "", _TABLE_METHODS),
    TableMacro("BPF_QUEUESTACK", _OF_QUEUE, "", _QUEUE_METHODS),
    TableMacro("BPF_QUEUESTACK_PINNED", (*_OF_QUEUE, '"PATH"'), "", _QUEUE_METHODS),
    TableMacro("BPF_QUEUESTACK_PUBLIC", _OF_QUEUE, "", _QUEUE_METHODS),
    TableMacro("BPF_QUEUESTACK_SHARED", _OF_QUEUE, "", _QUEUE_METHODS),
    TableMacro("BPF_PERF_OUTPUT", ("NAME",), "perf_output", ("perf_submit", "perf_submit_skb"), output="perf"),
    TableMacro("BPF_RINGBUF_OUTPUT", ("NAME", "PAGES"), "ringbuf", _RING_METHODS, output="ringbuf"),
    TableMacro("BPF_ARRAY_OF_MAPS", ("NAME", '"INNER"', "SIZE"), "array_of_maps", ("lookup",)),
    TableMacro("BPF_HASH_OF_MAPS", ("NAME", "KEY", '"INNER"', "SIZE"), "hash_of_maps", ("lookup",)),
    _storage("BPF_TASK_STORAGE", "task_storage", "task_storage_get", "task_storage_delete"),
    _storage("BPF_INODE_STORAGE", "inode_storage", "inode_storage_get", "inode_storage_delete"),
    _storage("BPF_SK_STORAGE", "sk_storage", "sk_storage_get", "sk_storage_delete"),
    _storage("BPF_CGROUP_STORAGE", "cgroup_storage", "lookup", "update", "get_local_storage"),
    _storage("BPF_PERCPU_CGROUP_STORAGE", "percpu_cgroup_storage", "lookup", "update", "get_local_storage"),
    TableMacro("BPF_XDP_REDIRECT_MAP", ('"TYPE"', "VALUE", "NAME", "SIZE"), "", ("redirect_map",)),
    _sized("BPF_DEVMAP", "devmap", "redirect_map"),
    _sized("BPF_CPUMAP", "cpumap", "redirect_map"),
    TableMacro("BPF_XSKMAP", ("NAME", "SIZE", '"PATH"'), "xskmap", ("lookup", "redirect_map"), optional=1),
    _sized("BPF_SOCKMAP", "sockmap", "update", "delete", "sock_map_update"),
    TableMacro(
        "BPF_SOCKHASH",
        ("NAME", "KEY", "SIZE"),
        "sockhash",
        ("update", "delete", "sock_hash_update", "msg_redirect_hash", "sk_redirect_hash"),
        optional=2,
    ),
)
# How helpers.h calls a macro with so many arguments, where that is not its name and their number.
_STEMS = {"BPF_HISTOGRAM": "BPF_HIST", "BPF_QUEUE": "", "BPF_STACK": ""}


def _numbered(macro: TableMacro) -> list[TableMacro]:
    """Return the macros that bcc chooses from by the number of arguments: BPF_HASH1 to BPF_HASH4."""
    stem, most = _STEMS.get(macro.name, macro.name), len(macro.parameters)
    counts = range(most - macro.optional, most + 1) if macro.optional and stem else ()
    return [
        dataclasses.replace(macro, name=f"{stem}{n}", parameters=macro.parameters[:n], optional=0, offered=False)
        for n in counts
    ]


_PARTS = (
    TableMacro("BPF_QUEUE_STACK3", ('"TYPE"', "NAME", "VALUE", "SIZE"), "", _QUEUE_METHODS, offered=False),
    TableMacro("BPF_QUEUE_STACK4", _OF_QUEUE, "", _QUEUE_METHODS, offered=False),
    TableMacro("BPF_SOCKMAP_COMMON", ("NAME", "SIZE", '"TYPE"', "METHOD"), "sockmap", offered=False),
    TableMacro("BPF_SOCKHASH_COMMON", ("NAME", "KEY", "SIZE"), "sockhash", offered=False),
    TableMacro("BPF_CGROUP_STORAGE_COMMON", ("NAME", "VALUE", '"TYPE"'), "", offered=False),
    TableMacro("BPF_HASH_OF_MAPS2", ("NAME", '"INNER"'), "hash_of_maps", ("lookup",), offered=False),
    TableMacro("BPF_HASH_OF_MAPS3", ("NAME", "KEY", '"INNER"'), "hash_of_maps", ("lookup",), offered=False),
    TableMacro("BPF_HASH_OF_MAPS4", ("NAME", "KEY", '"INNER"', "SIZE"), "hash_of_maps", ("lookup",), offered=False),
    *(numbered for macro in _WRITTEN for numbered in _numbered(macro)),
)
TABLES: Mapping[str, TableMacro] = {macro.name: macro for macro in (*_WRITTEN, *_PARTS)}

# --- functions -------------------------------------------------------------------------------------------------------


class ProbeMacro(NamedTuple):
    """A macro that writes a function's signature, and attaches the function where it names a kind of probe.

    ``function``, ``context``: the function's name and its first parameter; the macro's first arguments, one for each
    "{}" of ``function``, are put in. The other arguments are the function's further parameters.
    """

    name: str
    parameters: tuple[str, ...]
    function: str
    kind: str
    context: str

    @property
    def named(self) -> int:
        return self.function.count("{}")

    @property
    def offered(self) -> bool:
        return bool(self.kind)


_BPF_PROG = "unsigned long long *ctx"
_FUNCTION = ("FUNCTION", "PARAMETERS...")
_MACROS = (
    ProbeMacro(
        "TRACEPOINT_PROBE",
        ("CATEGORY", "EVENT"),
        "tracepoint__{}__{}",
        "tracepoint",
        "struct tracepoint__{}__{} *args",
    ),
    ProbeMacro(
        "RAW_TRACEPOINT_PROBE",
        ("EVENT",),
        "raw_tracepoint__{}",
        "rawtracepoint",
        "struct bpf_raw_tracepoint_args *ctx",
    ),
    ProbeMacro("KFUNC_PROBE", _FUNCTION, "kfunc__{}", "fentry", _BPF_PROG),
    ProbeMacro("KRETFUNC_PROBE", (*_FUNCTION, "RESULT"), "kretfunc__{}", "fexit", _BPF_PROG),
    ProbeMacro("MODULE_KFUNC_PROBE", ("MODULE", *_FUNCTION), "kfunc__{}__{}", "fentry", _BPF_PROG),
    ProbeMacro("MODULE_KRETFUNC_PROBE", ("MODULE", *_FUNCTION, "RESULT"), "kretfunc__{}__{}", "fexit", _BPF_PROG),
    ProbeMacro("LSM_PROBE", ("HOOK", "PARAMETERS..."), "lsm__{}", "lsm", _BPF_PROG),
    ProbeMacro("KMOD_RET", _FUNCTION, "kmod_ret__{}", "", _BPF_PROG),
    ProbeMacro("BPF_ITER", ("TARGET",), "bpf_iter__{}", "", "struct bpf_iter__{} *ctx"),
    ProbeMacro("BPF_PROG", ("NAME", "PARAMETERS..."), "{}", "", _BPF_PROG),
)
PROBES: Mapping[str, ProbeMacro] = {macro.name: macro for macro in _MACROS}
ATTACH, NUMBER = "PROBE", "bpfnb_probe"
REGISTERS = (*(f"PT_REGS_PARM{n}" for n in range(1, 7)), "PT_REGS_RC", "PT_REGS_IP", "PT_REGS_SP", "PT_REGS_FP")


def declares(word: str) -> bool:
    """Return whether there is a macro of this name that declares a map, an output or a function, or attaches one."""
    return word in TABLES or word in PROBES or word == ATTACH


def usage(word: str) -> str:
    """Return how a macro is called: ``BPF_HASH(NAME[, KEY[, VALUE[, SIZE]]])``."""
    if word == ATTACH:
        return f'{word}("KIND:TARGET")'
    if word in PROBES:
        return f"{word}({', '.join(PROBES[word].parameters)})"
    macro = TABLES[word]
    needed = len(macro.parameters) - macro.optional
    inside = ", ".join(macro.parameters[:needed]) + "".join(f"[, {name}" for name in macro.parameters[needed:])
    return f"{word}({inside}{']' * macro.optional})"


# --- helpers ---------------------------------------------------------------------------------------------------------

HELPERS_FILE = Path(__file__).with_name("bpf_helpers.txt")


class Helper(NamedTuple):
    """A function that the kernel has for programs. ``number``: in BPF_FUNC_*. The rest is its signature as C."""

    number: int
    name: str
    returns: str
    parameters: tuple[str, ...]

    def __str__(self) -> str:
        space = "" if self.returns.endswith("*") else " "
        return f"{self.returns}{space}{self.name}({', '.join(self.parameters) or 'void'})"


@functools.cache
def helpers() -> Mapping[str, Helper]:
    """Return the helpers by name, ``bpf_ktime_get_ns``, in the order of their numbers."""
    lines = [line for line in HELPERS_FILE.read_text().splitlines() if not line.startswith("#")]
    found = {}
    for number, line in enumerate(lines, 1):
        returns, name, inside = re.fullmatch(r"(.*?)(\w+)\((.*)\)", line).groups()  # type: ignore[union-attr]
        parameters = () if inside == "void" else tuple(inside.split(", "))
        found[name] = Helper(number, name, returns.strip(), parameters)
    return found


# --- words -----------------------------------------------------------------------------------------------------------

# Words the kernel's and bcc's headers define away or into attributes; a C grammar takes them for types.
_ATTRIBUTE_WORDS = """
    __user __kernel __rcu __iomem __percpu __force __safe __nocast __bitwise __private __always_inline __always_unused
    __maybe_unused __unused __used __must_check __noinline noinline noinline_for_stack __weak __hidden __packed __cold
    __hot __pure __attribute_const__ __init __exit __ro_after_init __read_mostly __noreturn __inline __inline__
    __restrict __restrict__ __extension__ notrace asmlinkage __visible __randomize_layout BCC_SEC_HELPERS
"""
ATTRIBUTES = frozenset(_ATTRIBUTE_WORDS.split())
ATTRIBUTES_WITH_ARGUMENTS = frozenset({"__attribute__", "__attribute", "__aligned", "__section", "BCC_SEC", "SEC"})
