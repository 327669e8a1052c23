/* Ways to bring a file that is in the page cache to where a GPU can copy it from, one after another: which costs the
 * processors least. Each row has the rate and the processors' time for each gigabyte.
 *
 *     bench_reading FILE [BYTES]
 *
 * Reads the first BYTES of FILE, at most; default 4 GiB. The rows of `pread` differ in threads and in how much one call
 * reads, all into the same 48 MiB, which a GPU would copy from. `mmap` copies from a mapping of the file; "stream" does
 * that past the caches. "registered" copies nothing: the file's own pages are registered with the driver, and the GPU
 * copies from them. Exits with 77 if there is no device. */
#include "kernels/hip.h"
#include "tests/bench/seconds.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define STAGING ((size_t)48 << 20)
#define KIB     ((size_t)1 << 10)
#define MIB     ((size_t)1 << 20)
#define RUNS    3
#define THREADS 64u

/* How one part gets to its place. */
enum way { WAY_PREAD, WAY_MMAP, WAY_STREAM };

struct bench {
    int fd;
    size_t bytes, part;
    unsigned n_threads;
    enum way way;
    uint8_t *staging;
    const uint8_t *mapping; /* of the file; NULL: none */
    const cpu_set_t *cpus;  /* that threads may run on; NULL: all */
    atomic_size_t next;
    atomic_bool failed;
};

static double cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void print_row(const char *name, size_t bytes, double took, double cpu)
{
    printf("%-44s %7.1f %12.3f\n", name, (double)bytes / took / 1e9, cpu / ((double)bytes / 1e9));
    fflush(stdout);
}

#if defined(__x86_64__)
/* Both are aligned to 32 bytes, and n is a multiple of 128. */
__attribute__((target("avx2"))) static void stream(uint8_t *dst, const uint8_t *src, size_t n)
{
    for (size_t at = 0; at < n; at += 128) {
        const __m256i *from = (const __m256i *)(const void *)(src + at);
        __m256i *to = (__m256i *)(void *)(dst + at);
        _mm_prefetch((const char *)(src + at + 1024), _MM_HINT_NTA);
        _mm_prefetch((const char *)(src + at + 1088), _MM_HINT_NTA);
        for (int i = 0; i < 4; i++)
            _mm256_stream_si256(to + i, _mm256_load_si256(from + i));
    }
    _mm_sfence();
}

static bool can_stream(void)
{
    return __builtin_cpu_supports("avx2");
}
#else
static void stream(uint8_t *dst, const uint8_t *src, size_t n)
{
    memcpy(dst, src, n);
}

static bool can_stream(void)
{
    return false;
}
#endif

static void *reader(void *argument)
{
    struct bench *bench = argument;
    const size_t parts = bench->bytes / bench->part, places = STAGING / bench->part;
    size_t i;
    if (bench->cpus)
        (void)sched_setaffinity(0, sizeof(*bench->cpus), bench->cpus);
    while ((i = atomic_fetch_add(&bench->next, 1)) < parts) {
        uint8_t *place = bench->staging + i % places * bench->part;
        const size_t at = i * bench->part;
        if (bench->way == WAY_MMAP)
            memcpy(place, bench->mapping + at, bench->part);
        else if (bench->way == WAY_STREAM)
            stream(place, bench->mapping + at, bench->part);
        else if (pread(bench->fd, place, bench->part, (off_t)at) != (ssize_t)bench->part)
            atomic_store(&bench->failed, true);
    }
    return NULL;
}

/* The best of several runs. */
static void measure(struct bench *bench, const char *name, enum way way, unsigned n_threads, size_t part)
{
    double best = 0, cpu = 0;
    bench->way = way;
    bench->part = part;
    for (int run = 0; run < RUNS; run++) {
        pthread_t threads[THREADS];
        unsigned n = 0;
        atomic_store(&bench->next, 0);
        const double begin = seconds(), cpu_begin = cpu_seconds();
        while (n < n_threads && n < THREADS && pthread_create(&threads[n], NULL, reader, bench) == 0)
            n++;
        for (unsigned i = 0; i < n; i++)
            pthread_join(threads[i], NULL);
        const double took = seconds() - begin;
        if (best == 0 || took < best) {
            best = took;
            cpu = cpu_seconds() - cpu_begin;
        }
    }
    char text[64];
    snprintf(text, sizeof(text), "%s, %u threads, %zu KiB", name, n_threads, part / KIB);
    print_row(text, bench->bytes / part * part, best, cpu);
}

/* The processors of the first NUMA node; false if there is only one node. */
static bool first_node(cpu_set_t *ret)
{
    char text[512] = "", *at = text;
    FILE *list = access("/sys/devices/system/node/node1", F_OK) == 0
                     ? fopen("/sys/devices/system/node/node0/cpulist", "re")
                     : NULL;
    if (!list)
        return false;
    const bool read = fgets(text, sizeof(text), list) != NULL;
    fclose(list);
    CPU_ZERO(ret);
    while (read && *at >= '0' && *at <= '9') {
        unsigned long first = strtoul(at, &at, 10), last = first;
        if (*at == '-')
            last = strtoul(at + 1, &at, 10);
        for (unsigned long cpu = first; cpu <= last && cpu < CPU_SETSIZE; cpu++)
            CPU_SET(cpu, ret);
        at += *at == ',';
    }
    return CPU_COUNT(ret) > 0;
}

static void read_all_ways(struct bench *bench, unsigned cores)
{
    const unsigned most = cores < THREADS ? cores : THREADS, usual = most < 12 ? most : 12;
    for (unsigned n = 1; n < most; n *= 2)
        measure(bench, "pread", WAY_PREAD, n, 256 * KIB);
    measure(bench, "pread", WAY_PREAD, usual, 256 * KIB);
    measure(bench, "pread", WAY_PREAD, most, 256 * KIB);
    for (size_t part = 64 * KIB; part <= 4 * MIB; part *= 4)
        if (part != 256 * KIB)
            measure(bench, "pread", WAY_PREAD, usual, part);
    cpu_set_t node;
    if (first_node(&node)) {
        bench->cpus = &node;
        measure(bench, "pread, one NUMA node", WAY_PREAD, usual, 256 * KIB);
        bench->cpus = NULL;
    } else
        printf("pread, one NUMA node: there is one only\n");
    void *mapping = mmap(NULL, bench->bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, bench->fd, 0);
    if (mapping == MAP_FAILED) {
        printf("mmap: %s\n", strerror(errno));
        return;
    }
    bench->mapping = mapping;
    measure(bench, "mmap", WAY_MMAP, usual, 256 * KIB);
    if (can_stream())
        measure(bench, "mmap, stream", WAY_STREAM, usual, 256 * KIB);
    munmap(mapping, bench->bytes);
    bench->mapping = NULL;
}

static bool failed(hipError_t e, const char *what)
{
    if (e != hipSuccess)
        printf("%s: %s (%d)\n", what, hipGetErrorString(e), (int)e);
    return e != hipSuccess;
}

/* Copies all of it, 16 MiB at a time. Returns seconds. */
static double copy_all(const uint8_t *from, size_t bytes, void *memory, hipStream_t stream_)
{
    const size_t step = 16 * MIB;
    const double begin = seconds();
    hipError_t e = hipSuccess;
    for (size_t at = 0; at + step <= bytes && e == hipSuccess; at += step)
        e = hipMemcpyAsync(memory, from + at, step, hipMemcpyHostToDevice, stream_);
    if (e == hipSuccess)
        e = hipStreamSynchronize(stream_);
    return failed(e, "copying") ? 0 : seconds() - begin;
}

/* The page cache's own pages. Only a read-only registration of a mapping that is not written to leaves them as they
 * are; HIP has no flag for that. */
static void read_registered(const struct bench *bench, const char *name, size_t window, void *memory,
                            hipStream_t stream_)
{
#if defined(ROCMFORGE_CUDA)
    const unsigned flags = cudaHostRegisterPortable | cudaHostRegisterReadOnly;
#else
    const unsigned flags = hipHostRegisterPortable;
#endif
    void *mapping = mmap(NULL, bench->bytes, PROT_READ, MAP_SHARED, bench->fd, 0);
    if (mapping == MAP_FAILED) {
        printf("%s: %s\n", name, strerror(errno));
        return;
    }
    double registering = 0, copying = 0, again = 0, cpu = 0;
    size_t done = 0;
    bool fine = true;
    for (; fine && done + window <= bench->bytes; done += window) {
        uint8_t *at = (uint8_t *)mapping + done;
        const double begin = seconds(), cpu_begin = cpu_seconds();
        if (failed(hipHostRegister(at, window, flags), name))
            break;
        registering += seconds() - begin;
        copying += copy_all(at, window, memory, stream_);
        again += copy_all(at, window, memory, stream_);
        cpu += cpu_seconds() - cpu_begin;
        const double end = seconds();
        fine = !failed(hipHostUnregister(at), name);
        registering += seconds() - end;
    }
    munmap(mapping, bench->bytes);
    if (done == 0)
        return;
    char text[96];
    print_row(name, done, registering + copying, cpu / 2);
    snprintf(text, sizeof(text), "  its copies alone; registering took %.2f s", registering);
    print_row(text, done, again > 0 ? again : copying, 0);
}

int main(int argc, char **argv)
{
    struct bench bench = {0};
    struct stat status;
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    size_t wanted = argc > 2 ? strtoull(argv[2], NULL, 10) : (size_t)4 << 30;
    if (argc < 2 || wanted < STAGING) {
        fprintf(stderr, "usage: bench_reading FILE [BYTES]\n");
        return 2;
    }
    int devices = 0;
    if (hipGetDeviceCount(&devices) != hipSuccess || devices == 0)
        return 77;
    bench.fd = open(argv[1], O_RDONLY | O_CLOEXEC);
    if (bench.fd < 0 || fstat(bench.fd, &status) < 0) {
        fprintf(stderr, "bench_reading: %s: %s\n", argv[1], strerror(errno));
        return 1;
    }
    bench.bytes = ((size_t)status.st_size < wanted ? (size_t)status.st_size : wanted) / (16 * MIB) * (16 * MIB);
    void *memory = NULL, *pinned = NULL;
    hipStream_t stream_;
    if (bench.bytes == 0 || failed(hipSetDevice(0), "device") || failed(hipMalloc(&memory, 16 * MIB), "memory") ||
        failed(hipHostMalloc(&pinned, STAGING, hipHostMallocDefault), "pinned memory") ||
        failed(hipStreamCreateWithFlags(&stream_, hipStreamNonBlocking), "stream"))
        return 1;
    bench.staging = pinned;
    memset(pinned, 1, STAGING);
    printf("%s: the first %.2f GB, %ld processors\n", argv[1], (double)bench.bytes / 1e9, cores);
    printf("%-44s %7s %12s\n", "", "GB/s", "CPU s a GB");
    read_all_ways(&bench, (unsigned)cores);
    read_registered(&bench, "registered, the whole file once", bench.bytes, memory, stream_);
    read_registered(&bench, "registered, windows of 256 MiB", 256 * MIB, memory, stream_);
    const double link = copy_all(pinned, STAGING, memory, stream_) + copy_all(pinned, STAGING, memory, stream_);
    print_row("pinned copies, for comparison", 2 * STAGING, link, 0);
    printf("udmabuf: %s\n", access("/dev/udmabuf", F_OK) == 0
                                ? "there, but it takes memory files only, not the pages of a file"
                                : "not there");
    return atomic_load(&bench.failed) ? 1 : 0;
}
