// class: helper not allowed here
// attach: syscall:sync=f
int f(void *ctx) {
    bpf_ktime_get_ns();
    return bpf_redirect(1, 0);  // <- here
}
