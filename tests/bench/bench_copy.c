/* How fast this machine copies memory: the ceiling for what saves models in host memory.
 *
 *   bench_copy BYTES THREADS
 *
 * Each thread copies a source of 16 MiB, which was written before, again and again. "fresh": to memory that the kernel
 * has to provide, in huge pages where it can; "warm": to the same memory once more. Prints GB/s as JSON, and the part
 * of `fresh` that lies in huge pages. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define SOURCE ((size_t)16 << 20)

struct share {
    pthread_t thread;
    uint8_t *dst;
    size_t bytes;
    uint8_t *src;
};

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void *copy(void *argument)
{
    const struct share *share = argument;
    for (size_t at = 0; at < share->bytes; at += SOURCE)
        memcpy(share->dst + at, share->src, share->bytes - at < SOURCE ? share->bytes - at : SOURCE);
    return NULL;
}

static double run(struct share *shares, unsigned n)
{
    const double began = now();
    for (unsigned i = 0; i < n; i++)
        if (pthread_create(&shares[i].thread, NULL, copy, &shares[i]) != 0)
            abort();
    for (unsigned i = 0; i < n; i++)
        pthread_join(shares[i].thread, NULL);
    return now() - began;
}

/* Bytes of this process in huge pages. */
static double huge_bytes(void)
{
    FILE *file = fopen("/proc/self/smaps_rollup", "re");
    unsigned long long kib = 0;
    char line[256];
    while (file && fgets(line, sizeof(line), file))
        if (sscanf(line, "AnonHugePages: %llu", &kib) == 1)
            break;
    if (file)
        fclose(file);
    return (double)kib * 1024;
}

int main(int argc, char **argv)
{
    const size_t bytes = argc == 3 ? strtoull(argv[1], NULL, 10) : 0;
    const unsigned n = argc == 3 ? (unsigned)strtoul(argv[2], NULL, 10) : 0;
    if (bytes == 0 || n == 0) {
        fputs("usage: bench_copy BYTES THREADS\n", stderr);
        return 2;
    }
    struct share *shares = calloc(n, sizeof(*shares));
    uint8_t *dst = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!shares || dst == MAP_FAILED)
        return 1;
    (void)madvise(dst, bytes, MADV_HUGEPAGE);
    const size_t each = (bytes / n + SOURCE - 1) / SOURCE * SOURCE;
    for (unsigned i = 0; i < n; i++) {
        const size_t begin = each * i < bytes ? each * i : bytes;
        shares[i] = (struct share){.dst = dst + begin, .bytes = bytes - begin < each ? bytes - begin : each};
        shares[i].src = malloc(SOURCE);
        if (!shares[i].src)
            return 1;
        memset(shares[i].src, (int)i + 1, SOURCE);
    }
    const double fresh = run(shares, n), huge = huge_bytes(), warm = run(shares, n);
    printf("{\"fresh\": %.3f, \"warm\": %.3f, \"huge\": %.2f}\n", (double)bytes / fresh / 1e9,
           (double)bytes / warm / 1e9, huge < (double)bytes ? huge / (double)bytes : 1.0);
    return 0;
}
