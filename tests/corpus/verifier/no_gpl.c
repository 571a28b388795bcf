// class: missing GPL licence
// attach: syscall:sync=f
#define BPF_LICENSE Proprietary
int f(void *ctx) {
    char buffer[8] = {};
    bpf_probe_read_kernel(buffer, sizeof(buffer), (void *)bpf_get_current_task());  // <- here
    return buffer[0];
}
