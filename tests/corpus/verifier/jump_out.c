// class: jump out of range
// attach: syscall:sync=f
int f(void *ctx) {
    asm volatile("goto +2000");  // <- here
    return 0;
}
