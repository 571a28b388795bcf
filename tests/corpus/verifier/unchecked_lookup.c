// class: unchecked map lookup
// attach: syscall:sync=f
BPF_HASH(counts, u32, u64);
int f(void *ctx) {
    u32 key = 0;
    u64 *value = counts.lookup(&key);
    return *value;  // <- here
}
