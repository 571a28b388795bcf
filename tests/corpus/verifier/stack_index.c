// class: out of bounds of the stack
// attach: syscall:sync=f
int f(void *ctx) {
    char digits[16] = {};
    u64 at = bpf_ktime_get_ns();
    digits[at] = 1;  // <- here
    bpf_trace_printk("%s", digits);
    return 0;
}
