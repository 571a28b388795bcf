"""C that generated programs share: helpers, each put in where it is used."""

from __future__ import annotations

from bpfnb.language.oneliner.question import Bins

__all__ = ["LOG2_SLOTS", "ZERO_SLOT", "slot_of", "used_in"]

ZERO_SLOT = 64  # of a histogram in powers of two
LOG2_SLOTS = 129

_SKIP = """\
// Events that an expression has no value for: memory that cannot be read, a division by zero. They are left out.
BPF_ARRAY(unread, u64, 1);
static inline int skip(void) {
    unread.increment(0);
    return 0;
}
"""
# Without a branch a byte, whose ways the verifier would all follow.
_SAME = """\
static inline int same(const char *text, const char *other, int length) {
    int differ = 0;
    #pragma unroll
    for (int i = 0; i < 64; i++)
        if (i < length) differ |= text[i] ^ other[i];
    return !differ;
}
"""
_FLOOR = """\
// BPF divides unsigned numbers only. Rounded down, as Python's //; the rest has b's sign, as Python's %.
static inline s64 floor_div(s64 a, s64 b) {
    u64 above = a < 0 ? 0 - (u64)a : a, below = b < 0 ? 0 - (u64)b : b;
    u64 whole = above / below;
    return (a < 0) == (b < 0) ? (s64)whole : -(s64)(whole + (above % below != 0));
}
static inline s64 floor_mod(s64 a, s64 b) {
    return (s64)((u64)a - (u64)b * (u64)floor_div(a, b));
}
"""
_PARENT = """\
static inline int parent(void) {
    struct task_struct *task = (struct task_struct *)bpf_get_current_task(), *above = 0;
    int pid = 0;
    bpf_probe_read_kernel(&above, sizeof(above), &task->real_parent);
    bpf_probe_read_kernel(&pid, sizeof(pid), &above->tgid);
    return pid;
}
"""
_RAISE = """\
static inline void raise(u64 *most, u64 value) {
    #pragma unroll
    for (int i = 0; i < 4; i++) {  // again, where another program has changed it meanwhile
        u64 before = *most;
        if (value <= before || __sync_val_compare_and_swap(most, before, value) == before) return;
    }
}
"""
_LOG2 = """\
static inline int log2_of(u64 value) {
    int power = 0;
    if (value >> 32) { value >>= 32; power += 32; }
    if (value >> 16) { value >>= 16; power += 16; }
    if (value >> 8) { value >>= 8; power += 8; }
    if (value >> 4) { value >>= 4; power += 4; }
    if (value >> 2) { value >>= 2; power += 2; }
    return power + (value >> 1);
}
"""
_UNSIGNED_SLOT = """\
static inline int slot_of(u64 value) {  // 64: zero; 65: one; 66: two and three; ...
    return value ? 65 + log2_of(value) : 64;
}
"""
_SIGNED_SLOT = """\
static inline int slot_of(s64 value) {  // 64: zero; 65: one; 66: two and three; ...; 63: -1; 62: -2 and -3; ...
    if (value < 0) return 63 - log2_of(0 - (u64)value);
    return value ? 65 + log2_of(value) : 64;
}
"""
_HELPERS = {"skip()": _SKIP, "same(": _SAME, "floor_": _FLOOR, "parent()": _PARENT, "raise(": _RAISE}


def used_in(body: str) -> list[str]:
    """Return the helpers that a text calls."""
    return [helper for word, helper in _HELPERS.items() if word in body]


def slot_of(unsigned: bool, bins: Bins | None) -> list[str]:
    """Return what tells a value's bucket."""
    if bins is None:
        return [_LOG2, _UNSIGNED_SLOT if unsigned else _SIGNED_SLOT]
    last = bins.count + 1
    below = "" if unsigned and bins.low <= 0 else f"    if (value < {bins.low}LL) return 0;\n"
    return [
        f"static inline int slot_of({'u' if unsigned else 's'}64 value) {{  // 0: below all; {last}: above all\n"
        f"{below}    if (value >= {bins.high}LL) return {last};\n"
        f"    return 1 + (u64)(value - ({bins.low}LL)) / {bins.step};\n}}\n"
    ]
