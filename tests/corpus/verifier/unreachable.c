// class: unreachable instruction
// attach: syscall:sync=f
int f(void *ctx) {
    asm volatile("goto +1\n r0 = 7\n");  // <- here
    return 0;
}
