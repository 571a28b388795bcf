// class: out of bounds of a map value
// attach: syscall:sync=f
struct table { u64 slots[8]; };
BPF_ARRAY(tables, struct table, 1);
int f(void *ctx) {
    int zero = 0;
    struct table *table = tables.lookup(&zero);
    if (!table) return 0;
    s64 at = bpf_ktime_get_ns();
    if (at < 8)
        table->slots[at] = 1;  // <- here
    return 0;
}
