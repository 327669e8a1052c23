/* Reading memory of a GPU back, by several threads at once, on a GPU or on tests/fake_hip. Exits 77 if there is no
 * device. */
#include "tests/gpu/device_bench.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

/* A large arena with one tensor. */
struct reading {
    struct bench bench;
    struct model model;
    struct arena *arena;
    uint64_t seed;
    bool wrong;
};

static void reading_begin(struct reading *reading)
{
    *reading = (struct reading){.seed = 1};
    struct device_fault fault;
    struct outcome outcome;
    const struct chunk_part part = {tensor_type_find(0), FORM_NATIVE, (13u << 18) + 77};
    model_make(&reading->model, &part, 1, 0, 3);
    assert_fine(bench_open(&reading->bench, &small_config, 3, &fault), &fault);
    assert_fine(arena_make(reading->bench.devices[0], reading->model.arena_bytes, &reading->arena, &fault), &fault);
    model_put(&reading->model, &reading->bench.slots, reading->arena, 256u << 10, false, &outcome);
    assert_fine(outcome.status, &outcome.fault);
}

static void reading_end(struct reading *reading)
{
    reading->bench.devices[0]->ops->arena_free(reading->arena);
    bench_close(&reading->bench);
    model_drop(&reading->model);
    assert_nothing_left();
}

/* Returns what reading returned. */
static int read_part(struct reading *reading, uint64_t offset, uint64_t size, struct device_fault *fault)
{
    uint8_t *got = malloc(size + 1);
    memset(got, 0x55, size + 1);
    int r = reading->bench.devices[0]->ops->arena_read(reading->arena, offset, got, size, fault);
    if (got[size] != 0x55 || (r == 0 && memcmp(got, reading->model.expected + offset, size) != 0))
        reading->wrong = true;
    free(got);
    return r;
}

static void *read_parts(void *argument)
{
    struct reading reading = *(struct reading *)argument;
    const uint64_t bytes = reading.model.arena_bytes;
    struct device_fault fault;
    for (int i = 0; i < 8; i++) {
        const uint64_t offset = random_next(&reading.seed) % bytes;
        const uint64_t most = i % 2 ? bytes - offset : 1 + (bytes - offset) / 100;
        if (read_part(&reading, offset, random_next(&reading.seed) % (most + 1), &fault) < 0)
            reading.wrong = true;
    }
    return reading.wrong ? argument : NULL;
}

/* Several readers at once, with reads of any size. */
static void test_order_of_readers(void **state)
{
    (void)state;
    struct reading reading;
    reading_begin(&reading);
    struct reading readers[4];
    pthread_t threads[4];
    struct device_fault fault;
    static const uint64_t sizes[] = {0, 1, (4u << 20) - 1, 4u << 20, (4u << 20) + 1, 8u << 20, (8u << 20) + 1};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        assert_fine(read_part(&reading, i * 1000, sizes[i], &fault), &fault);
    assert_fine(read_part(&reading, 0, reading.model.arena_bytes, &fault), &fault);
    assert_false(reading.wrong);
    for (unsigned i = 0; i < 4; i++) {
        readers[i] = reading;
        readers[i].seed = 77 + i;
        assert_int_equal(pthread_create(&threads[i], NULL, read_parts, &readers[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        void *wrong;
        pthread_join(threads[i], &wrong);
        assert_null(wrong);
    }
    reading_end(&reading);
}

/* After a read that failed, the next read does not get its bytes. */
static void test_each_call_of_a_reader_fails(void **state)
{
    (void)state;
    skip_on_hardware();
    static const char *const calls[] = {"hipSetDevice", "hipMemcpyAsync", "hipEventRecord", "hipEventSynchronize"};
    struct reading reading;
    reading_begin(&reading);
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        unsigned n = 0;
        for (bool fired = true; fired;) {
            char spec[64];
            struct device_fault fault = {0};
            snprintf(spec, sizeof(spec), "%s:%u:1", calls[i], ++n);
            rig.inject(spec);
            int r = read_part(&reading, 0, reading.model.arena_bytes, &fault);
            fired = rig.fired();
            rig.inject(NULL);
            assert_int_equal(r, fired ? -EIO : 0);
            assert_string_equal(fault.call, fired ? calls[i] : "");
            assert_fine(read_part(&reading, 5u << 20, 5000, &fault), &fault);
            assert_false(reading.wrong);
        }
        assert_int_equal(n - 1, i == 0 ? 1 : 4); /* one for each half */
    }
    reading_end(&reading);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    struct device_fault fault = {0};
    int r = bench_begin(&fault);
    if (r < 0)
        return r == -ENODEV ? 77 : 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_of_readers),
        cmocka_unit_test(test_each_call_of_a_reader_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
