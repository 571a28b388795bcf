// class: uninitialised stack
// until: 6.1
// attach: syscall:sync=f
struct key { u32 pid; u64 when; };
BPF_HASH(counts, struct key, u64);
int f(void *ctx) {
    struct key key;
    key.pid = bpf_get_current_pid_tgid();
    u64 one = 1;
    counts.update(&key, &one);  // <- here
    return 0;
}
