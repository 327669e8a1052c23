/* The kernels' speed: bytes read and written a second, for every type and form, beside the device's own copy.
 *
 * usage: bench_kernels [ELEMENTS [REPEATS]]
 *
 * Blocks are random. The best of the repeats counts, for kernels and copy alike. Prints a table, and with
 * ROCMFORGE_BENCH_JSON=FILE writes the same there. Exits 77 without a device. */
#include "daemon/device/hip/error.h"
#include "kernels/dequant_gpu.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(ROCMFORGE_CUDA)
#define hipMemcpyDeviceToDevice cudaMemcpyDeviceToDevice
#endif

extern const unsigned char rocmforge_kernels[];

static const struct {
    const char *ident;
    unsigned elements, bytes;
} types[] = {
#define TYPE_PLAIN_DEF(id, ident, name, bytes)               {#ident, 1, bytes},
#define TYPE_QUANTISED_DEF(id, ident, name, elements, bytes) {#ident, elements, bytes},
#include "kernels/types.def"
};

static void check(hipError_t e, const char *what)
{
    if (e != hipSuccess) {
        fprintf(stderr, "%s: %s (%d)\n", what, hipGetErrorString(e), (int)e);
        exit(1);
    }
}
#define CHECK(call) check(call, #call)

static hipStream_t stream;
static hipEvent_t begin, end;

static double stop_seconds(void)
{
    float ms;
    CHECK(hipEventRecord(end, stream));
    CHECK(hipEventSynchronize(end));
    CHECK(hipEventElapsedTime(&ms, begin, end));
    return (double)ms / 1e3;
}

/* Where a type keeps the upper byte of its f16 scales, so that values are of the size that weights have: a random scale
 * would make every other block overflow, which no model does. Likewise the upper bytes of plain numbers. */
static const struct {
    const char *ident;
    int at[2];
} scales[] = {
    {"q4_0", {1, 1}},    {"q4_1", {1, 3}},     {"q5_0", {1, 1}},   {"q5_1", {1, 3}},    {"q8_0", {1, 1}},
    {"q2_k", {81, 83}},  {"q3_k", {109, 109}}, {"q4_k", {1, 3}},   {"q5_k", {1, 3}},    {"q6_k", {209, 209}},
    {"iq2_xxs", {1, 1}}, {"iq2_xs", {1, 1}},   {"iq2_s", {1, 1}},  {"iq3_xxs", {1, 1}}, {"iq3_s", {1, 1}},
    {"iq1_s", {1, 1}},   {"iq1_m", {55, 55}},  {"iq4_nl", {1, 1}}, {"iq4_xs", {1, 1}},  {"tq1_0", {53, 53}},
    {"tq2_0", {65, 65}}, {"mxfp4", {0, 0}},    {"q1_0", {1, 1}},   {"q2_0", {1, 1}},    {"f32", {3, 3}},
    {"f16", {1, 1}},     {"bf16", {1, 1}},     {"f64", {7, 7}},
};

static void tame(uint8_t *block, size_t type)
{
    for (size_t i = 0; i < sizeof(scales) / sizeof(scales[0]); i++)
        if (strcmp(scales[i].ident, types[type].ident) == 0)
            for (int j = 0; j < 2; j++)
                block[scales[i].at[j]] = (uint8_t)((block[scales[i].at[j]] & 0x03) | 0x20);
    if (*types[type].ident == 'i' && types[type].elements == 1)
        memset(block + types[type].bytes / 2, 0, types[type].bytes / 2);
    if (strcmp(types[type].ident, "i32") == 0 || strcmp(types[type].ident, "i64") == 0)
        memset(block + 1, 0, types[type].bytes - 1);
}

/* Random blocks, made once on the host and repeated: the 16 MiB of them are decoded anew each time. */
static void fill(uint8_t *src, size_t blocks, size_t type)
{
    const size_t block_bytes = types[type].bytes;
    const size_t n = ((size_t)16 << 20) / block_bytes;
    uint8_t *random = malloc(n * block_bytes + 8);
    uint64_t x = 1;
    for (size_t i = 0; i < n * block_bytes; i += 8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        memcpy(random + i, &x, 8);
    }
    for (size_t i = 0; i < n; i++)
        tame(random + i * block_bytes, type);
    for (size_t at = 0; at < blocks; at += n)
        CHECK(hipMemcpy(src + at * block_bytes, random, (blocks - at < n ? blocks - at : n) * block_bytes,
                        hipMemcpyHostToDevice));
    free(random);
}

int main(int argc, char **argv)
{
    uint64_t elements = argc > 1 ? strtoull(argv[1], NULL, 10) : (uint64_t)256 << 20;
    const int repeats = argc > 2 ? atoi(argv[2]) : 5;
    elements = elements / DEQUANT_TILE * DEQUANT_TILE;
    int devices;
    hipError_t e = hipGetDeviceCount(&devices);
    if (e != hipSuccess || devices == 0) {
        fprintf(stderr, "no device: %s\n", hipGetErrorString(e));
        return 77;
    }
    const char *json_path = getenv("ROCMFORGE_BENCH_JSON");
    FILE *json = json_path ? fopen(json_path, "w") : NULL;
    uint8_t *src, *dst;
    uint64_t *overflows;
    uint32_t *overflowed;
    char name[128];
    const size_t src_bytes = elements * 4 + 256, dst_bytes = elements * 4;
    CHECK(hipSetDevice(0));
    CHECK(hipDeviceGetName(name, sizeof(name), 0));
    CHECK(hipStreamCreateWithFlags(&stream, hipStreamNonBlocking));
    CHECK(hipEventCreateWithFlags(&begin, hipEventBlockingSync));
    CHECK(hipEventCreateWithFlags(&end, hipEventBlockingSync));
    CHECK(hipMalloc((void **)&src, src_bytes));
    CHECK(hipMalloc((void **)&dst, dst_bytes));
    CHECK(hipMalloc((void **)&overflows, 8));
    const uint64_t zero = 0;
    CHECK(hipMemcpy(overflows, &zero, sizeof(zero), hipMemcpyHostToDevice));
    CHECK(hipHostMalloc((void **)&overflowed, 4, hipHostMallocDefault));

    double copy = 0;
    for (int i = 0; i <= repeats; i++) {
        CHECK(hipEventRecord(begin, stream));
        CHECK(hipMemcpyAsync(dst, src, elements * 4, hipMemcpyDeviceToDevice, stream));
        const double rate = 8 * (double)elements / stop_seconds();
        copy = i > 0 && rate > copy ? rate : copy;
    }
    printf("%s: copy %.0f GB/s, read and written; %" PRIu64 " elements\n", name, copy / 1e9, elements);
    printf("%-10s %9s %9s %9s   of the copy\n", "type", "f32", "f16", "bf16");
    if (json)
        fprintf(json, "{\"device\": \"%s\", \"elements\": %" PRIu64 ", \"copy\": %.0f, \"kernels\": {", name, elements,
                copy);

    hipModule_t module;
    CHECK(hipModuleLoadData(&module, rocmforge_kernels));
    static const char *const forms[] = {"f32", "f16", "bf16"};
    double least = 1e9;
    for (size_t t = 0; t < sizeof(types) / sizeof(types[0]); t++) {
        double rates[3];
        /* Eight bytes an element are twice what src holds. */
        const uint64_t n = types[t].bytes == 8 && types[t].elements == 1 ? elements / 2 : elements;
        uint64_t blocks = n / types[t].elements;
        fill(src, blocks, t);
        for (int f = 0; f < 3; f++) {
            char symbol[64];
            hipFunction_t kernel;
            snprintf(symbol, sizeof(symbol), "dequant_%s_%s", types[t].ident, forms[f]);
            CHECK(hipModuleGetFunction(&kernel, module, symbol));
            const double bytes = (double)blocks * types[t].bytes + (double)n * (f == 0 ? 4 : 2);
            uint64_t counted = UINT64_MAX;
            void *params[] = {&src, &dst, &blocks, &overflows, &counted, &overflowed};
            rates[f] = 0;
            for (int i = 0; i <= repeats; i++) {
                CHECK(hipEventRecord(begin, stream));
                CHECK(hipModuleLaunchKernel(kernel, (unsigned)((n + DEQUANT_TILE - 1) / DEQUANT_TILE), 1, 1,
                                            DEQUANT_THREADS, 1, 1, 0, stream, params, NULL));
                const double rate = bytes / stop_seconds();
                rates[f] = i > 0 && rate > rates[f] ? rate : rates[f];
            }
            least = rates[f] / copy < least ? rates[f] / copy : least;
        }
        printf("%-10s %9.0f %9.0f %9.0f   %.2f %.2f %.2f\n", types[t].ident, rates[0] / 1e9, rates[1] / 1e9,
               rates[2] / 1e9, rates[0] / copy, rates[1] / copy, rates[2] / copy);
        if (json)
            fprintf(json, "%s\"%s\": [%.0f, %.0f, %.0f]", t > 0 ? ", " : "", types[t].ident, rates[0], rates[1],
                    rates[2]);
    }
    printf("least: %.2f of the copy\n", least);
    uint64_t counted = 0;
    CHECK(hipMemcpy(&counted, overflows, sizeof(counted), hipMemcpyDeviceToHost));
    printf("overflows: %" PRIu64 "\n", counted);
    if (json) {
        fprintf(json, "}}\n");
        fclose(json);
    }
    return 0;
}
