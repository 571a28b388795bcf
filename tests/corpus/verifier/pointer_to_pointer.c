// class: wrong pointer arithmetic
// attach: syscall:sync=f
BPF_ARRAY(numbers, u64, 1);
int f(void *ctx) {
    int zero = 0;
    u64 *number = numbers.lookup(&zero);
    if (!number) return 0;
    u64 a = (u64)number, b = (u64)ctx;
    asm volatile("%0 &= 0xff" : "+r"(a));  // <- here
    return a + b;
}
