#include "tests/gpu/device_bench.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

struct rig rig;

struct device_config config, quick_config, small_config;

static void configs_set(void)
{
    config = (struct device_config){.workers = 2, .export_wish = rig_export_wish()};
    quick_config = (struct device_config){.workers = 2, OPENED_QUICKLY};
    small_config = (struct device_config){.workers = 2, .staging = 1u << 20, OPENED_QUICKLY};
}

int bench_begin(struct device_fault *ret_fault)
{
    int r = rig_load(&rig);
    if (r < 0)
        return r;
    configs_set();
    struct device **devices;
    int n = rig.module->open(&config, &devices, ret_fault);
    if (n < 0) {
        fprintf(stderr, "no device: %s: %s (%d)\n", ret_fault->call, ret_fault->text, ret_fault->code);
        return n;
    }
    for (int i = 0; i < n; i++)
        devices[i]->ops->close(devices[i]);
    free(devices);
    return 0;
}

int bench_open(struct bench *bench, const struct device_config *how, size_t slots, struct device_fault *fault)
{
    *bench = (struct bench){0};
    int r = rig.module->open(how, &bench->devices, fault);
    if (r < 0)
        return r;
    bench->n = r;
    r = slots_make(&bench->slots, bench->devices[0], slots, fault);
    if (r < 0) {
        for (int i = 0; i < bench->n; i++)
            bench->devices[i]->ops->close(bench->devices[i]);
        free(bench->devices);
    }
    return r;
}

void bench_close(struct bench *bench)
{
    slots_drop(&bench->slots);
    for (int i = 0; i < bench->n; i++)
        bench->devices[i]->ops->close(bench->devices[i]);
    free(bench->devices);
}

void assert_fine(int r, const struct device_fault *fault)
{
    if (r < 0)
        fail_msg("%s: %s (%d), %s", fault->call, fault->text, fault->code, strerror(-r));
}

void assert_nothing_left(void)
{
    if (!rig.count)
        return;
    struct fake_hip_live live;
    rig.count(&live);
    assert_int_equal(live.allocations, 0);
    assert_int_equal(live.addresses, 0);
    assert_int_equal(live.opened, 0);
    assert_int_equal(live.pinned, 0);
    assert_int_equal(live.streams, 0);
    assert_int_equal(live.events, 0);
    assert_int_equal(live.modules, 0);
}

void skip_on_hardware(void)
{
    if (!rig.inject) {
        print_message("needs tests/fake_hip\n");
        skip();
    }
}

void load_and_check(struct slots *slots, const struct model *model, size_t slot_bytes, bool decode)
{
    struct device *device = slots->device;
    struct device_fault fault = {0};
    struct arena *arena;
    struct outcome outcome;
    assert_fine(arena_make(device, model->arena_bytes, &arena, &fault), &fault);
    model_put(model, slots, arena, slot_bytes, decode, &outcome);
    assert_fine(outcome.status, &outcome.fault);
    assert_fine(model_check(model, device, arena, &fault), &fault);
    if (decode)
        assert_int_equal(outcome.overflows, model->overflows);
    device->ops->arena_free(arena);
}
