/* How fast each type decodes to each form: GB/s of output on one core, beside memcpy of as many bytes and beside the
 * plain decoder compiled with -O3 -march=native, all in the same rounds. Medians; only ratios within a run mean much.
 *
 * "met" says yes for 0.7 of memcpy's rate or 4 times the plain decoder's, and for the types that most models are made
 * of for 0.7 of memcpy's alone. memcpy reads a byte for each that it writes, a decoder that narrows up to four. "read"
 * is the output that reading alone would allow: as many bytes of input, only summed up. Where that is less than 0.7 of
 * memcpy's rate, "met" says "read".
 *
 * The last columns say how many times faster threads are together than one of them that does the parts of all, and
 * beside it memcpy's figure, and that of writing past the caches and nothing else. The last "met" says yes for 1.9, and
 * "copy" for less that is no less than what memcpy comes to.
 *
 * usage: bench_dequant [-t TYPE] [-f FORM] [-m MIB] [-r ROUNDS] [-j THREADS] [-c MIB] [-i ISA] [-x]
 *   -m  bytes of output (default 96 MiB: larger than the caches)
 *   -c  in calls of 256 KiB of input, one behind the other into a buffer of this many MiB, and again, as the daemon's
 *       workers decode (default: one call for each thread)
 *   -j  threads for the last columns, each on a processor of its own (default 2)
 *   -i  instruction set, if not the best that runs here: avx512-bf16, avx512, avx2, baseline, neon
 *   -x  random bytes throughout; else numbers have the size that weights have, without infinities and NaN
 *
 * The plain decoder is kernels/dequant_reference.c compiled again with dequant_reference named bench_scalar. */
#include "kernels/dequant_isa.h"

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

extern dequant_table bench_scalar;
extern dequant_fn bench_read; /* bench_read.c: sums up the input */

/* CALL_BYTES is what daemon/worker.h has as WORKER_SCRATCH. */
enum { MAX_ROUNDS = 101, MAX_THREADS = 64, MAX_ELEMENTS = 256, CALL_BYTES = 256 << 10, MAX_TRIES = 10000 };

static const char *only_type, *only_form;
static const struct dequant_isa *isa;
static size_t output_bytes = (size_t)96 << 20;
static size_t buffer_bytes; /* 0: one call */
static int rounds = 7;
static int threads = 2;
static bool any_bytes;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts them. */
static double median(double *values)
{
    qsort(values, (size_t)rounds, sizeof *values, compare);
    return values[rounds / 2];
}

/* What a decoder is compared with, in its shape; a block is a byte. */

static uint64_t copy_bytes(void *restrict dst, const void *restrict src, size_t bytes)
{
    memcpy(dst, src, bytes);
    return 0;
}

static uint64_t fill_bytes(void *restrict dst, const void *restrict src, size_t bytes)
{
    (void)src;
#if defined(__x86_64__)
    for (size_t i = 0; i < bytes / 64 * 64; i += 16)
        _mm_stream_si128((__m128i *)((uint8_t *)dst + i), _mm_set1_epi8(1));
    _mm_sfence();
#else
    memset(dst, 1, bytes);
#endif
    return 0;
}

/* The work of a round: a part for each thread, side by side in both memories. */
struct job {
    dequant_fn *fn;
    uint8_t *dst;
    const uint8_t *src;
    size_t blocks, src_bytes, dst_bytes; /* of a block */
    size_t call, buffer;                 /* blocks, where there is a buffer */
};

static void part_run(const struct job *job, int index)
{
    const size_t share = job->blocks / (size_t)threads;
    uint8_t *dst = job->dst + (size_t)index * share * job->dst_bytes;
    const uint8_t *src = job->src + (size_t)index * share * job->src_bytes;
    if (!buffer_bytes) {
        job->fn(dst, src, share);
        return;
    }
    for (size_t done = 0, at = 0, n; done < share; done += n, at = (at + n) % job->buffer) {
        n = share - done < job->call ? share - done : job->call;
        n = job->buffer - at < n ? job->buffer - at : n;
        job->fn(dst + at * job->dst_bytes, src + done * job->src_bytes, n);
    }
}

/* The threads, which live as long as the program. In a round, the first `active` share the parts. */
static struct {
    pthread_barrier_t begin, end;
    atomic_int ready;
    const struct job *job;
    int active;
    double started[MAX_THREADS], ended[MAX_THREADS];
} crew;

static void *crew_thread(void *arg)
{
    const int index = (int)(intptr_t)arg;
    for (;;) {
        pthread_barrier_wait(&crew.begin);
        if (index < crew.active) {
            /* Waking up takes its time, which is not the decoder's. */
            atomic_fetch_add(&crew.ready, 1);
            while (atomic_load(&crew.ready) < crew.active)
                ;
            crew.started[index] = now();
            for (int part = index; part < threads; part += crew.active)
                part_run(crew.job, part);
            crew.ended[index] = now();
        }
        pthread_barrier_wait(&crew.end);
    }
    return NULL;
}

/* Fails where fewer processors than threads may be used. */
static bool crew_start(void)
{
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < threads)
        return false;
    pthread_barrier_init(&crew.begin, NULL, (unsigned)threads + 1);
    pthread_barrier_init(&crew.end, NULL, (unsigned)threads + 1);
    for (int i = 0, cpu = 0; i < threads; i++, cpu++) {
        pthread_t thread;
        pthread_attr_t attr;
        cpu_set_t one;
        while (!CPU_ISSET(cpu, &allowed))
            cpu++;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        pthread_attr_init(&attr);
        if (pthread_attr_setaffinity_np(&attr, sizeof one, &one) != 0 ||
            pthread_create(&thread, &attr, crew_thread, (void *)(intptr_t)i) != 0)
            abort();
        pthread_attr_destroy(&attr);
    }
    return true;
}

/* Seconds from when the first begins until the last is done. */
static double job_time(const struct job *job, int active)
{
    crew.job = job;
    crew.active = active;
    atomic_store(&crew.ready, 0);
    pthread_barrier_wait(&crew.begin);
    pthread_barrier_wait(&crew.end);
    double first = crew.started[0], last = crew.ended[0];
    for (int i = 1; i < active; i++) {
        first = fmin(first, crew.started[i]);
        last = fmax(last, crew.ended[i]);
    }
    return last - first;
}

/* NULL if it is not known, or does not run here. */
static const struct dequant_isa *isa_find(const char *name)
{
    for (size_t i = 0; i < dequant_isa_count; i++)
        if (strcmp(dequant_isas[i].name, name) == 0 && dequant_isas[i].runs_here())
            return &dequant_isas[i];
    return NULL;
}

static dequant_fn *decoder(uint32_t id, enum form form)
{
    return (*isa->table)[id][form] ? (*isa->table)[id][form] : dequant_find_reference(id, form);
}

static void *allocate(size_t size)
{
    void *p = aligned_alloc(2 << 20, (size + (2 << 20) - 1) / (2 << 20) * (2 << 20));
    if (!p)
        abort();
    return p;
}

static void random_fill(uint8_t *p, size_t size)
{
    static uint64_t x = 1;
    for (size_t i = 0; i < size; i += 8) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        const uint64_t bytes = x ^ x >> 29;
        memcpy(p + i, &bytes, size - i < 8 ? size - i : 8);
    }
}

/* Whether a block of random bytes could be weights. */
static bool believable(const struct tensor_type *type, const uint8_t *block)
{
    float y[MAX_ELEMENTS], most = 0;
    dequant_find_reference(type->id, FORM_F32)(y, block, 1);
    for (size_t i = 0; i < type->block_elements; i++) {
        if (!(fabsf(y[i]) < 16))
            return false;
        most = fmaxf(most, fabsf(y[i]));
    }
    return most > 0x1p-10f;
}

/* Some thousand blocks that are found by trying, and these repeated. */
static void fill(const struct tensor_type *type, uint8_t *src, size_t blocks)
{
    const size_t size = type->block_bytes;
    const size_t pool = !any_bytes && blocks > 4096 ? 4096 : blocks;
    random_fill(src, pool * size);
    for (size_t i = 0; i < pool && !any_bytes; i++) {
        uint8_t *block = src + i * size;
        switch (type->id) {
        case TYPE_ID_i8:
        case TYPE_ID_i16:
            break;
        case TYPE_ID_i32: /* 16 bits with a sign */
        case TYPE_ID_i64:
            memset(block + 2, (int8_t)block[1] < 0 ? 0xff : 0, size - 2);
            break;
        default:
            for (unsigned tries = 0; tries < MAX_TRIES && !believable(type, block); tries++)
                random_fill(block, size);
        }
    }
    for (size_t i = pool; i < blocks; i += pool)
        memcpy(src + i * size, src, (blocks - i < pool ? blocks - i : pool) * size);
}

/* Q4_0, Q8_0, Q4_K, Q6_K, F16, BF16. */
static bool is_hot(uint32_t id)
{
    static const uint32_t hot[] = {TYPE_ID_q4_0, TYPE_ID_q8_0, TYPE_ID_q4_k, TYPE_ID_q6_k, TYPE_ID_f16, TYPE_ID_bf16};
    for (size_t i = 0; i < sizeof hot / sizeof *hot; i++)
        if (hot[i] == id)
            return true;
    return false;
}

/* All are GB/s of output. */
static const char *met(uint32_t id, double rate, double copied, double plain, double read)
{
    if (rate >= 0.7 * copied || (rate >= 4 * plain && !is_hot(id)))
        return "yes";
    return read < 0.7 * copied ? "read" : "NO";
}

static const char *met_together(double times, double copy_times)
{
    return times >= 1.9 ? "yes" : times >= copy_times ? "copy" : "NO";
}

/* Seconds, round by round: `one` thread, and all `together`. */
struct timing {
    struct job job;
    double one[MAX_ROUNDS], together[MAX_ROUNDS];
};

static void timing_round(struct timing *timing, int round)
{
    timing->one[round] = job_time(&timing->job, 1);
    timing->together[round] = threads > 1 ? job_time(&timing->job, threads) : timing->one[round];
}

/* How many times faster, in the median of rounds. */
static double timing_times(const struct timing *timing)
{
    double times[MAX_ROUNDS];
    for (int i = 0; i < rounds; i++)
        times[i] = timing->one[i] / timing->together[i];
    return median(times);
}

static void bench(const struct tensor_type *type, enum form form, uint8_t *dst, uint8_t *src)
{
    const size_t out = type->block_elements * form_element_bytes(form), in = type->block_bytes;
    const size_t blocks = output_bytes / out, call = CALL_BYTES / in, buffer = buffer_bytes / out;
    struct timing fast = {.job = {decoder(type->id, form), dst, src, blocks, in, out, call, buffer}};
    struct timing copy = {.job = {copy_bytes, dst, src, blocks * out, 1, 1, call * out, buffer * out}};
    struct timing write = {.job = {fill_bytes, dst, src, blocks * out, 0, 1, call * out, buffer * out}};
    struct job plain = fast.job;
    const struct job read = {bench_read, dst, src, blocks * in, 1, 0, call * in, buffer * in};
    double t_plain[MAX_ROUNDS], t_read[MAX_ROUNDS];
    plain.fn = bench_scalar[type->id][form];
    fill(type, src, blocks);
    for (int i = -1; i < rounds; i++) { /* round -1 warms up, and is overwritten */
        const int k = i < 0 ? 0 : i;
        timing_round(&copy, k);
        timing_round(&fast, k);
        timing_round(&write, k);
        t_plain[k] = job_time(&plain, 1);
        t_read[k] = job_time(&read, 1);
    }
    const double times = timing_times(&fast), copy_times = timing_times(&copy);
    const double gb = (double)(blocks * out) * 1e-9;
    const double rate = gb / median(fast.one), copied = gb / median(copy.one);
    const double plain_rate = gb / median(t_plain), read_rate = gb / median(t_read);
    printf("%-8s %-5s %7.2f %7.2f %6.2f %7.2f %6.1f %7.2f  %-5s", type->name, form_name(form), rate, copied,
           rate / copied, plain_rate, rate / plain_rate, read_rate, met(type->id, rate, copied, plain_rate, read_rate));
    if (threads > 1)
        printf(" %6.2f %7.2f %6.2f  %s", times, copy_times, timing_times(&write), met_together(times, copy_times));
    printf("\n");
    fflush(stdout);
}

static void bench_all(uint8_t *dst, uint8_t *src)
{
    printf("instruction set: %s; output: %zu MiB in ", isa->name, output_bytes >> 20);
    if (buffer_bytes)
        printf("calls of %d KiB of input, into %zu MiB", CALL_BYTES >> 10, buffer_bytes >> 20);
    else
        printf("%d call%s", threads, threads > 1 ? "s" : "");
    printf("; GB/s of output, medians of %d\n", rounds);
    printf("%-8s %-5s %7s %7s %6s %7s %6s %7s  %-5s", "type", "form", "decode", "memcpy", "ratio", "scalar", "ratio",
           "read", "met");
    if (threads > 1)
        printf(" %d thr. %7s %6s  met", threads, "memcpy", "write");
    printf("\n");
    for (uint32_t id = 0; id < DEQUANT_TYPES; id++) {
        const struct tensor_type *type = tensor_type_find(id);
        for (enum form form = FORM_F32; form <= FORM_BF16; form++) {
            if (!decoder(id, form) || (only_type && strcmp(only_type, type->name) != 0) ||
                (only_form && strcmp(only_form, form_name(form)) != 0))
                continue;
            bench(type, form, dst, src);
        }
    }
}

int main(int argc, char **argv)
{
    isa = isa_find(dequant_isa());
    for (int c; (c = getopt(argc, argv, "t:f:m:r:j:c:i:x")) != -1;) {
        switch (c) {
        case 't':
            only_type = optarg;
            break;
        case 'f':
            only_form = optarg;
            break;
        case 'm':
            output_bytes = (size_t)atol(optarg) << 20;
            break;
        case 'r':
            rounds = atoi(optarg);
            break;
        case 'j':
            threads = atoi(optarg);
            break;
        case 'c':
            buffer_bytes = (size_t)atol(optarg) << 20;
            break;
        case 'i':
            isa = isa_find(optarg);
            if (!isa)
                return 77;
            break;
        case 'x':
            any_bytes = true;
            break;
        default:
            return 2;
        }
    }
    if (rounds < 1 || rounds > MAX_ROUNDS || threads < 1 || threads > MAX_THREADS || output_bytes == 0 ||
        buffer_bytes > output_bytes / (size_t)threads)
        return 2;
    if (!crew_start()) {
        printf("fewer than %d processors may be used here: one thread only\n", threads);
        threads = 1;
        if (!crew_start())
            return 1;
    }
    /* The largest input is 8 bytes an element, for 2 bytes of output. */
    uint8_t *dst = allocate(output_bytes), *src = allocate(4 * output_bytes);
    memset(dst, 1, output_bytes);
    memset(src, 1, 4 * output_bytes); /* memcpy may read more than the blocks fill */
    bench_all(dst, src);
    free(dst);
    free(src);
    return 0;
}
