/* kernels/dequant.c: every decoder of every instruction set that this machine runs, against the vectors in
 * tests/vectors, against the reference on random blocks, and at the edges of memory. */
#include "kernels/blocks.h"
#include "kernels/dequant_isa.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

/* The build may say where they are; tests run in tests/. */
#ifndef VECTORS_DIR
#define VECTORS_DIR "vectors"
#endif

/* xorshift64*: the same bytes in every run. */
static uint64_t random_next(void)
{
    static uint64_t state = 0x9e3779b97f4a7c15u;
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1du;
}

static void random_fill(void *p, size_t size)
{
    for (size_t i = 0; i < size; i += 8) {
        const uint64_t bytes = random_next();
        memcpy((uint8_t *)p + i, &bytes, size - i < 8 ? size - i : 8);
    }
}

static void *allocate(size_t size)
{
    void *p = malloc(size ? size : 1);
    assert_non_null(p);
    return p;
}

static bool is_nan(uint64_t bits, enum form form)
{
    switch (form) {
    case FORM_F16:
        return (bits & 0x7fff) > 0x7c00;
    case FORM_BF16:
        return (bits & 0x7fff) > 0x7f80;
    default:
        return (bits & 0x7fffffff) > 0x7f800000;
    }
}

static uint32_t element(const uint8_t *p, size_t i, enum form form)
{
    return form == FORM_F32 ? block_u32(p + 4 * i) : block_u16(p + 2 * i);
}

/* A second opinion on narrowing, in double arithmetic: `digits` significant bits, least exponent `least`, first power
 * of two out of range `limit`. */
static uint16_t narrow_slowly(float x, enum form form, uint64_t *overflows)
{
    const int fraction = form == FORM_F16 ? 10 : 7;
    const int least = form == FORM_F16 ? -14 : -126;
    const int bias = -least + 1;
    const uint32_t u = f32_bits(x);
    const uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    const uint16_t infinity = form == FORM_F16 ? 0x7c00 : 0x7f80;
    if (isnan(x)) /* the quiet bit, and what fits of the rest */
        return (uint16_t)(sign | infinity | 1u << (fraction - 1) | (u & 0x7fffff) >> (23 - fraction));
    if (isinf(x))
        return sign | infinity;
    const double a = fabs((double)x);
    const int exponent = a < ldexp(1, least) ? least : ilogb(a);
    double units = nearbyint(ldexp(a, fraction - exponent)); /* to nearest even, the default */
    uint32_t bits =
        units < 1 << fraction ? (uint32_t)units : (uint32_t)(exponent + bias - 1) * (1u << fraction) + (uint32_t)units;
    if (bits >= infinity) {
        bits = infinity;
        *overflows += 1;
    }
    return (uint16_t)(sign | bits);
}

/* Which types have NaN results that are copied rather than computed. */
static bool nan_bits_defined(uint32_t id)
{
    return id == TYPE_ID_f32 || id == TYPE_ID_f16 || id == TYPE_ID_bf16;
}

/* Compares two outputs, bit for bit, but for computed NaN. */
static void assert_same(uint32_t id, enum form form, const uint8_t *got, const uint8_t *want, size_t count,
                        const char *isa)
{
    enum { RUN = 256 }; /* elements that are compared at once */
    const size_t size = form_element_bytes(form);
    for (size_t i = 0; i < count; i++) {
        if (i % RUN == 0) {
            const size_t n = count - i < RUN ? count - i : RUN;
            if (memcmp(got + i * size, want + i * size, n * size) == 0) {
                i += n - 1;
                continue;
            }
        }
        const uint32_t g = element(got, i, form);
        const uint32_t w = element(want, i, form);
        if (g == w || (is_nan(w, form) && is_nan(g, form) && !nan_bits_defined(id)))
            continue;
        fail_msg("%s to %s (%s): element %zu of %zu is %#x, not %#x", tensor_type_find(id)->name, form_name(form), isa,
                 i, count, g, w);
    }
}

static void decode(dequant_table *table, uint32_t id, enum form form, uint8_t *dst, const uint8_t *src, size_t blocks,
                   uint64_t want_overflows)
{
    const uint64_t overflows = (*table)[id][form](dst, src, blocks);
    if (overflows != want_overflows)
        fail_msg("%s to %s: %llu overflows, not %llu", tensor_type_find(id)->name, form_name(form),
                 (unsigned long long)overflows, (unsigned long long)want_overflows);
}

/* Runs every set's decoder over `src` and compares each form with `values` (f32), narrowed where need be. */
static void check_values(uint32_t id, const uint8_t *src, size_t blocks, const uint8_t *values, size_t count)
{
    uint8_t *want = allocate(4 * count);
    uint8_t *got = allocate(4 * count);
    for (enum form form = FORM_F32; form <= FORM_BF16; form++) {
        const size_t size = form_element_bytes(form);
        uint64_t overflows = 0;
        for (size_t i = 0; i < count; i++) {
            const uint32_t u = block_u32(values + 4 * i);
            const uint16_t h = form == FORM_F32 ? 0 : narrow_slowly(f32_from_bits(u), form, &overflows);
            memcpy(want + i * size, form == FORM_F32 ? (const void *)&u : &h, size);
        }
        for (size_t k = 0; k < dequant_isa_count; k++) {
            if (!dequant_isas[k].runs_here() || !(*dequant_isas[k].table)[id][form])
                continue;
            memset(got, 0xa5, count * size);
            decode(dequant_isas[k].table, id, form, got, src, blocks, overflows);
            assert_same(id, form, got, want, count, dequant_isas[k].name);
        }
    }
    free(want);
    free(got);
}

static uint8_t *file_read(const char *name, const char *suffix, size_t want_size)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s%s", VECTORS_DIR, name, suffix);
    FILE *f = fopen(path, "rb");
    if (!f)
        fail_msg("%s: %s", path, strerror(errno));
    uint8_t *p = allocate(want_size);
    assert_int_equal(fread(p, 1, want_size, f), want_size);
    assert_int_equal(fgetc(f), EOF);
    fclose(f);
    return p;
}

static void vectors_match(void **state)
{
    (void)state;
    FILE *manifest = fopen(VECTORS_DIR "/manifest.csv", "r");
    assert_non_null(manifest);
    unsigned id, elements, bytes, blocks, files = 0, quantised = 0;
    char name[32];
    assert_int_equal(fscanf(manifest, "%*[^\n]\n"), 0);
    while (fscanf(manifest, "%u,%31[^,],%u,%u,%u\n", &id, name, &elements, &bytes, &blocks) == 5) {
        const struct tensor_type *type = tensor_type_find(id);
        assert_non_null(type);
        assert_string_equal(type->name, name);
        assert_int_equal(type->block_elements, elements);
        assert_int_equal(type->block_bytes, bytes);
        uint8_t *src = file_read(name, ".q", (size_t)blocks * bytes);
        uint8_t *values = file_read(name, ".f32", (size_t)blocks * elements * 4);
        check_values(id, src, blocks, values, (size_t)blocks * elements);
        free(src);
        free(values);
        files++;
    }
    assert_true(feof(manifest));
    fclose(manifest);
    /* All quantised types, F16 and BF16. */
    for (id = 0; id < DEQUANT_TYPES; id++)
        quantised += tensor_type_find(id)->kind == TYPE_QUANTISED;
    assert_int_equal(files, quantised + 2);
}

static void all_f16_and_bf16_inputs(void **state)
{
    (void)state;
    uint16_t *src = allocate(65536 * 2);
    uint32_t *values = allocate(65536 * 4);
    for (uint32_t h = 0; h < 65536; h++)
        src[h] = (uint16_t)h;
    for (uint32_t h = 0; h < 65536; h++) {
        const uint32_t sign = (h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
        if (exponent == 31) {
            values[h] = sign | (mantissa ? 0x7fc00000 : 0x7f800000) | mantissa << 13;
        } else {
            const double a = exponent ? ldexp(1024 + mantissa, (int)exponent - 25) : ldexp(mantissa, -24);
            values[h] = sign | f32_bits((float)a);
        }
    }
    check_values(1, (uint8_t *)src, 65536, (uint8_t *)values, 65536);
    for (uint32_t h = 0; h < 65536; h++)
        values[h] = h << 16;
    check_values(30, (uint8_t *)src, 65536, (uint8_t *)values, 65536);
    free(src);
    free(values);
}

/* Each upper half of an f32 with lower halves round the ties of both forms. */
static void f32_narrows_to_nearest_even(void **state)
{
    (void)state;
    static const uint16_t low[] = {0,      1,      0x0fff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x3000,
                                   0x7000, 0x7fff, 0x8000, 0x8001, 0xb000, 0xcfff, 0xf000, 0xffff};
    uint32_t *src = allocate(65536 * 4);
    for (size_t k = 0; k < sizeof low / sizeof low[0]; k++) {
        for (uint32_t h = 0; h < 65536; h++)
            src[h] = h << 16 | low[k];
        check_values(0, (uint8_t *)src, 65536, (uint8_t *)src, 65536);
    }
    free(src);
}

#define CHECK_NUMBERS(id, type, ...)                                                                                   \
    do {                                                                                                               \
        const type numbers[] = {__VA_ARGS__};                                                                          \
        enum { COUNT = sizeof numbers / sizeof numbers[0] };                                                           \
        float values[COUNT];                                                                                           \
        for (size_t i = 0; i < COUNT; i++)                                                                             \
            values[i] = (float)numbers[i];                                                                             \
        check_values(id, (const uint8_t *)numbers, COUNT, (const uint8_t *)values, COUNT);                             \
    } while (0)

static void numbers_convert_as_in_c(void **state)
{
    (void)state;
    CHECK_NUMBERS(24, int8_t, 0, 1, -1, 127, -128, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16);
    CHECK_NUMBERS(25, int16_t, 0, 1, -1, 32767, -32768, 2049, 2051, -2049, 257, 259, 5, 4097, 4099, 9, 10, 11, 12);
    CHECK_NUMBERS(26, int32_t, 0, 1, -1, INT32_MAX, INT32_MIN, 16777217, 16777219, -16777217, 65519, 65520, -65520,
                  65521, 33554434, 33554438, 15, 16, 17, 18);
    CHECK_NUMBERS(27, int64_t, 0, 1, -1, INT64_MAX, INT64_MIN, 16777217, 16777219, -16777217, 65519, 65520,
                  0x7fffff4000000001, 0x7fffffbfffffffff, -0x4000004000000001, 0x20000020000001, 0x20000040000000, 12,
                  13, 14);
    /* 1 + 2^-24 is a tie between two floats, a little more is not; the rest are out of f32's range, or nearly. */
    CHECK_NUMBERS(28, double, 0.0, -0.0, 1.5, -1e300, 1e300, 0x1p-149, 0x1p-150, 0x1.8p-149, -0x1p-1074, 0x1.fffffep127,
                  0x1.ffffffp127, 0x1.fffffefffffffp127, INFINITY, -INFINITY, 1 + 0x1p-24, 1 + 0x1.0000000000001p-24,
                  65519.9999, 65520);
}

static void all_block_scales(void **state)
{
    (void)state;
    static const int doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    for (unsigned x = 0; x < 256; x++) {
        uint8_t mx[17], nv[36];
        float mx_values[32], nv_values[64];
        mx[0] = (uint8_t)x;
        memset(nv, (int)x, 4);
        for (unsigned i = 0; i < 16; i++)
            mx[1 + i] = (uint8_t)(i | (15 - i) << 4);
        for (unsigned i = 0; i < 32; i++)
            nv[4 + i] = (uint8_t)(i % 16 | (15 - i % 16) << 4);
        const double half = ldexp(1, (int)x - 128);
        for (unsigned i = 0; i < 32; i++)
            mx_values[i] = (float)(doubled[i < 16 ? i : 31 - i] * half);
        const int exponent = x >> 3 & 15, mantissa = x & 7;
        const double u = x == 0x7f ? 0 : exponent ? ldexp(8 + mantissa, exponent - 11) : ldexp(mantissa, -10);
        for (unsigned i = 0; i < 64; i++) {
            const uint8_t byte = nv[4 + 8 * (i / 16) + i % 8];
            nv_values[i] = (float)doubled[i % 16 < 8 ? byte & 15 : byte >> 4] * (float)u;
        }
        check_values(39, mx, 1, (uint8_t *)mx_values, 32);
        check_values(40, nv, 1, (uint8_t *)nv_values, 64);
    }
    assert_int_equal(f32_bits(e8m0_half(0)), 0x00200000);
    assert_int_equal(f32_bits(e8m0_half(255)), 0x7f000000);
    assert_true(ue4m3_half(0x7e) == 224 && ue4m3_half(0xfe) == 224 && ue4m3_half(0xff) == 240);
}

/* Memory that ends, at either side, in a page that may not be touched. */
struct guarded {
    uint8_t *map, *first, *end;
    size_t size;
};

static struct guarded guarded_map(size_t size)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t inner = (size + page - 1) / page * page;
    struct guarded g = {.size = inner + 2 * page};
    g.map = mmap(NULL, g.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(g.map != MAP_FAILED);
    assert_int_equal(mprotect(g.map, page, PROT_NONE), 0);
    assert_int_equal(mprotect(g.map + page + inner, page, PROT_NONE), 0);
    g.first = g.map + page;
    g.end = g.first + inner;
    return g;
}

/* Each f16 field that scales a block, now and then an infinity, a NaN, a subnormal or a zero: random bytes alone make
 * those too seldom. Any bytes may be changed, as all are valid. */
static void random_blocks(uint8_t *src, size_t size, size_t block)
{
    static const uint16_t odd[] = {0, 0x8000, 0x7c00, 0xfc00, 0x7e01, 0x7d00, 0xffff, 0x0001, 0x83ff, 0x7bff, 0xfbff};
    random_fill(src, size);
    for (size_t at = 0; at + block <= size; at += block) {
        if (random_next() % 4 || block < 2)
            continue;
        const uint16_t h = odd[random_next() % (sizeof odd / sizeof odd[0])];
        const size_t where = random_next() % 2 ? 0 : block - 2 - (block >= 4 && random_next() % 2 ? 2 : 0);
        memcpy(src + at + where, &h, 2);
    }
}

static void check_random(uint32_t id, size_t blocks, size_t src_shift, size_t dst_shift, bool at_end)
{
    const struct tensor_type *type = tensor_type_find(id);
    const size_t src_size = blocks * type->block_bytes, count = blocks * type->block_elements;
    struct guarded in = guarded_map(src_size + src_shift), out = guarded_map(4 * count + dst_shift);
    uint8_t *src = at_end ? in.end - src_size - src_shift : in.first + src_shift;
    uint8_t *want = allocate(4 * count);
    random_blocks(src, src_size, type->block_bytes);
    for (enum form form = FORM_F32; form <= FORM_BF16; form++) {
        const size_t dst_size = form_element_bytes(form) * count;
        const uint64_t overflows = dequant_find_reference(id, form)(want, src, blocks);
        uint8_t *dst = at_end ? out.end - dst_size - dst_shift : out.first + dst_shift;
        for (size_t k = 0; k < dequant_isa_count; k++) {
            if (!dequant_isas[k].runs_here() || !(*dequant_isas[k].table)[id][form])
                continue;
            memset(out.first, 0xa5, (size_t)(out.end - out.first));
            decode(dequant_isas[k].table, id, form, dst, src, blocks, overflows);
            assert_same(id, form, dst, want, count, dequant_isas[k].name);
            for (const uint8_t *p = out.first; p < out.end; p = p + 1 == dst ? dst + dst_size : p + 1)
                if (*p != 0xa5 && (p < dst || p >= dst + dst_size))
                    fail_msg("%s: wrote %td bytes from its output", type->name, p - dst);
        }
    }
    munmap(in.map, in.size);
    munmap(out.map, out.size);
    free(want);
}

static void random_blocks_agree_and_stay_inside(void **state)
{
    (void)state;
    for (uint32_t id = 0; id < DEQUANT_TYPES; id++) {
        if (!dequant_find(id, FORM_F32))
            continue;
        const size_t most = tensor_type_find(id)->block_elements == 1 ? 77 : 9;
        for (size_t blocks = 0; blocks <= most; blocks++) {
            check_random(id, blocks, 0, 0, true);
            check_random(id, blocks, 0, 0, false);
            check_random(id, blocks, 1 + blocks % 7, 1 + blocks % 31, true);
        }
        check_random(id, 20000 / tensor_type_find(id)->block_elements + 1, 1, 3, true);
    }
}

/* Exact-size heap blocks, for the address sanitizer. */
static void exact_buffers(void **state)
{
    (void)state;
    for (uint32_t id = 0; id < DEQUANT_TYPES; id++) {
        const struct tensor_type *type = tensor_type_find(id);
        for (enum form form = FORM_F32; form <= FORM_BF16 && dequant_find(id, form); form++) {
            for (size_t blocks = 1; blocks < 40; blocks += 1 + blocks / 2) {
                uint8_t *src = allocate(blocks * type->block_bytes);
                uint8_t *dst = allocate(blocks * type->block_elements * form_element_bytes(form));
                random_fill(src, blocks * type->block_bytes);
                dequant_find(id, form)(dst, src, blocks);
                dequant_find_reference(id, form)(dst, src, blocks);
                free(src);
                free(dst);
            }
        }
    }
}

/* A call past any cache, where decoders write round it, to addresses that suit no vector: one that suits no element
 * either, and one that is some elements before the beginning of a line. */
static void check_large(uint32_t id, enum form form, uint8_t *got, uint8_t *want, const uint8_t *src)
{
    const struct tensor_type *type = tensor_type_find(id);
    const size_t block_size = type->block_elements * form_element_bytes(form);
    const size_t blocks = DEQUANT_STREAM_BYTES / block_size + 3, size = blocks * block_size;
    const size_t shifts[] = {1 + 2 * (id % 32), 4 + 4 * (id % 15)};
    const uint64_t overflows = dequant_find_reference(id, form)(want, src, blocks);
    for (size_t i = 0; i < 2 * dequant_isa_count; i++) {
        const struct dequant_isa *isa = &dequant_isas[i / 2];
        const size_t shift = shifts[i % 2];
        if (!isa->runs_here() || !(*isa->table)[id][form] || isa->table == &dequant_reference)
            continue;
        memset(got, 0xa5, shift + size + 64);
        decode(isa->table, id, form, got + shift, src, blocks, overflows);
        if (memcmp(got + shift, want, size) != 0)
            assert_same(id, form, got + shift, want, blocks * type->block_elements, isa->name);
        for (size_t k = 0; k < 64; k++)
            if ((k < shift && got[k] != 0xa5) || got[shift + size + k] != 0xa5)
                fail_msg("%s to %s (%s): wrote beside %zu bytes", type->name, form_name(form), isa->name, size);
    }
}

static void large_outputs_agree(void **state)
{
    (void)state;
    /* The most that is read for an output of this size is eight bytes for two. */
    uint8_t *want = allocate(DEQUANT_STREAM_BYTES + 4096), *got = allocate(DEQUANT_STREAM_BYTES + 4096);
    uint8_t *src = allocate(4 * DEQUANT_STREAM_BYTES + 4096);
    random_fill(src, 4 * DEQUANT_STREAM_BYTES + 4096);
    for (uint32_t id = 0; id < DEQUANT_TYPES; id++)
        for (enum form form = FORM_F32; form <= FORM_BF16; form++)
            if (dequant_find(id, form) != dequant_find_reference(id, form))
                check_large(id, form, got, want, src + id % 3);
    free(want);
    free(got);
    free(src);
}

static void refused_types_have_no_decoder(void **state)
{
    (void)state;
    static const uint32_t none[] = {4, 5, 9, 15, 31, 32, 33, 36, 37, 38, DEQUANT_TYPES, 1000, 0x80000000u, UINT32_MAX};
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) {
        for (enum form form = FORM_NATIVE; form <= FORM_COUNT; form++) {
            assert_null(dequant_find(none[i], form));
            assert_null(dequant_find_reference(none[i], form));
        }
    }
    for (uint32_t id = 0; id < DEQUANT_TYPES; id++) {
        const enum type_kind kind = tensor_type_find(id)->kind;
        const bool decodes = kind == TYPE_PLAIN || kind == TYPE_QUANTISED;
        assert_null(dequant_find(id, FORM_NATIVE));
        assert_null(dequant_find(id, FORM_COUNT));
        for (enum form form = FORM_F32; form <= FORM_BF16; form++) {
            assert_int_equal(dequant_find(id, form) != NULL, decodes);
            assert_int_equal(dequant_find_reference(id, form) != NULL, decodes);
        }
    }
    print_message("instruction set: %s\n", dequant_isa());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vectors_match),
        cmocka_unit_test(all_f16_and_bf16_inputs),
        cmocka_unit_test(f32_narrows_to_nearest_even),
        cmocka_unit_test(numbers_convert_as_in_c),
        cmocka_unit_test(all_block_scales),
        cmocka_unit_test(random_blocks_agree_and_stay_inside),
        cmocka_unit_test(exact_buffers),
        cmocka_unit_test(large_outputs_agree),
        cmocka_unit_test(refused_types_have_no_decoder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
