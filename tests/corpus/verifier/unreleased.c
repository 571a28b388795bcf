// class: unreleased reference
// attach: syscall:sync=f
struct data_t { u64 ts; };
BPF_RINGBUF_OUTPUT(events, 8);
int f(void *ctx) {
    struct data_t *data = events.ringbuf_reserve(sizeof(*data));  // <- here
    if (!data) return 0;
    data->ts = bpf_ktime_get_ns();
    if (data->ts % 2) return 0;
    events.ringbuf_submit(data, 0);
    return 0;
}
