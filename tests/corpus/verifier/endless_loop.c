// class: endless loop
// attach: syscall:sync=f
int f(void *ctx) {
    u64 n = 0;
    while (n != 1)  // <- here
        asm volatile("" ::: "memory");
    return 0;
}
