// class: invalid context access
// attach: syscall:sync=f
int f(void *ctx) {
    u64 off = bpf_get_prandom_u32() & 7;
    return *((volatile char *)ctx + off);  // <- here
}
