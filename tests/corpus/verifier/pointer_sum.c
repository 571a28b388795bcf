// class: wrong pointer arithmetic
// attach: syscall:sync=f
BPF_ARRAY(numbers, u64, 1);
int f(void *ctx) {
    int zero = 0;
    u64 *number = numbers.lookup(&zero);
    if (!number) return 0;
    u64 address = (u64)number;
    address = address * 2;  // <- here
    asm volatile("" : "+r"(address));
    return *(u64 *)address;
}
