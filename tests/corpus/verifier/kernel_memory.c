// class: direct memory access
// attach: syscall:sync=f
int f(void *ctx) {
    volatile u64 address = bpf_get_current_task();
    u64 *task = (u64 *)address;
    bpf_trace_printk("%d", *task);  // <- here
    return 0;
}
