"""What the words of bcc's C mean: helpers, macros, methods of maps. With examples, and since when there are helpers."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from bpfnb.language.vocabulary import ATTACH, METHODS, NUMBER, PROBES, REGISTERS, TABLES, helpers, usage

__all__ = ["FILE", "KEYWORDS", "METHOD_NOTES", "TYPES", "Meaning", "helper_meanings", "meaning_of", "method", "words"]

FILE = Path(__file__).with_name("helpers.txt")


class Meaning(NamedTuple):
    """A word of the dialect. ``kind``: "helper", "macro", "method" or "function". ``since``: the first Linux that has
    it, "" where that does not matter."""

    name: str
    kind: str
    signature: str
    text: str
    example: str = ""
    since: str = ""


KEYWORDS = (
    "if", "else", "for", "while", "do", "switch", "case", "default", "break", "continue", "return", "goto", "sizeof",
    "struct", "union", "enum", "typedef", "static", "inline", "const", "volatile",
)  # fmt: skip
TYPES = (
    "u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64", "bool", "char", "int", "long", "short", "unsigned", "void",
    "size_t", "pid_t",
)  # fmt: skip

_TABLES = {
    "BPF_HASH": ("a hash: values by key; u64 both, unless said otherwise", "BPF_HASH(counts, u32, u64);"),
    "BPF_PERCPU_HASH": (
        "a hash with a value for each CPU: no two CPUs write the same",
        "BPF_PERCPU_HASH(counts, u32);",
    ),
    "BPF_ARRAY": ("an array: values by index, all there from the start", "BPF_ARRAY(limit, u64, 1);"),
    "BPF_PERCPU_ARRAY": ("an array with a value for each CPU", "BPF_PERCPU_ARRAY(scratch, struct data_t, 1);"),
    "BPF_HISTOGRAM": ("counts by bucket; hist() shows it", "BPF_HISTOGRAM(sizes);  sizes.increment(bpf_log2l(n));"),
    "BPF_LPM_TRIE": ("a trie: the longest prefix that matches a key", "BPF_LPM_TRIE(nets, struct key_t, u32);"),
    "BPF_STACK_TRACE": ("stacks by number; folded() names their functions", "BPF_STACK_TRACE(stacks, 16384);"),
    "BPF_STACK_TRACE_BUILDID": ("stacks as offsets in files with build ids", "BPF_STACK_TRACE_BUILDID(stacks, 1024);"),
    "BPF_QUEUE": ("a queue: first in, first out", "BPF_QUEUE(waiting, u64, 1024);"),
    "BPF_STACK": ("a stack: last in, first out", "BPF_STACK(free, u64, 1024);"),
    "BPF_PROG_ARRAY": ("programs by index, for tail calls", "BPF_PROG_ARRAY(next, 4);  next.call(ctx, 0);"),
    "BPF_PERF_ARRAY": ("counters of each CPU", "BPF_PERF_ARRAY(cycles, 64);  u64 n = cycles.perf_read(cpu);"),
    "BPF_CGROUP_ARRAY": ("cgroups by index", "BPF_CGROUP_ARRAY(wanted, 1);  wanted.check_current_task(0);"),
    "BPF_TABLE": ("a map of any kind", 'BPF_TABLE("lru_hash", u32, u64, seen, 10240);'),
    "BPF_F_TABLE": ("a map of any kind, with flags", 'BPF_F_TABLE("hash", u32, u64, m, 1024, BPF_F_NO_PREALLOC);'),
    "BPF_TABLE_PINNED": (
        "a map in a file of /sys/fs/bpf, which stays",
        'BPF_TABLE_PINNED("hash", u32, u64, m, 1024, "/sys/fs/bpf/m");',
    ),
    "BPF_PERF_OUTPUT": (
        "an output: its events are rows, each CPU has a buffer",
        "BPF_PERF_OUTPUT(events);  events.perf_submit(ctx, &data, sizeof(data));",
    ),
    "BPF_RINGBUF_OUTPUT": (
        "an output: its events are rows, all CPUs share a ring of PAGES pages",
        "BPF_RINGBUF_OUTPUT(events, 64);  events.ringbuf_output(&data, sizeof(data), 0);",
    ),
    "BPF_ARRAY_OF_MAPS": ("maps by index", 'BPF_ARRAY_OF_MAPS(outer, "inner", 4);'),
    "BPF_HASH_OF_MAPS": ("maps by key", 'BPF_HASH_OF_MAPS(outer, u32, "inner", 64);'),
    "BPF_TASK_STORAGE": ("a value for each task", "BPF_TASK_STORAGE(state, struct state_t);"),
    "BPF_INODE_STORAGE": ("a value for each inode", "BPF_INODE_STORAGE(state, struct state_t);"),
    "BPF_SK_STORAGE": ("a value for each socket", "BPF_SK_STORAGE(state, struct state_t);"),
    "BPF_CGROUP_STORAGE": ("a value for each cgroup", "BPF_CGROUP_STORAGE(state, u64);"),
}
_PROBES = {
    "TRACEPOINT_PROBE": (
        "a function at a tracepoint, attached by itself; args has the fields",
        "TRACEPOINT_PROBE(sched, sched_process_fork) { u32 child = args->child_pid; return 0; }",
    ),
    "RAW_TRACEPOINT_PROBE": (
        "a function at a raw tracepoint, attached by itself; ctx->args has the arguments, as numbers",
        "RAW_TRACEPOINT_PROBE(sched_switch) { u64 next = ctx->args[2]; return 0; }",
    ),
    "KFUNC_PROBE": (
        "a function at the entry of a kernel function, with its parameters (fentry)",
        "KFUNC_PROBE(vfs_read, struct file *file) { return 0; }",
    ),
    "KRETFUNC_PROBE": (
        "a function at the return of a kernel function, with its parameters and result (fexit)",
        "KRETFUNC_PROBE(vfs_read, struct file *file, char *buf, size_t count, loff_t *pos, int ret) { return 0; }",
    ),
    "LSM_PROBE": (
        "a function at a hook of the security module; other than 0 refuses",
        "LSM_PROBE(file_open, struct file *file) { return 0; }",
    ),
}
_OTHERS = (
    Meaning(
        ATTACH,
        "macro",
        usage(ATTACH),
        "attach the function that follows; bpfnb's own",
        'PROBE("syscall:clone")\nint hello(void *ctx) { return 0; }',
    ),
    Meaning(
        NUMBER,
        "function",
        "u32 bpfnb_probe(void *ctx)",
        "the number of the probe that fires, of session.probes; bpfnb's own",
        "u32 n = bpfnb_probe(ctx);",
    ),
    Meaning(
        "bpf_log2l", "function", "unsigned int bpf_log2l(unsigned long v)", "the power of two that v lies in: a bucket",
        "sizes.increment(bpf_log2l(n));",
    ),
    Meaning(
        "bpf_log2", "function", "unsigned int bpf_log2(unsigned int v)", "the power of two that v lies in: a bucket",
        "sizes.increment(bpf_log2(n));",
    ),
    Meaning(
        "bpf_usdt_readarg", "function", "int bpf_usdt_readarg(int n, struct pt_regs *ctx, void *to)",
        "read an argument of a USDT probe, counted from 1", "u64 x = 0; bpf_usdt_readarg(1, ctx, &x);",
    ),
    Meaning(
        "bpf_usdt_readarg_p", "function", "int bpf_usdt_readarg_p(int n, struct pt_regs *ctx, void *to, u64 size)",
        "read what an argument of a USDT probe points to", "char s[64]; bpf_usdt_readarg_p(1, ctx, &s, sizeof(s));",
    ),
    Meaning(
        "TP_DATA_LOC_READ", "macro", "TP_DATA_LOC_READ(dst, field)",
        "copy a tracepoint's field of changing length: data_loc_field", "char s[64]; TP_DATA_LOC_READ(s, filename);",
    ),
    Meaning(
        "TP_DATA_LOC_READ_STR", "macro", "TP_DATA_LOC_READ_STR(dst, field, length)",
        "copy a string of a tracepoint: data_loc_field", "char s[64]; TP_DATA_LOC_READ_STR(s, filename, sizeof(s));",
    ),
)  # fmt: skip
_REGISTERS = {
    **{f"PT_REGS_PARM{n}": f"argument {n} of the probed function" for n in range(1, 7)},
    "PT_REGS_RC": "what the probed function returns",
    "PT_REGS_IP": "the address of the instruction",
    "PT_REGS_SP": "the stack pointer",
    "PT_REGS_FP": "the frame pointer",
}
METHOD_NOTES: Mapping[str, str] = {
    "lookup": "the address of a key's value, or NULL where there is none: test it",
    "lookup_or_try_init": "the address of a key's value, set first where there is none; NULL where the map is full",
    "lookup_or_init": "as lookup_or_try_init; but the program returns where the map is full",
    "update": "set a key's value",
    "insert": "set a key's value, where there is none yet",
    "delete": "delete a key",
    "increment": "add to a key's value, exactly, on several CPUs too; by 1 unless said otherwise",
    "atomic_increment": "as increment",
    "push": "put a value in",
    "pop": "take the next value out",
    "peek": "read the next value, and leave it there",
    "perf_submit": "submit an event: a row",
    "perf_submit_skb": "submit an event with the first bytes of a packet",
    "ringbuf_output": "copy an event into the ring: a row",
    "ringbuf_reserve": "room for an event, or NULL where the ring is full; submit or discard it",
    "ringbuf_submit": "submit a reserved event: a row",
    "ringbuf_discard": "give back the room of a reserved event",
    "ringbuf_query": "a property of the ring, such as how many bytes wait in it",
    "get_stackid": "the number of the current stack, kept in the map; negative where it could not be",
    "call": "go on in the program at this index; returns only where there is none",
    "perf_read": "the value of a counter",
    "perf_counter_value": "the value of a counter, and how long it was on and running",
    "check_current_task": "whether the current task is in the cgroup at this index, or below it",
    "sk_storage_get": "the value of a socket",
    "sk_storage_delete": "delete the value of a socket",
    "inode_storage_get": "the value of an inode",
    "inode_storage_delete": "delete the value of an inode",
    "task_storage_get": "the value of a task",
    "task_storage_delete": "delete the value of a task",
    "get_local_storage": "the value of the current cgroup",
    "redirect_map": "send the packet where the entry says",
    "sock_map_update": "put a socket in",
    "sock_hash_update": "put a socket in, under a key",
    "msg_redirect_hash": "pass a message to a socket",
    "sk_redirect_hash": "pass a packet to a socket",
}
_EXAMPLES = {
    "bpf_trace_printk": 'bpf_trace_printk("pid %d\\n", pid);',
    "bpf_get_current_pid_tgid": "u32 pid = bpf_get_current_pid_tgid() >> 32, tid = bpf_get_current_pid_tgid();",
    "bpf_get_current_uid_gid": "u32 uid = bpf_get_current_uid_gid();",
    "bpf_get_current_comm": "bpf_get_current_comm(&data.comm, sizeof(data.comm));",
    "bpf_ktime_get_ns": "u64 ns = bpf_ktime_get_ns();",
    "bpf_get_current_task": "struct task_struct *task = (struct task_struct *)bpf_get_current_task();",
    "bpf_get_current_task_btf": "struct task_struct *task = bpf_get_current_task_btf();",
    "bpf_probe_read_kernel": "bpf_probe_read_kernel(&value, sizeof(value), &task->prio);",
    "bpf_probe_read_user": "bpf_probe_read_user(&value, sizeof(value), (void *)args->addr);",
    "bpf_probe_read_user_str": "bpf_probe_read_user_str(data.file, sizeof(data.file), args->filename);",
    "bpf_probe_read_kernel_str": "bpf_probe_read_kernel_str(data.name, sizeof(data.name), dentry->d_name.name);",
    "bpf_map_lookup_elem": "u64 *value = counts.lookup(&key);  // bcc's way",
    "bpf_map_update_elem": "counts.update(&key, &value);  // bcc's way",
    "bpf_map_delete_elem": "counts.delete(&key);  // bcc's way",
    "bpf_perf_event_output": "events.perf_submit(ctx, &data, sizeof(data));  // bcc's way",
    "bpf_ringbuf_output": "events.ringbuf_output(&data, sizeof(data), 0);  // bcc's way",
    "bpf_get_stackid": "int id = stacks.get_stackid(ctx, BPF_F_USER_STACK);  // bcc's way",
    "bpf_get_smp_processor_id": "u32 cpu = bpf_get_smp_processor_id();",
    "bpf_get_prandom_u32": "if (bpf_get_prandom_u32() % 100) return 0;  // every hundredth event",
    "bpf_send_signal": "bpf_send_signal(19);  // SIGSTOP",
    "bpf_get_current_cgroup_id": "u64 cgroup = bpf_get_current_cgroup_id();",
}


@functools.cache
def helper_meanings() -> Mapping[str, tuple[str, str]]:
    """Return the release and the meaning of each helper, by name."""
    lines = [line for line in FILE.read_text().splitlines() if not line.startswith("#")]
    return {name: (since, text) for name, since, text in (line.split(" ", 2) for line in lines)}


@functools.cache
def words() -> Mapping[str, Meaning]:
    """Return the helpers and macros, by name."""
    found = [_helper(name) for name in helpers()]
    for macro in TABLES.values():
        if macro.offered:
            kind = macro.name.removeprefix("BPF_").lower()
            text, example = _TABLES.get(macro.name, (f"a map of kind {macro.type or kind}", ""))
            found.append(Meaning(macro.name, "macro", usage(macro.name), text, example))
    for probe in PROBES.values():
        if probe.offered:
            text, example = _PROBES.get(probe.name, (f"a function, attached by itself ({probe.kind})", ""))
            found.append(Meaning(probe.name, "macro", usage(probe.name), text, example))
    for name in REGISTERS:
        found.append(Meaning(name, "macro", f"{name}(struct pt_regs *ctx)", _REGISTERS[name], f"u64 x = {name}(ctx);"))
    return {meaning.name: meaning for meaning in (*found, *_OTHERS)}


def _helper(name: str) -> Meaning:
    helper = helpers()[name]
    since, text = helper_meanings().get(name, ("", ""))
    signature = str(helper) if name != "bpf_trace_printk" else "int bpf_trace_printk(const char *fmt, ...)"
    given = ", ".join(p.replace("*", " ").split()[-1] for p in helper.parameters)
    taken = "" if helper.returns == "void" else f"{helper.returns}{'' if helper.returns.endswith('*') else ' '}x = "
    return Meaning(name, "helper", signature, text, _EXAMPLES.get(name, f"{taken}{name}({given});"), since)


def meaning_of(word: str) -> Meaning | None:
    """Return what a helper or a macro means."""
    return words().get(word)


def method(macro: str, table: str, name: str, key: str = "", value: str = "") -> Meaning | None:
    """Return what a method means for a map of this name, which the macro declares. ``key``, ``value``: its types."""
    known = METHODS.get(name)
    if not known or macro not in TABLES or name not in TABLES[macro].methods:
        return None
    space = "" if known.returns.endswith("*") else " "
    signature = f"{known.returns}{space}{table}.{name}({', '.join(known.parameters)})"
    signature = signature.replace("KEY", key or "KEY").replace("VALUE", value or "VALUE")
    return Meaning(name, "method", signature, METHOD_NOTES.get(name, ""), f"{table}.{known.usage};")
