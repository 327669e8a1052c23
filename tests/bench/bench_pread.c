/* How fast threads read a file that is in the page cache, part by part, as the daemon's workers do: first to last after
 * half a second's rest, and last to first after as much. What is slow in both columns is the place where the file lies
 * in memory, which nobody who reads it can help; what is slow at the beginning of each is the processors' waking up.
 *
 *     bench_pread FILE [THREADS [ROUNDS]]
 *
 * Times are of one thread for a mebibyte, medians of the rounds.
 */
#include <errno.h>
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

#define PIECE   ((size_t)256 << 10) /* what a worker reads at once for a GPU */
#define PLACES  192u                /* as much of it as there is staging memory */
#define REGIONS 24u
#define REST_NS 500000000
#define THREADS 64u
#define ROUNDS  64u

struct bench {
    int fd;
    char *memory;
    size_t n_pieces;
    unsigned n_threads;
    bool backward;
    uint64_t began;
    atomic_size_t next;
    uint64_t *begin_ns, *took_ns; /* of each piece */
    atomic_bool failed;
};

/* A region in one order: when it was read, counted from the beginning, and what a mebibyte took. */
struct row {
    double at_ms, mib_ms;
};

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void *reader(void *argument)
{
    struct bench *bench = argument;
    size_t i;
    while ((i = atomic_fetch_add(&bench->next, 1)) < bench->n_pieces) {
        const size_t piece = bench->backward ? bench->n_pieces - 1 - i : i;
        const uint64_t begin = now();
        if (pread(bench->fd, bench->memory + i % PLACES * PIECE, PIECE, (off_t)(piece * PIECE)) != (ssize_t)PIECE)
            atomic_store(&bench->failed, true);
        bench->begin_ns[piece] = begin - bench->began;
        bench->took_ns[piece] = now() - begin;
    }
    return NULL;
}

/* Reads it all once. Returns GB/s. */
static double run(struct bench *bench)
{
    pthread_t threads[THREADS];
    unsigned n = 0;
    (void)nanosleep(&(struct timespec){.tv_nsec = REST_NS}, NULL);
    atomic_store(&bench->next, 0);
    bench->began = now();
    while (n < bench->n_threads && pthread_create(&threads[n], NULL, reader, bench) == 0)
        n++;
    for (unsigned i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
    return (double)(bench->n_pieces * PIECE) / (double)(now() - bench->began);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *values, unsigned n)
{
    qsort(values, n, sizeof(*values), compare);
    return values[n / 2];
}

static size_t region_begin(const struct bench *bench, unsigned region)
{
    return bench->n_pieces * region / REGIONS;
}

static struct row row_of(const struct bench *bench, unsigned region)
{
    struct row row = {0};
    const size_t begin = region_begin(bench, region), end = region_begin(bench, region + 1);
    for (size_t i = begin; i < end; i++) {
        row.at_ms += (double)bench->begin_ns[i] / 1e6;
        row.mib_ms += (double)bench->took_ns[i] / 1e6;
    }
    row.at_ms /= (double)(end - begin);
    row.mib_ms /= (double)((end - begin) * PIECE) / (1 << 20);
    return row;
}

/* The rounds of one order. Returns the median of GB/s. */
static double measure(struct bench *bench, unsigned n_rounds, struct row rows[REGIONS])
{
    static double at[REGIONS][ROUNDS], mib[REGIONS][ROUNDS];
    double rates[ROUNDS];
    for (unsigned round = 0; round < n_rounds; round++) {
        rates[round] = run(bench);
        for (unsigned region = 0; region < REGIONS; region++) {
            const struct row row = row_of(bench, region);
            at[region][round] = row.at_ms;
            mib[region][round] = row.mib_ms;
        }
    }
    for (unsigned region = 0; region < REGIONS; region++)
        rows[region] = (struct row){median(at[region], n_rounds), median(mib[region], n_rounds)};
    return median(rates, n_rounds);
}

static int fail(const char *what)
{
    fprintf(stderr, "bench_pread: %s: %s\n", what, strerror(errno));
    return EXIT_FAILURE;
}

/* Into the page cache, with what is to be read into taken as well. */
static int prepare(struct bench *bench, const char *path)
{
    struct stat status;
    bench->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (bench->fd < 0 || fstat(bench->fd, &status) < 0)
        return -errno;
    bench->n_pieces = (size_t)status.st_size / PIECE;
    if (bench->n_pieces < REGIONS)
        return -(errno = EINVAL);
    bench->memory =
        mmap(NULL, PLACES * PIECE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    bench->begin_ns = calloc(bench->n_pieces, sizeof(*bench->begin_ns));
    bench->took_ns = calloc(bench->n_pieces, sizeof(*bench->took_ns));
    if (bench->memory == MAP_FAILED || !bench->begin_ns || !bench->took_ns)
        return -(errno = ENOMEM);
    (void)run(bench);
    return 0;
}

int main(int argc, char **argv)
{
    struct bench bench = {0};
    static struct row forward[REGIONS], backward[REGIONS];
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    const int threads = argc > 2 ? atoi(argv[2]) : cores < 14 ? (int)cores : 14;
    const int rounds = argc > 3 ? atoi(argv[3]) : 5;
    if (argc < 2 || threads < 1 || threads > (int)THREADS || rounds < 1 || rounds > (int)ROUNDS) {
        fprintf(stderr, "usage: %s FILE [THREADS [ROUNDS]]\n", argv[0]);
        return 2;
    }
    bench.n_threads = (unsigned)threads;
    if (prepare(&bench, argv[1]) < 0)
        return fail(argv[1]);
    const double there = measure(&bench, (unsigned)rounds, forward);
    bench.backward = true;
    const double back = measure(&bench, (unsigned)rounds, backward);
    if (atomic_load(&bench.failed))
        return fail("pread");
    printf("%s, %d threads: first to last %.1f GB/s, last to first %.1f\n", argv[1], threads, there, back);
    printf("            first to last        last to first\n");
    printf("from MiB    at ms  ms a MiB      at ms  ms a MiB\n");
    for (unsigned i = 0; i < REGIONS; i++)
        printf("%8zu  %7.1f   %7.3f    %7.1f   %7.3f\n", region_begin(&bench, i), forward[i].at_ms, forward[i].mib_ms,
               backward[i].at_ms, backward[i].mib_ms);
    return EXIT_SUCCESS;
}
