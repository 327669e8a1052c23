/* How fast each type decodes to each form: GB/s of output on one core, beside memcpy of as many bytes and beside the
 * plain decoder compiled with -O3 -march=native, all in the same rounds. Medians; only ratios within a run mean much.
 *
 * "met" says yes for 0.7 of memcpy's rate or 4 times the plain decoder's, and for the types that most models are made
 * of for 0.7 of memcpy's alone. memcpy reads as much as it writes; a decoder that narrows reads up to four times as
 * much. "moved" therefore compares bytes read and written; where only that is 0.7 or more, "met" says "moved".
 *
 * usage: bench_dequant [-t TYPE] [-f FORM] [-m MIB] [-r ROUNDS] [-j THREADS] [-c MIB] [-i ISA] [-x]
 *   -m  bytes of output (default 96 MiB: larger than the caches)
 *   -c  decode in calls of this many MiB, all into the same buffer, as a loader does (default: one call)
 *   -j  threads for the last column, which says how many times faster they are together (default 2)
 *   -i  instruction set, if not the best that runs here: avx512-bf16, avx512, avx2, baseline, neon
 *   -x  random bytes throughout; else scales, and numbers of plain float types, are of the size that weights have,
 *       without infinities and NaN, which make overflows that have to be counted
 *
 * The plain decoder is kernels/dequant_reference.c compiled again with dequant_reference named bench_scalar. */
#include "kernels/dequant_isa.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

extern dequant_table bench_scalar;

enum { MAX_ROUNDS = 101, MAX_THREADS = 64 };

static const char *only_type, *only_form;
static const struct dequant_isa *isa;
static size_t output_bytes = (size_t)96 << 20;
static size_t call_bytes;
static int rounds = 7;
static int threads = 2;
static bool any_bytes;

/* Time that this thread has had a processor for, so that other work on the machine counts less. */
static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, compare);
    return values[count / 2];
}

struct job {
    dequant_fn *fn; /* NULL: memcpy */
    uint8_t *dst;
    const uint8_t *src;
    size_t blocks, block_bytes, block_output;
};

static void job_run(const struct job *job)
{
    size_t step = job->blocks;
    if (call_bytes && call_bytes / job->block_output < step)
        step = call_bytes / job->block_output;
    for (size_t at = 0; at < job->blocks; at += step) {
        const size_t n = job->blocks - at < step ? job->blocks - at : step;
        /* A step that is not the whole writes to the same place again. */
        if (job->fn)
            job->fn(job->dst, job->src + at * job->block_bytes, n);
        else
            memcpy(job->dst, job->src + at * job->block_output, n * job->block_output);
    }
}

static double job_time(const struct job *job)
{
    const double start = now();
    job_run(job);
    return now() - start;
}

struct part {
    struct job job;
    pthread_barrier_t *start;
    double took;
};

static void *part_thread(void *arg)
{
    struct part *part = arg;
    pthread_barrier_wait(part->start);
    part->took = job_time(&part->job);
    return NULL;
}

/* The same job, cut into as many parts as there are threads; the time of the slowest. */
static double job_time_threads(const struct job *whole)
{
    struct part parts[MAX_THREADS];
    pthread_t ids[MAX_THREADS];
    pthread_barrier_t start;
    const size_t share = whole->blocks / (size_t)threads;
    double slowest = 0;
    pthread_barrier_init(&start, NULL, (unsigned)threads);
    for (int i = 0; i < threads; i++) {
        const size_t at = share * (size_t)i;
        parts[i].job = *whole;
        parts[i].job.blocks = i == threads - 1 ? whole->blocks - at : share;
        parts[i].job.src += at * whole->block_bytes;
        parts[i].job.dst += at * whole->block_output;
        parts[i].start = &start;
        if (pthread_create(&ids[i], NULL, part_thread, &parts[i]) != 0)
            abort();
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
        if (parts[i].took > slowest)
            slowest = parts[i].took;
    }
    pthread_barrier_destroy(&start);
    return slowest;
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

/* Where a block has f16 numbers: its scales, or the elements of a plain type; plus 1, 0 is none. */
static const int16_t f16_fields[DEQUANT_TYPES][2] = {
    [1] = {1, 0},    [2] = {1, 0},    [3] = {1, 3},   [6] = {1, 0},  [7] = {1, 3},    [8] = {1, 0},
    [10] = {81, 83}, [11] = {109, 0}, [12] = {1, 3},  [13] = {1, 3}, [14] = {209, 0}, [16] = {1, 0},
    [17] = {1, 0},   [18] = {1, 0},   [19] = {1, 0},  [20] = {1, 0}, [21] = {1, 0},   [22] = {1, 0},
    [23] = {1, 0},   [34] = {53, 0},  [35] = {65, 0}, [41] = {1, 0}, [42] = {1, 0},
};

/* Fills blocks with random bytes, and gives scales a sign and a value between 2^-8 and 2^-6. */
static void fill(const struct tensor_type *type, uint8_t *src, size_t blocks)
{
    static uint64_t x = 1;
    const size_t size = blocks * type->block_bytes;
    for (size_t i = 0; i < size; i += 8) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        const uint64_t bytes = x ^ x >> 29;
        memcpy(src + i, &bytes, size - i < 8 ? size - i : 8);
    }
    if (any_bytes)
        return;
    for (uint8_t *b = src; b < src + size; b += type->block_bytes) {
        for (int k = 0; k < 2; k++) {
            uint8_t *p = b + f16_fields[type->id][k] - 1;
            if (p < b)
                continue;
            p[1] = (uint8_t)((p[1] & 0x87) | 0x18 | (p[1] & 0x20) >> 3);
        }
        switch (type->id) {
        case 0: /* f32, f64 and bf16: the exponent's upper bits */
        case 30:
            b[type->block_bytes - 1] = (uint8_t)((b[type->block_bytes - 1] & 0x80) | 0x3b);
            break;
        case 28:
            b[7] = (uint8_t)((b[7] & 0x80) | 0x3f);
            b[6] = (uint8_t)((b[6] & 0x0f) | 0x80);
            break;
        case 26: /* i32, i64: 16 bits with a sign */
        case 27:
            memset(b + 2, (int8_t)b[1] < 0 ? 0xff : 0, type->block_bytes - 2);
            break;
        case 29: /* iq1_m: the upper nibble of the last scale word */
            b[55] = (uint8_t)((b[55] & 0x8f) | 0x10);
            break;
        case 39: /* mxfp4 */
            b[0] = (uint8_t)(0x78 | (b[0] & 3));
            break;
        default:
            break;
        }
    }
}

/* Q4_0, Q8_0, Q4_K, Q6_K, F16, BF16. */
static bool is_hot(const struct tensor_type *type)
{
    static const uint32_t hot[] = {2, 8, 12, 14, 1, 30};
    for (size_t i = 0; i < sizeof hot / sizeof *hot; i++)
        if (hot[i] == type->id)
            return true;
    return false;
}

static const char *met(const struct tensor_type *type, double of_copy, double of_moved, double of_plain)
{
    if (of_copy >= 0.7 || (of_plain >= 4 && !is_hot(type)))
        return "yes";
    return of_moved >= 0.7 ? "moved" : "NO";
}

static void bench(const struct tensor_type *type, enum form form, uint8_t *dst, uint8_t *src)
{
    const size_t block_output = type->block_elements * form_element_bytes(form);
    struct job fast = {decoder(type->id, form), dst, src, output_bytes / block_output, type->block_bytes, block_output};
    struct job scalar = fast, copy = fast;
    fill(type, src, fast.blocks);
    scalar.fn = bench_scalar[type->id][form];
    copy.fn = NULL;
    double t_fast[MAX_ROUNDS], t_scalar[MAX_ROUNDS], t_copy[MAX_ROUNDS], t_threads[MAX_ROUNDS];
    for (int i = -1; i < rounds; i++) { /* round -1 warms up, and is overwritten */
        const int k = i < 0 ? 0 : i;
        t_copy[k] = job_time(&copy);
        t_fast[k] = job_time(&fast);
        t_scalar[k] = job_time(&scalar);
        t_threads[k] = job_time_threads(&fast);
    }
    const double gb = (double)(fast.blocks * block_output) * 1e-9;
    const double rate = gb / median(t_fast, rounds), copied = gb / median(t_copy, rounds);
    const double plain = gb / median(t_scalar, rounds), many = gb / median(t_threads, rounds);
    const double of_moved = rate / copied * (double)(type->block_bytes + block_output) / (2.0 * (double)block_output);
    printf("%-8s %-5s %8.2f %8.2f %7.2f %7.2f %8.2f %7.1f  %-5s %7.2f\n", type->name, form_name(form), rate, copied,
           rate / copied, of_moved, plain, rate / plain, met(type, rate / copied, of_moved, rate / plain), many / rate);
    fflush(stdout);
}

/* How many times faster memcpy is with all threads: what memory, and not a decoder, allows. */
static double bench_copy(uint8_t *dst, const uint8_t *src)
{
    const struct job copy = {NULL, dst, src, output_bytes / 256, 256, 256};
    double t_one[MAX_ROUNDS], t_threads[MAX_ROUNDS];
    for (int i = -1; i < rounds; i++) {
        const int k = i < 0 ? 0 : i;
        t_one[k] = job_time(&copy);
        t_threads[k] = job_time_threads(&copy);
    }
    return median(t_one, rounds) / median(t_threads, rounds);
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
            call_bytes = (size_t)atol(optarg) << 20;
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
    if (rounds < 1 || rounds > MAX_ROUNDS || threads < 1 || threads > MAX_THREADS || output_bytes == 0)
        return 2;
    /* The largest input is 8 bytes an element, for 2 bytes of output. */
    uint8_t *dst = allocate(output_bytes), *src = allocate(4 * output_bytes);
    memset(dst, 1, output_bytes);
    memset(src, 1, 4 * output_bytes); /* memcpy may read more than the blocks fill */
    printf("instruction set: %s; output: %zu MiB; one core, GB/s of output, medians of %d\n", isa->name,
           output_bytes >> 20, rounds);
    printf("memcpy with %d threads: %.2f times one\n", threads, bench_copy(dst, src));
    printf("%-8s %-5s %8s %8s %7s %7s %8s %7s  %-5s %4d thr.\n", "type", "form", "decode", "memcpy", "ratio", "moved",
           "scalar", "ratio", "met", threads);
    for (uint32_t id = 0; id < DEQUANT_TYPES; id++) {
        const struct tensor_type *type = tensor_type_find(id);
        for (enum form form = FORM_F32; form <= FORM_BF16; form++) {
            if (!decoder(id, form) || (only_type && strcmp(only_type, type->name) != 0) ||
                (only_form && strcmp(only_form, form_name(form)) != 0))
                continue;
            bench(type, form, dst, src);
        }
    }
    free(dst);
    free(src);
    return 0;
}
