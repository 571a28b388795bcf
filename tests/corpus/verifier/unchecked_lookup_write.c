// class: unchecked map lookup
// attach: syscall:sync=f
struct seen { u64 first; u64 last; };
BPF_ARRAY(slots, struct seen, 4);
int f(void *ctx) {
    int at = 1;
    struct seen *seen = slots.lookup(&at);
    seen->last = bpf_ktime_get_ns();  // <- here
    return 0;
}
