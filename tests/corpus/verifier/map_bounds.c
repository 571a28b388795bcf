// class: out of bounds of a map value
// attach: syscall:sync=f
struct table { u64 slots[8]; };
BPF_ARRAY(tables, struct table, 1);
int f(void *ctx) {
    int zero = 0;
    struct table *table = tables.lookup(&zero);
    if (!table) return 0;
    u32 at = bpf_get_prandom_u32();
    table->slots[at] = 1;  // <- here
    return 0;
}
