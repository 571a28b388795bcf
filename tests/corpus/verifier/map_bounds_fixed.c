// class: out of bounds of a map value
// attach: syscall:sync=f
BPF_ARRAY(numbers, u64, 1);
int f(void *ctx) {
    int zero = 0;
    u64 *number = numbers.lookup(&zero);
    if (!number) return 0;
    number[1] = 1;  // <- here
    return 0;
}
