// Calls getppid(2) as often as it is told: producer CPU COUNT RATE SECONDS
//
// Waits for a byte on standard input, then calls until COUNT calls or SECONDS have passed, at most RATE a second
// (0: as fast as it can). Writes how many calls it made, and the nanoseconds they took.
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64 }; // calls between two looks at the clock

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

int main(int argc, char **argv)
{
    char go;
    cpu_set_t cpus;
    if (argc != 5) return 2;
    long count = atol(argv[2]), i;
    double rate = atof(argv[3]), most = atof(argv[4]) * 1e9;

    CPU_ZERO(&cpus);
    CPU_SET(atoi(argv[1]), &cpus);
    sched_setaffinity(0, sizeof cpus, &cpus);
    if (read(0, &go, 1) != 1) return 1;

    double began = now();
    for (i = 0; i < count; i++) {
        if (i % BATCH == 0) {
            double passed = now() - began;
            while (rate && passed * rate < i * 1e9) passed = now() - began;
            if (passed > most) break;
        }
        syscall(SYS_getppid);
    }
    printf("%ld %.0f\n", i, now() - began);
    return 0;
}
