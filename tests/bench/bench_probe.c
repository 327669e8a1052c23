/* The two rates that bound a load, each measured in a moment, again and again: processors that read files which are in
 * the page cache, and plain pinned copies to the first GPU.
 *
 *     bench_probe THREADS FILE...
 *
 * Takes a command from each line of its input and answers with a line:
 *
 *     read N BYTES    THREADS threads read so much of the Nth file (from 0), each time the part behind the last one
 *     link BYTES      copies so much, 16 MiB at a time, one copy after another
 *
 * The answer is the number of bytes a second. First it says that it is ready. Exits with 77 if there is no device. */

#include "tests/bench/hip_check.h"
#include "tests/bench/seconds.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE   ((size_t)256 << 10) /* what a worker of the daemon reads at once for a GPU */
#define PLACES  192u                /* as much of it as the daemon has staging memory */
#define COPY    ((size_t)16 << 20)  /* one slot */
#define THREADS 64u
#define FILES   16u

struct file {
    int fd;
    uint64_t pieces; /* whole ones in the file */
    uint64_t next;   /* the next piece to read */
};

struct probe {
    unsigned n_threads, n_files;
    struct file files[FILES];
    uint8_t *pinned; /* PLACES pieces */
    void *memory;    /* COPY bytes of the device */
    hipStream_t stream;
    /* Of the reading that is under way: */
    struct file *file;
    uint64_t first, n_pieces;
    atomic_uint_least64_t taken;
    atomic_bool failed;
};

static void *reader(void *argument)
{
    struct probe *probe = argument;
    uint64_t i;
    while ((i = atomic_fetch_add(&probe->taken, 1)) < probe->n_pieces) {
        const uint64_t piece = (probe->first + i) % probe->file->pieces;
        if (pread(probe->file->fd, probe->pinned + i % PLACES * PIECE, PIECE, (off_t)(piece * PIECE)) != (ssize_t)PIECE)
            atomic_store(&probe->failed, true);
    }
    return NULL;
}

static double probe_read(struct probe *probe, unsigned index, uint64_t bytes)
{
    pthread_t threads[THREADS];
    unsigned n = 0;
    probe->file = &probe->files[index];
    probe->first = probe->file->next;
    probe->n_pieces = bytes / PIECE;
    probe->file->next = (probe->first + probe->n_pieces) % probe->file->pieces;
    atomic_store(&probe->taken, 0);
    const double begin = seconds();
    while (n < probe->n_threads && pthread_create(&threads[n], NULL, reader, probe) == 0)
        n++;
    for (unsigned i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
    return n > 0 && !atomic_load(&probe->failed) ? (double)(probe->n_pieces * PIECE) / (seconds() - begin) : 0;
}

static double probe_link(struct probe *probe, uint64_t bytes)
{
    const double begin = seconds();
    for (uint64_t done = 0; done < bytes; done += COPY)
        CHECK(hipMemcpyAsync(probe->memory, probe->pinned + done % (PLACES * PIECE), COPY, hipMemcpyHostToDevice,
                             probe->stream));
    CHECK(hipStreamSynchronize(probe->stream));
    return (double)((bytes + COPY - 1) / COPY * COPY) / (seconds() - begin);
}

static int open_files(struct probe *probe, char **paths, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        struct stat status;
        struct file *file = &probe->files[probe->n_files++];
        file->fd = open(paths[i], O_RDONLY | O_CLOEXEC);
        if (file->fd < 0 || fstat(file->fd, &status) < 0 || status.st_size < (off_t)PIECE) {
            fprintf(stderr, "bench_probe: %s: %s\n", paths[i], errno ? strerror(errno) : "too short");
            return -1;
        }
        file->pieces = (uint64_t)status.st_size / PIECE;
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct probe probe = {.n_threads = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 0};
    if (argc < 3 || (unsigned)argc - 2 > FILES || probe.n_threads < 1 || probe.n_threads > THREADS) {
        fprintf(stderr, "usage: bench_probe THREADS FILE...\n");
        return 2;
    }
    int devices = 0;
    const hipError_t e = hipGetDeviceCount(&devices);
    if (e != hipSuccess || devices == 0) {
        fprintf(stderr, "bench_probe: no device: %s\n", hipGetErrorString(e));
        return 77;
    }
    if (open_files(&probe, argv + 2, (unsigned)argc - 2) < 0)
        return 1;
    CHECK(hipSetDevice(0));
    CHECK(hipStreamCreateWithFlags(&probe.stream, hipStreamNonBlocking));
    CHECK(hipHostMalloc((void **)&probe.pinned, PLACES * PIECE, hipHostMallocDefault));
    CHECK(hipMalloc(&probe.memory, COPY));
    memset(probe.pinned, 1, PLACES * PIECE);
    printf("ready\n");
    fflush(stdout);

    char line[64];
    while (fgets(line, sizeof(line), stdin)) {
        unsigned index;
        unsigned long long bytes;
        if (sscanf(line, "read %u %llu", &index, &bytes) == 2 && index < probe.n_files)
            printf("%.0f\n", probe_read(&probe, index, bytes));
        else if (sscanf(line, "link %llu", &bytes) == 1)
            printf("%.0f\n", probe_link(&probe, bytes));
        else
            printf("0\n");
        fflush(stdout);
    }
    return 0;
}
