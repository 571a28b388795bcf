// class: wrong argument
// attach: syscall:sync=f
BPF_HASH(counts, u32, u64);
int f(void *ctx) {
    u64 *value = counts.lookup((u32 *)bpf_get_current_task());  // <- here
    return value ? 1 : 0;
}
