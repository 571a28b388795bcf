// class: direct memory access
// attach: rawtracepoint:sys_enter=f
int f(struct bpf_raw_tracepoint_args *ctx) {
    volatile u64 address = ctx->args[1];
    char *path = (char *)address;
    if (path[0] == '/')  // <- here
        bpf_trace_printk("absolute");
    return 0;
}
