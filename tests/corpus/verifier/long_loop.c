// class: too complex
// attach: syscall:sync=f
int f(void *ctx) {
    volatile u64 sum = 0;
    for (u64 i = 0; i < 10000000; i++)  // <- here
        sum += i;
    return 0;
}
