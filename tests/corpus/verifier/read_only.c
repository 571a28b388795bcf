// class: write to read-only memory
// attach: syscall:sync=f
BPF_F_TABLE("array", int, u64, numbers, 1, BPF_F_RDONLY_PROG);
int f(void *ctx) {
    int zero = 0;
    u64 *number = numbers.lookup(&zero);
    if (!number) return 0;
    *number = 1;  // <- here
    return 0;
}
