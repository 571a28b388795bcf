// class: too complex
// attach: syscall:sync=f
int f(void *ctx) {
    u64 sum = 0;
    for (int i = 0; i < 100000; i++)
        if (bpf_get_prandom_u32() & 1)  // <- here
            sum += i;
        else
            sum ^= i;
    return sum;
}
