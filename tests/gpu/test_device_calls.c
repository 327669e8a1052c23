/* Counts the calls that the module makes to the runtime, on tests/fake_hip. */
#include "tests/gpu/device_bench.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

/* Puts a model into an arena and frees the arena. Returns the number of transfers. */
static size_t put_fine(struct bench *bench, const struct model *model, size_t slot_bytes)
{
    struct outcome outcome;
    struct arena *arena;
    struct device_fault fault;
    assert_fine(arena_make(bench->devices[0], model->arena_bytes, &arena, &fault), &fault);
    model_put(model, &bench->slots, arena, slot_bytes, true, &outcome);
    assert_fine(outcome.status, &outcome.fault);
    bench->devices[0]->ops->arena_free(arena);
    return outcome.transfers;
}

/* Large pieces that are decoded share one copy if they are aligned neighbours. */
static void test_copies_are_shared(void **state)
{
    (void)state;
    skip_on_hardware();
    struct bench bench;
    struct device_fault fault;
    assert_fine(bench_open(&bench, &config, 1, &fault), &fault);
    struct chunk_part parts[5];
    for (size_t i = 0; i < 5; i++)
        parts[i] = (struct chunk_part){tensor_type_find(2), FORM_F16, 4096};
    struct model model;
    model_make(&model, parts, 5, 0, 12);
    const unsigned long before = rig_calls(&rig, "hipMemcpyAsync");
    assert_int_equal(put_fine(&bench, &model, 4u << 20), 1);
    assert_int_equal(rig_calls(&rig, "hipMemcpyAsync"), before + 1);
    load_and_check(&bench.slots, &model, 4u << 20, true);
    model_drop(&model);
    bench_close(&bench);
}

/* With pieces that the device decodes, and with others. */
static void test_copies_are_not_delayed(void **state)
{
    (void)state;
    skip_on_hardware();
    struct bench bench;
    struct device_fault fault;
    assert_fine(bench_open(&bench, &config, 1, &fault), &fault);
    const struct chunk_part parts[] = {{tensor_type_find(2), FORM_F16, 4096}, {tensor_type_find(2), FORM_NATIVE, 4096}};
    const unsigned long before = rig.copies_delayed();
    for (size_t i = 0; i < 2; i++) {
        struct model model;
        model_make(&model, &parts[i], 1, 0, 12);
        assert_true(put_fine(&bench, &model, 16u << 10) > 1);
        assert_int_equal(rig.copies_delayed(), before);
        model_drop(&model);
    }
    bench_close(&bench);
}

/* Waits until a call was made this often. If it is not, the wait ends after a third of a second and the test fails. */
static void assert_called(const char *name, unsigned long calls)
{
    for (int i = 0; i < 1000 && rig_calls(&rig, name) < calls; i++)
        usleep(10000);
    assert_int_equal(rig_calls(&rig, name), calls);
}

static void assert_not_called(const char *name, unsigned long calls)
{
    usleep(333333);
    assert_int_equal(rig_calls(&rig, name), calls);
}

/* When much memory was freed, the driver is made to reclaim it. A little memory is not enough, but adds up. If
 * memory is allocated before that, nothing is reclaimed. */
static void test_freed_memory_is_reclaimed(void **state)
{
    (void)state;
    skip_on_hardware();
    struct bench bench;
    struct device_fault fault;
    assert_fine(bench_open(&bench, &config, 1, &fault), &fault);
    struct device *device = bench.devices[0];
    struct arena *little, *much;
    assert_fine(arena_make(device, (uint64_t)100 << 20, &little, &fault), &fault);
    assert_fine(arena_make(device, (uint64_t)200 << 20, &much, &fault), &fault);
    const char *call = device->export_kind == EXPORT_FD ? "hipMemCreate" : "hipMalloc";
    unsigned long calls = rig_calls(&rig, call);
    device->ops->arena_free(little);
    assert_not_called(call, calls);
    device->ops->arena_free(much);
    assert_called(call, calls + 1);
    assert_not_called(call, calls + 1);

    assert_fine(arena_make(device, (uint64_t)300 << 20, &much, &fault), &fault);
    device->ops->arena_free(much);
    assert_fine(arena_make(device, 1, &little, &fault), &fault);
    assert_not_called(call, rig_calls(&rig, call));
    device->ops->arena_free(little);
    bench_close(&bench);
    assert_nothing_left();
}

int main(void)
{
    struct device_fault fault = {0};
    int r = bench_begin(&fault);
    if (r < 0)
        return r == -ENODEV ? 77 : 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_copies_are_shared),
        cmocka_unit_test(test_copies_are_not_delayed),
        cmocka_unit_test(test_freed_memory_is_reclaimed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
