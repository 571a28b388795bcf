// class: out of bounds of the stack
// attach: syscall:sync=f
int f(void *ctx) {
    char name[16] = {};
    bpf_get_current_comm(name, 64);  // <- here
    bpf_trace_printk("%s", name);
    return 0;
}
