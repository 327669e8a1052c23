/* What a machine's cores allow a load into host memory: how fast threads read a file that is in the page cache, and how
 * fast they fill a memory file, in the two ways that there are.
 *
 *     bench_cores FILE SECONDS [THREADS...]
 *
 * "read": pread() of parts of 1 MiB. "write": parts of 1 MiB are written with pwrite(), one thread at a time, as the
 * host device does it: the kernel lets only one write to a file. "map": the pages of a part are taken with
 * MADV_POPULATE_WRITE and filled by a copy, all threads at a time. Prints GB/s for each number of threads; each figure
 * is the best of the rounds for which SECONDS are enough. */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PART        ((size_t)1 << 20)
#define WRITE       ((size_t)64 << 10)
#define THREADS_MAX 256u

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

enum way { READ, PWRITE, MAP };

struct bench {
    enum way way;
    int from, to;
    uint8_t *mapping;
    size_t bytes;
    atomic_size_t next;
    pthread_mutex_t writing;
    atomic_bool failed;
};

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static bool part(struct bench *bench, uint8_t *buffer, size_t at)
{
    bool fine = true;
    switch (bench->way) {
    case READ:
        return pread(bench->from, buffer, PART, (off_t)at) == (ssize_t)PART;
    case PWRITE:
        pthread_mutex_lock(&bench->writing);
        for (size_t i = 0; i < PART && fine; i += WRITE)
            fine = pwrite(bench->to, buffer + i, WRITE, (off_t)(at + i)) == (ssize_t)WRITE;
        pthread_mutex_unlock(&bench->writing);
        return fine;
    case MAP:
        fine = madvise(bench->mapping + at, PART, MADV_POPULATE_WRITE) == 0;
        if (fine)
            memcpy(bench->mapping + at, buffer, PART);
        return fine;
    }
    return false;
}

static void *work(void *argument)
{
    struct bench *bench = argument;
    uint8_t *buffer = aligned_alloc(4096, PART);
    size_t at;
    if (!buffer)
        abort();
    memset(buffer, 1, PART);
    while ((at = atomic_fetch_add(&bench->next, PART)) + PART <= bench->bytes)
        if (!part(bench, buffer, at))
            atomic_store(&bench->failed, true);
    free(buffer);
    return NULL;
}

/* Seconds; 0: it cannot be done here. */
static double once(struct bench *bench, unsigned n)
{
    pthread_t threads[THREADS_MAX];
    atomic_store(&bench->next, 0);
    atomic_store(&bench->failed, false);
    bench->to = memfd_create("bench", MFD_CLOEXEC);
    if (bench->to < 0 || ftruncate(bench->to, (off_t)bench->bytes) < 0)
        return 0;
    const double began = now();
    bench->mapping = mmap(NULL, bench->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, bench->to, 0);
    if (bench->mapping == MAP_FAILED)
        return 0;
    for (unsigned i = 0; i < n; i++)
        if (pthread_create(&threads[i], NULL, work, bench) != 0)
            abort();
    for (unsigned i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
    munmap(bench->mapping, bench->bytes);
    const double took = now() - began;
    close(bench->to);
    return atomic_load(&bench->failed) ? 0 : took;
}

static double best(struct bench *bench, enum way way, unsigned n, double seconds)
{
    const double ends = now() + seconds;
    double least = 0;
    bench->way = way;
    do {
        const double took = once(bench, n);
        if (took > 0 && (least == 0 || took < least))
            least = took;
    } while (now() < ends);
    return least > 0 ? (double)bench->bytes / least / 1e9 : 0;
}

int main(int argc, char **argv)
{
    struct bench bench = {.from = argc >= 4 ? open(argv[1], O_RDONLY | O_CLOEXEC) : -1};
    const double seconds = argc >= 4 ? strtod(argv[2], NULL) : 0;
    struct stat st;
    if (bench.from < 0 || fstat(bench.from, &st) < 0) {
        fputs("usage: bench_cores FILE SECONDS THREADS...\n", stderr);
        return 2;
    }
    bench.bytes = (size_t)st.st_size / PART * PART;
    pthread_mutex_init(&bench.writing, NULL);
    const double each = seconds / (3.0 * (argc - 3));
    puts("| threads | read, GB/s | write, by turns | map, all at once |");
    puts("| ------: | ---------: | --------------: | ---------------: |");
    for (int i = 3; i < argc; i++) {
        const unsigned n = (unsigned)strtoul(argv[i], NULL, 10);
        if (n == 0 || n > THREADS_MAX)
            return 2;
        printf("| %7u | %10.2f |", n, best(&bench, READ, n, each));
        printf(" %15.2f |", best(&bench, PWRITE, n, each));
        printf(" %16.2f |\n", best(&bench, MAP, n, each));
    }
    return 0;
}
