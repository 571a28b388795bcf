// class: direct memory access
// attach: syscall:sync=f
struct data_t { u64 ts; };
BPF_RINGBUF_OUTPUT(events, 8);
int f(void *ctx) {
    struct data_t *data = events.ringbuf_reserve(sizeof(*data));
    if (!data) return 0;
    events.ringbuf_submit(data, 0);
    data->ts = 1;  // <- here
    return 0;
}
