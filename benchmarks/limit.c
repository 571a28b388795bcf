// The least that can be done with an event: a callback of libbpf's that copies it into memory already touched.
#include <stdint.h>
#include <string.h>

struct copied {
    char *at; // where the next one goes
    uint64_t events, lost;
};

static void copy(struct copied *to, const void *data, size_t size)
{
    memcpy(to->at, data, size);
    to->at += size;
    to->events++;
}

// ring_buffer_sample_fn
int copy_record(void *to, void *data, size_t size)
{
    copy(to, data, size);
    return 0;
}

// perf_buffer_event_fn: struct perf_event_header, then what PERF_SAMPLE_TIME and PERF_SAMPLE_RAW add
struct event {
    uint32_t type;
    uint16_t misc, size;
    uint64_t time; // of PERF_RECORD_LOST: id
    union {
        struct {
            uint32_t raw;
            char data[];
        };
        uint64_t lost;
    };
};

int copy_sample(void *to, int cpu, struct event *event)
{
    if (event->type == 9) copy(to, event->data, event->raw);           // PERF_RECORD_SAMPLE
    if (event->type == 2) ((struct copied *)to)->lost += event->lost;  // PERF_RECORD_LOST
    return -2;                                                         // LIBBPF_PERF_EVENT_CONT
}
