// class: uninitialised register
// attach: syscall:sync=f
int f(void *ctx) {
    u64 value;
    asm volatile("%0 = r5" : "=r"(value));  // <- here
    return value;
}
