// class: invalid context access
// attach: profile:99=f
int f(struct bpf_perf_event_data *ctx) {
    return *((volatile int *)ctx + 1000);  // <- here
}
