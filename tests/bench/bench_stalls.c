/* When processors stood still: a thread on each processor wakes every millisecond, and notes when it woke late.
 *
 *     bench_stalls
 *
 * The threads have real-time priority, where that is allowed, so that no other thread of the system keeps them waiting.
 * A thread that wakes late all the same was held up by the kernel, in something that cannot be interrupted, or by the
 * host of a virtual machine, which let something else run on that processor.
 *
 * First it prints "ready fifo", or "ready" without that priority. To each line of its input it prints one line: what
 * was noted since the last one, as JSON: a list of [processor, begin, end], in seconds of CLOCK_MONOTONIC. `begin` is
 * when the thread should have woken. At most 4,096 are kept for each processor. */
#include "tests/bench/seconds.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PERIOD_NS 1000000L
#define LATE      0.001 /* seconds */
#define KEPT      4096u

struct late {
    double begin, end;
};

struct watch {
    int processor;
    pthread_t thread;
    pthread_mutex_t lock; /* for what follows */
    unsigned n;
    struct late late[KEPT];
};

/* How long the calling thread has waited for a processor in all, in seconds. `fd`: of its schedstat. */
static double waited(int fd)
{
    char text[128];
    unsigned long long ran, queued;
    const ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
    text[n > 0 ? n : 0] = '\0';
    return sscanf(text, "%llu %llu", &ran, &queued) == 2 ? (double)queued / 1e9 : 0;
}

static void *wake(void *argument)
{
    struct watch *watch = argument;
    struct timespec next;
    const int fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    double before = waited(fd);
    clock_gettime(CLOCK_MONOTONIC, &next);
    for (;;) {
        next.tv_nsec += PERIOD_NS;
        if (next.tv_nsec >= 1000000000L) {
            next.tv_nsec -= 1000000000L;
            next.tv_sec++;
        }
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
        const double wanted = (double)next.tv_sec + (double)next.tv_nsec / 1e9, now = seconds(), after = waited(fd);
        const double end = now - (after - before);
        before = after;
        if (end - wanted > LATE) {
            pthread_mutex_lock(&watch->lock);
            if (watch->n < KEPT)
                watch->late[watch->n++] = (struct late){wanted, end};
            pthread_mutex_unlock(&watch->lock);
        }
        if (now - wanted > LATE)
            clock_gettime(CLOCK_MONOTONIC, &next); /* the wakes that were missed are not made up for */
    }
    return NULL;
}

/* A thread on this processor. False: there is none. */
static bool start(struct watch *watch, int processor, bool *fifo)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(processor, &set);
    watch->processor = processor;
    pthread_mutex_init(&watch->lock, NULL);
    if (pthread_create(&watch->thread, NULL, wake, watch) != 0)
        return false;
    const struct sched_param priority = {.sched_priority = 1};
    if (pthread_setaffinity_np(watch->thread, sizeof(set), &set) != 0)
        return false;
    *fifo = pthread_setschedparam(watch->thread, SCHED_FIFO, &priority) == 0 && *fifo;
    return true;
}

static void tell(struct watch *watch, const char **separator)
{
    pthread_mutex_lock(&watch->lock);
    for (unsigned i = 0; i < watch->n; i++) {
        printf("%s[%d, %.6f, %.6f]", *separator, watch->processor, watch->late[i].begin, watch->late[i].end);
        *separator = ", ";
    }
    watch->n = 0;
    pthread_mutex_unlock(&watch->lock);
}

int main(void)
{
    cpu_set_t allowed;
    bool fifo = true;
    unsigned n = 0;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) < 0) {
        perror("bench_stalls: sched_getaffinity");
        return 1;
    }
    struct watch *watches = calloc((size_t)CPU_COUNT(&allowed), sizeof(*watches));
    for (int i = 0; watches && i < CPU_SETSIZE; i++) {
        if (CPU_ISSET(i, &allowed) && !start(&watches[n++], i, &fifo)) {
            fprintf(stderr, "bench_stalls: no thread on processor %d\n", i);
            return 1;
        }
    }
    printf("ready%s\n", fifo ? " fifo" : "");
    fflush(stdout);
    char line[64];
    while (watches && fgets(line, sizeof(line), stdin)) {
        const char *separator = "";
        printf("[");
        for (unsigned i = 0; i < n; i++)
            tell(&watches[i], &separator);
        printf("]\n");
        fflush(stdout);
    }
    exit(0); /* the threads end with the process */
}
