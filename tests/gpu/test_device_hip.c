/* The GPU module through daemon/device.h alone: on a GPU, or on tests/fake_hip.
 *
 * Environment: ROCMFORGE_TEST_MODULE, the module; ROCMFORGE_TEST_WHY, why there is no device. Exits 77 if there is no
 * device to test on. */
#include "kernels/dequant.h"
#include "tests/gpu/rig.h"

#include <errno.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static struct rig rig;
static sem_t put_over;

/* What every test starts from. */
struct bench {
    struct device **devices;
    int n;
    struct slots slots; /* of the first device */
};

static const struct device_config config = {.workers = 2};
/* Small, and the same calls each time. */
static const struct device_config small_config = {.workers = 2, .staging = 1u << 20, .link_copies = 1};

static int bench_open(struct bench *bench, const struct device_config *how, size_t slots, struct device_fault *fault)
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

static void bench_close(struct bench *bench)
{
    slots_drop(&bench->slots);
    for (int i = 0; i < bench->n; i++)
        bench->devices[i]->ops->close(bench->devices[i]);
    free(bench->devices);
}

static void assert_fine(int r, const struct device_fault *fault)
{
    if (r < 0)
        fail_msg("%s: %s (%d), %s", fault->call, fault->text, fault->code, strerror(-r));
}

static void assert_nothing_left(void)
{
    if (!rig.count)
        return;
    struct fake_hip_live live;
    rig.count(&live);
    assert_int_equal(live.allocations, 0);
    assert_int_equal(live.pinned, 0);
    assert_int_equal(live.streams, 0);
    assert_int_equal(live.events, 0);
    assert_int_equal(live.modules, 0);
}

static void skip_on_hardware(void)
{
    if (!rig.inject) {
        print_message("needs tests/fake_hip\n");
        skip();
    }
}

/* Puts a model into a fresh arena and compares. */
static void load_and_check(struct slots *slots, const struct model *model, size_t slot_bytes, bool decode)
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

static void test_identity(void **state)
{
    (void)state;
    struct bench bench;
    struct device_fault fault;
    assert_fine(bench_open(&bench, &config, 1, &fault), &fault);
    for (int i = 0; i < bench.n; i++) {
        struct device *device = bench.devices[i];
        uint64_t available;
        assert_fine(device->ops->memory_free(device, &available, &fault), &fault);
        assert_true(available > 0 && available <= device->total);
        assert_int_equal(strlen(device->uuid), strncmp(device->uuid, "GPU-", 4) == 0 ? 20 : 36);
        assert_true(strlen(device->pci) >= 12 && *device->name);
        assert_int_equal(device->granule & (device->granule - 1), 0);
        assert_true(device->link > 0);
        print_message("%s: %s, %s, %s, %.1f GB, link %.1f GB/s, %u slots of %zu KiB\n", device->id, device->name,
                      device->pci, device->uuid, (double)device->total / 1e9, (double)device->link / 1e9,
                      device->n_slots, device->slot_bytes >> 10);
    }
    if (rig.inject)
        assert_string_equal(bench.devices[0]->uuid, "GPU-fa4e000000000000");
    if (rig.inject && bench.n > 1)
        assert_string_equal(bench.devices[1]->uuid, "fa613465-3030-3030-3030-303030303031");
    bench_close(&bench);
    assert_nothing_left();
}

/* Every type into every form, at sizes round the tile of a kernel, aligned and not. */
static void test_types(void **state)
{
    (void)state;
    struct bench bench;
    struct device_fault fault;
    assert_fine(bench_open(&bench, &config, 3, &fault), &fault);
    static const uint64_t elements[] = {256, 8192 - 256, 8192, 8192 + 256, 100 * 256, 70001 * 8};
    unsigned kernels = 0, types = 0;
    for (uint32_t id = 0; id < 64; id++) {
        const struct tensor_type *type = tensor_type_find(id);
        if (!type || !dequant_find_reference(id, FORM_F32))
            continue;
        types++;
        for (enum form form = FORM_F32; form < FORM_COUNT; form++) {
            struct part parts[sizeof(elements) / sizeof(elements[0]) + 2];
            size_t n = 0;
            assert_true(bench.devices[0]->ops->decodes(bench.devices[0], type, form));
            kernels++;
            for (size_t i = 0; i < sizeof(elements) / sizeof(elements[0]); i++)
                parts[n++] = (struct part){type, form, (elements[i] + type->block_elements - 1) / type->block_elements};
            parts[n++] = (struct part){type, form, 1};
            parts[n++] = (struct part){type, form, type->block_elements == 1 ? 12345 : 7};
            for (unsigned skew = 0; skew < 3; skew++) {
                struct model model;
                model_make(&model, parts, n, skew * 9, 1000 * id + form);
                load_and_check(&bench.slots, &model, 4u << 20, true);
                /* Cut anywhere. */
                if (skew == 1)
                    load_and_check(&bench.slots, &model, 50001, true);
                model_drop(&model);
            }
        }
    }
    print_message("%u types, %u kernels\n", types, kernels);
    assert_true(types >= 33);
    bench_close(&bench);
    assert_nothing_left();
}

static void test_overflows(void **state)
{
    (void)state;
    struct bench bench;
    struct device_fault fault;
    assert_fine(bench_open(&bench, &config, 2, &fault), &fault);
    const struct part part = {tensor_type_find(0), FORM_F16, 300000};
    struct model model;
    model_make(&model, &part, 1, 0, 5);
    assert_true(model.overflows > 1000);
    /* Twice, with slots that have counted before. */
    load_and_check(&bench.slots, &model, 100000, true);
    load_and_check(&bench.slots, &model, 100000, true);
    model_drop(&model);
    bench_close(&bench);
}

/* A put that fails: its slot's next one is not told of what its kernels counted. */
static void put_in_vain(struct slots *slots, const struct model *model, const char *spec)
{
    struct device_fault fault = {0};
    struct arena *arena;
    struct outcome outcome;
    assert_fine(arena_make(slots->device, model->arena_bytes, &arena, &fault), &fault);
    rig.inject(spec);
    model_put(model, slots, arena, 4u << 20, true, &outcome);
    assert_true(rig.fired());
    rig.inject(NULL);
    assert_int_equal(outcome.status, -EIO);
    assert_true(*outcome.fault.call);
    slots->device->ops->arena_free(arena);
}

static void test_overflows_of_others(void **state)
{
    (void)state;
    skip_on_hardware();
    struct bench bench;
    struct device_fault fault;
    assert_fine(bench_open(&bench, &config, 1, &fault), &fault);
    const struct part large[] = {{tensor_type_find(0), FORM_F16, 300000}, {tensor_type_find(0), FORM_F16, 300000}};
    const struct part small = {tensor_type_find(1), FORM_F32, 1000};
    struct model with, without;
    model_make(&with, large, 2, 0, 5);
    model_make(&without, &small, 1, 0, 5);
    assert_true(with.overflows > 1000 && without.overflows == 0);
    put_in_vain(&bench.slots, &with, "hipMemcpy:1:1"); /* the count itself */
    load_and_check(&bench.slots, &without, 4u << 20, true);
    put_in_vain(&bench.slots, &with, "hipMemcpy:1:1");
    put_in_vain(&bench.slots, &without, "hipMemcpy:1:1");
    load_and_check(&bench.slots, &with, 4u << 20, true);
    put_in_vain(&bench.slots, &with, "hipModuleLaunchKernel:2:1"); /* the first has counted */
    load_and_check(&bench.slots, &without, 4u << 20, true);
    load_and_check(&bench.slots, &with, 4u << 20, true);
    model_drop(&with);
    model_drop(&without);
    bench_close(&bench);
    assert_nothing_left();
}

/* Tensors of all kinds and sizes, as a model has them. */
static size_t mixture(struct part *parts, size_t n, uint64_t seed)
{
    static const uint32_t ids[] = {2, 8, 12, 14, 0, 1, 30, 3, 20, 39};
    for (size_t i = 0; i < n; i++) {
        const struct tensor_type *type = tensor_type_find(ids[random_next(&seed) % 10]);
        const uint64_t elements = random_next(&seed) % 3 ? random_next(&seed) % 300000 : random_next(&seed) % 5000;
        parts[i] =
            (struct part){type, (enum form)(random_next(&seed) % FORM_COUNT), elements / type->block_elements + 1};
    }
    return n;
}

/* Streams, slots and events in any order, with slots that are filled again the moment that they are given back. */
static void test_order(void **state)
{
    (void)state;
    static const char *const streams[] = {"1", "2", "3", "8"};
    for (size_t i = 0; i < sizeof(streams) / sizeof(streams[0]); i++) {
        const struct device_config how = {.workers = 4, .streams = streams[i]};
        struct bench bench;
        struct device_fault fault;
        assert_fine(bench_open(&bench, &how, 5, &fault), &fault);
        for (unsigned round = 0; round < 3; round++) {
            struct part parts[40];
            struct model model;
            model_make(&model, parts, mixture(parts, 40, 77 + round), round, round + 1);
            load_and_check(&bench.slots, &model, 256u << 10, true);
            load_and_check(&bench.slots, &model, 256u << 10, false);
            model_drop(&model);
        }
        bench_close(&bench);
        assert_nothing_left();
    }
}

/* Small tensors that touch in the file and are apart in the arena, as GGUF's alignment of 32 has it. */
static void test_neighbours(void **state)
{
    (void)state;
    struct bench bench;
    struct device_fault fault;
    assert_fine(bench_open(&bench, &config, 2, &fault), &fault);
    struct part parts[300];
    for (size_t i = 0; i < 300; i++)
        parts[i] =
            (struct part){tensor_type_find(i % 7 < 4 ? 0 : 2), i % 7 < 5 ? FORM_NATIVE : FORM_F16, 16 * (1 + i % 5)};
    struct model model;
    model_make(&model, parts, 300, 0, 11);
    load_and_check(&bench.slots, &model, 4u << 20, true);
    load_and_check(&bench.slots, &model, 4u << 20, false);
    model_drop(&model);
    bench_close(&bench);
}

/* A load that is given up: nothing more is put, and the arena is freed. */
static void test_given_up(void **state)
{
    (void)state;
    struct bench bench;
    struct device_fault fault;
    assert_fine(bench_open(&bench, &config, 3, &fault), &fault);
    struct part parts[10];
    struct model model;
    model_make(&model, parts, mixture(parts, 10, 3), 0, 3);
    model.n_pieces = 4;
    for (int i = 0; i < 5; i++) {
        struct arena *arena, *empty;
        struct outcome outcome;
        assert_fine(arena_make(bench.devices[0], model.arena_bytes, &arena, &fault), &fault);
        assert_fine(arena_make(bench.devices[0], 1, &empty, &fault), &fault);
        bench.devices[0]->ops->arena_free(empty);
        model_put(&model, &bench.slots, arena, 64u << 10, true, &outcome);
        assert_fine(outcome.status, &outcome.fault);
        bench.devices[0]->ops->arena_free(arena);
    }
    model_drop(&model);
    bench_close(&bench);
    assert_nothing_left();
}

/* What nothing is put into holds nothing of whoever had the memory before. */
static void test_gaps(void **state)
{
    (void)state;
    struct bench bench;
    struct device_fault fault;
    assert_fine(bench_open(&bench, &config, 3, &fault), &fault);
    struct device *device = bench.devices[0];
    const struct part part = {tensor_type_find(2), FORM_F16, 50000};
    struct model model;
    model_make(&model, &part, 1, 0, 4);
    load_and_check(&bench.slots, &model, 4u << 20, true); /* and leaves its bytes in the memory */

    const uint64_t bytes = (3u << 20) + 5000;
    const struct extent gaps[] = {{0, 3}, {100, 57}, {1u << 20, 300000}, {bytes - 1, 1}};
    struct arena *arena;
    assert_fine(device->ops->arena_new(device, bytes, gaps, sizeof(gaps) / sizeof(gaps[0]), &arena, &fault), &fault);
    assert_fine(device->ops->arena_seal(arena, &fault), &fault); /* waits for it to be clear */
    uint8_t *got = malloc(4u << 20);
    assert_fine(device->ops->arena_read(arena, 0, got, 4u << 20, &fault), &fault);
    for (size_t i = 0; i < sizeof(gaps) / sizeof(gaps[0]); i++)
        for (uint64_t at = gaps[i].offset; at < gaps[i].offset + gaps[i].bytes; at++)
            assert_int_equal(got[at], 0);
    for (uint64_t at = bytes; at < 4u << 20; at++)
        assert_int_equal(got[at], 0); /* up to the granule's end */
    free(got);
    device->ops->arena_free(arena);
    model_drop(&model);
    bench_close(&bench);
    assert_nothing_left();
}

static void test_out_of_memory(void **state)
{
    (void)state;
    struct bench bench;
    struct device_fault fault = {0};
    assert_fine(bench_open(&bench, &config, 2, &fault), &fault);
    struct device *device = bench.devices[0];
    struct arena *arena, *other;
    const struct part part = {tensor_type_find(2), FORM_F16, 1000};
    struct model model;
    uint64_t before, after;
    /* What the driver takes for itself at the first use is taken now. */
    model_make(&model, &part, 1, 0, 9);
    load_and_check(&bench.slots, &model, 4u << 20, true);
    assert_fine(device->ops->memory_free(device, &before, &fault), &fault);
    assert_int_equal(arena_make(device, device->total * 2, &arena, &fault), -ENOMEM);
    assert_true(*fault.call && *fault.text && fault.code != 0);
    assert_int_equal(arena_make(device, UINT64_MAX, &arena, &fault), -ENOMEM);
    /* There is not so much left, while another has it. */
    assert_fine(arena_make(device, before / 4 * 3, &arena, &fault), &fault);
    assert_int_equal(arena_make(device, before / 2, &other, &fault), -ENOMEM);
    device->ops->arena_free(arena);
    assert_fine(device->ops->memory_free(device, &after, &fault), &fault);
    /* Not to the byte: a driver keeps, or gives back, a granule of its own. */
    assert_in_range(after, before - (32u << 20), before + (32u << 20));
    /* And the device is well. */
    load_and_check(&bench.slots, &model, 4u << 20, true);
    model_drop(&model);
    bench_close(&bench);
    assert_nothing_left();
}

static void test_again_and_again(void **state)
{
    (void)state;
    struct bench bench;
    struct device_fault fault;
    assert_fine(bench_open(&bench, &config, 3, &fault), &fault);
    struct device *device = bench.devices[0];
    struct part parts[6];
    struct model model;
    model_make(&model, parts, mixture(parts, 6, 21), 0, 21);
    uint64_t before, after;
    load_and_check(&bench.slots, &model, 1u << 20, true);
    assert_fine(device->ops->memory_free(device, &before, &fault), &fault);
    for (int i = 0; i < 200; i++) {
        struct device_export export;
        struct outcome outcome;
        struct arena *arena;
        assert_fine(arena_make(device, model.arena_bytes, &arena, &fault), &fault);
        model_put(&model, &bench.slots, arena, 1u << 20, true, &outcome);
        assert_fine(outcome.status, &outcome.fault);
        assert_fine(device->ops->arena_export(arena, &export, &fault), &fault);
        assert_int_equal(export.handle_size, device->export_kind == EXPORT_IPC ? 64 : 0);
        assert_fine(device->ops->arena_seal(arena, &fault), &fault);
        device->ops->arena_free(arena);
    }
    assert_fine(device->ops->memory_free(device, &after, &fault), &fault);
    assert_int_equal(before, after);
    model_drop(&model);
    bench_close(&bench);
    assert_nothing_left();
}

static void test_two_devices(void **state)
{
    (void)state;
    struct bench bench;
    struct device_fault fault;
    assert_fine(bench_open(&bench, &config, 3, &fault), &fault);
    if (bench.n < 2) {
        bench_close(&bench);
        print_message("one device\n");
        skip();
    }
    struct slots second;
    struct part parts[20];
    struct model model;
    assert_string_not_equal(bench.devices[0]->id, bench.devices[1]->id);
    assert_string_not_equal(bench.devices[0]->pci, bench.devices[1]->pci);
    assert_string_not_equal(bench.devices[0]->uuid, bench.devices[1]->uuid);
    assert_fine(slots_make(&second, bench.devices[1], 3, &fault), &fault);
    model_make(&model, parts, mixture(parts, 20, 8), 0, 8);
    load_and_check(&second, &model, 256u << 10, true);
    load_and_check(&bench.slots, &model, 256u << 10, true);
    if (rig.inject) {
        /* The one is lost; the other does not notice. */
        struct arena *arena;
        struct outcome outcome;
        assert_fine(arena_make(second.device, model.arena_bytes, &arena, &fault), &fault);
        rig.inject("kernel:2:700");
        model_put(&model, &second, arena, 256u << 10, true, &outcome);
        assert_int_equal(outcome.status, -ENODEV);
        assert_int_equal(outcome.fault.code, 700);
        second.device->ops->arena_free(arena);
        assert_int_equal(arena_make(second.device, 1, &arena, &fault), -ENODEV);
        load_and_check(&bench.slots, &model, 256u << 10, true);
        rig.inject(NULL);
    }
    model_drop(&model);
    slots_drop(&second);
    bench_close(&bench);
    assert_nothing_left();
}

/* All that a daemon does with a module, for a small model; gives up at the first error, as it would. */
static int session_run(const struct model *model, struct device_fault *fault)
{
    struct bench bench;
    int r = bench_open(&bench, &small_config, 3, fault);
    if (r < 0)
        return r;
    struct device *device = bench.devices[0];
    struct arena *arena = NULL;
    struct outcome outcome;
    struct device_export export;
    uint64_t available;
    r = device->ops->memory_free(device, &available, fault);
    if (r == 0)
        r = arena_make(device, model->arena_bytes, &arena, fault);
    if (r == 0) {
        bool kernels = device->ops->decodes(device, model->pieces[0].type, FORM_F16);
        assert_true(kernels != !!*device->no_kernels);
        model_put(model, &bench.slots, arena, 128u << 10, kernels, &outcome);
        r = outcome.status;
        if (r < 0)
            *fault = outcome.fault;
        else if (kernels)
            assert_int_equal(outcome.overflows, model->overflows);
    }
    if (r == 0)
        r = device->ops->arena_export(arena, &export, fault);
    if (r == 0)
        r = device->ops->arena_seal(arena, fault);
    if (r == 0)
        r = model_check(model, device, arena, fault);
    if (arena)
        device->ops->arena_free(arena);
    bench_close(&bench);
    return r;
}

static struct model session_model;
static int session_expected; /* if it fails */
static unsigned session_errors;

/* Whatever call fails, whenever: an error, or right bytes; nothing left behind; no hanging. */
static bool session(const char *spec)
{
    struct device_fault fault = {0};
    int r = session_run(&session_model, &fault);
    const bool fired = rig.fired();
    assert_nothing_left();
    if (r == 0)
        return fired;
    session_errors++;
    if (!fired)
        assert_fine(r, &fault);
    if (r != session_expected && r != -ENODEV)
        fail_msg("%s: %s instead of %s", spec, strerror(-r), strerror(-session_expected));
    if (!*fault.call || !*fault.text || fault.code == 0)
        fail_msg("%s: no word of what failed", spec);
    return true;
}

static void session_prepare(int expected)
{
    const struct part parts[] = {
        {tensor_type_find(2), FORM_F16, 9000}, {tensor_type_find(0), FORM_NATIVE, 5000},
        {tensor_type_find(0), FORM_F16, 4000}, {tensor_type_find(14), FORM_BF16, 900},
        {tensor_type_find(8), FORM_F32, 3000},
    };
    model_make(&session_model, parts, sizeof(parts) / sizeof(parts[0]), 0, 4);
    session_expected = expected;
    session_errors = 0;
}

static void fail_each_call(const char *code, int expected)
{
    session_prepare(expected);
    rig_sweep(&rig, getenv("ROCMFORGE_TEST_MODULE"), code, session);
    print_message("%u of them failed the load\n", session_errors);
    assert_true(session_errors > 0);
    model_drop(&session_model);
}

/* The same with one call, or work, until it is not done so often. */
static void fail_each(const char *what, const char *code, int expected)
{
    session_prepare(expected);
    bool fired = true;
    unsigned n = 0;
    while (fired) {
        char spec[96];
        snprintf(spec, sizeof(spec), "%s:%u%s", what, ++n, code);
        rig.inject(spec);
        fired = session(spec);
    }
    rig.inject(NULL);
    print_message("%s%s: %u times, %u of them failed the load\n", what, code, n - 1, session_errors);
    assert_true(n > 1 && session_errors > 0);
    model_drop(&session_model);
}

static void test_each_call_fails(void **state)
{
    (void)state;
    skip_on_hardware();
    fail_each_call("999", -EIO);
}

static void test_each_call_loses_the_device(void **state)
{
    (void)state;
    skip_on_hardware();
    fail_each_call("719", -ENODEV);
}

/* From any call on nothing works any more, and no call says that it is for good. */
static void test_each_call_is_the_last(void **state)
{
    (void)state;
    skip_on_hardware();
    fail_each("*", "+:999", -ENODEV);
}

static void test_each_allocation_fails(void **state)
{
    (void)state;
    skip_on_hardware();
    fail_each("hipMalloc", ":2", -ENOMEM);
    fail_each("hipHostMalloc", ":2", -ENOMEM);
}

static void test_each_work_fails(void **state)
{
    (void)state;
    skip_on_hardware();
    fail_each("copy", ":719", -ENODEV);
    fail_each("kernel", ":700", -ENODEV);
    fail_each("clear", ":719", -ENODEV);
}

/* Which errors are for good, of a device that does not say so by itself afterwards. */
static void test_codes(void **state)
{
    (void)state;
    skip_on_hardware();
    static const struct {
        int code, error;
    } cases[] = {
        {1, -EIO},      {2, -ENOMEM},   {46, -EIO},     {209, -EIO},    {802, -EIO},    {999, -EIO},    {100, -ENODEV},
        {214, -ENODEV}, {220, -ENODEV}, {226, -ENODEV}, {700, -ENODEV}, {702, -ENODEV}, {709, -ENODEV}, {710, -ENODEV},
        {714, -ENODEV}, {715, -ENODEV}, {716, -ENODEV}, {717, -ENODEV}, {718, -ENODEV}, {719, -ENODEV}, {721, -ENODEV},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct bench bench;
        struct device_fault fault;
        uint64_t available;
        char spec[64];
        assert_fine(bench_open(&bench, &small_config, 1, &fault), &fault);
        struct device *device = bench.devices[0];
        snprintf(spec, sizeof(spec), "hipMemGetInfo:1:%d!", cases[i].code);
        rig.inject(spec);
        int r = device->ops->memory_free(device, &available, &fault);
        if (r != cases[i].error)
            fail_msg("%d: %s", cases[i].code, strerror(-r));
        assert_int_equal(fault.code, cases[i].code);
        assert_int_equal(device->ops->memory_free(device, &available, &fault), r == -ENODEV ? r : 0);
        rig.inject(NULL);
        bench_close(&bench);
    }
    assert_nothing_left();
}

static void put_done(struct transfer *transfer)
{
    (void)transfer;
    sem_post(&put_over);
}

/* A slot whose put failed half way is filled again at once: what the device still copies from it must have been copied.
 * To be seen where copies are slow. */
static void test_order_after_a_failed_put(void **state)
{
    (void)state;
    skip_on_hardware();
    enum { BYTES = 1 << 20 };
    const struct tensor_type *f32 = tensor_type_find(0);
    for (int round = 0; round < 20; round++) {
        struct bench bench;
        struct device_fault fault;
        struct arena *arena;
        assert_fine(bench_open(&bench, &config, 1, &fault), &fault);
        struct device *device = bench.devices[0];
        assert_fine(arena_make(device, 4 * BYTES, &arena, &fault), &fault);
        struct slot *slot = &bench.slots.slots[0];
        /* Two copies; in every other round the slot's kernels would be on another stream. */
        const bool decode = round % 2;
        const struct piece pieces[] = {
            {0, BYTES, 0, BYTES, f32, FORM_NATIVE},
            {2 * BYTES, BYTES, 2 * BYTES, decode ? BYTES / 2 : BYTES, f32, decode ? FORM_F16 : FORM_NATIVE}};
        struct transfer transfer = {
            .arena = arena, .slot = slot, .pieces = pieces, .n_pieces = 2, .decode = decode, .done = put_done};
        memset(slot->data, 0x55, 4 * BYTES);
        assert_int_equal(sem_init(&put_over, 0, 0), 0);
        rig.inject("hipMemcpyAsync:2:1");
        device->ops->put(device, &transfer);
        sem_wait(&put_over);
        memset(slot->data, 0xaa, 4 * BYTES);
        assert_true(rig.fired());
        rig.inject(NULL);
        assert_int_equal(transfer.status, -EIO);
        uint8_t *got = malloc(BYTES);
        assert_fine(device->ops->arena_read(arena, 0, got, BYTES, &fault), &fault);
        for (size_t i = 0; i < BYTES; i++)
            assert_int_equal(got[i], 0x55);
        free(got);
        device->ops->arena_free(arena);
        bench_close(&bench);
        assert_nothing_left();
    }
}

/* The same with kernels, which are on another stream: what they read in the slot's scratch memory stays until they are
 * done. */
static void test_order_after_a_failed_launch(void **state)
{
    (void)state;
    skip_on_hardware();
    struct bench bench;
    struct device_fault fault;
    assert_fine(bench_open(&bench, &config, 1, &fault), &fault);
    struct device *device = bench.devices[0];
    const struct part parts[] = {{tensor_type_find(2), FORM_F16, 3000}, {tensor_type_find(8), FORM_F32, 3000}};
    struct model first, second;
    model_make(&first, parts, 2, 0, 5);
    model_make(&second, parts, 2, 0, 6);
    const struct piece *piece = &first.pieces[0];
    uint8_t *got = malloc(piece->arena_bytes);
    for (int round = 0; round < 20; round++) {
        struct arena *arena, *other;
        struct outcome outcome;
        assert_fine(arena_make(device, first.arena_bytes, &arena, &fault), &fault);
        assert_fine(arena_make(device, second.arena_bytes, &other, &fault), &fault);
        rig.inject("hipModuleLaunchKernel:2:1");
        model_put(&first, &bench.slots, arena, 4u << 20, true, &outcome);
        assert_true(rig.fired());
        assert_int_equal(outcome.status, -EIO);
        model_put(&second, &bench.slots, other, 4u << 20, true, &outcome);
        rig.inject(NULL);
        assert_fine(outcome.status, &outcome.fault);
        assert_fine(device->ops->arena_read(arena, piece->arena_offset, got, piece->arena_bytes, &fault), &fault);
        assert_memory_equal(got, first.expected + piece->arena_offset, piece->arena_bytes);
        device->ops->arena_free(arena);
        device->ops->arena_free(other);
    }
    free(got);
    model_drop(&first);
    model_drop(&second);
    bench_close(&bench);
    assert_nothing_left();
}

/* A large arena, all of it one tensor. */
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
    const struct part part = {tensor_type_find(0), FORM_NATIVE, (13u << 18) + 77};
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

/* Several at once, of any size. */
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

/* And of those that fail, the next is not told what they would have been. */
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
        assert_int_equal(n - 1, i == 0 ? 1 : 4); /* halves */
    }
    reading_end(&reading);
}

static void test_streams_setting(void **state)
{
    (void)state;
    static const char *const wrong[] = {"", "0", "17", "2x", "-1", " 2", "99999999999999999999"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        const struct device_config how = {.workers = 1, .streams = wrong[i]};
        struct device **devices;
        struct device_fault fault;
        assert_int_equal(rig.module->open(&how, &devices, &fault), -EINVAL);
    }
}

static void test_staging_setting(void **state)
{
    (void)state;
    static const struct {
        uint64_t staging;
        size_t bytes;
        unsigned n;
    } cases[] = {
        {0, 16u << 20, 4},        {128u << 20, 16u << 20, 8}, {79u << 20, 16u << 20, 4},
        {32u << 20, 8u << 20, 4}, {1u << 20, 256u << 10, 4},  {1, 64u << 10, 4},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct device_config how = {.workers = 4, .staging = cases[i].staging};
        struct bench bench;
        struct device_fault fault;
        assert_fine(bench_open(&bench, &how, 1, &fault), &fault);
        assert_int_equal(bench.devices[0]->slot_bytes, cases[i].bytes);
        assert_int_equal(bench.devices[0]->n_slots, cases[i].n);
        bench_close(&bench);
    }
}

/* Says why there is no device, in words of its own where CUDA's runtime would say of a driver that is not there that it
 * is too old. */
static bool absence_is_told(const struct device_fault *fault)
{
    const char *why = getenv("ROCMFORGE_TEST_WHY") ?: fault->code == 35 ? "no NVIDIA driver" : "";
    return *fault->call && *fault->text && fault->code != 0 && strstr(fault->text, why);
}

/* test_device_hip [TEST | -TEST | --absent]: all, or those whose names match, or those whose names do not; or one that
 * wants no device: what the module says then. */
int main(int argc, char **argv)
{
    const bool absent = argc > 1 && strcmp(argv[1], "--absent") == 0;
    if (argc > 1 && *argv[1] == '-')
        cmocka_set_skip_filter(argv[1] + 1);
    else if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    if (rig_load(&rig) < 0)
        return 1;
    struct device **devices;
    struct device_fault fault = {0};
    int n = rig.module->open(&config, &devices, &fault);
    if (n == -ENODEV) {
        fprintf(stderr, "no device: %s: %s (%d)\n", fault.call, fault.text, fault.code);
        if (absent)
            return !absence_is_told(&fault);
        return 77;
    }
    for (int i = 0; i < n; i++)
        devices[i]->ops->close(devices[i]);
    if (n > 0)
        free(devices);
    if (absent) {
        fprintf(stderr, "there is a device here\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_identity),
        cmocka_unit_test(test_types),
        cmocka_unit_test(test_overflows),
        cmocka_unit_test(test_overflows_of_others),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_gaps),
        cmocka_unit_test(test_neighbours),
        cmocka_unit_test(test_given_up),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_again_and_again),
        cmocka_unit_test(test_two_devices),
        cmocka_unit_test(test_codes),
        cmocka_unit_test(test_streams_setting),
        cmocka_unit_test(test_staging_setting),
        cmocka_unit_test(test_order_after_a_failed_put),
        cmocka_unit_test(test_order_after_a_failed_launch),
        cmocka_unit_test(test_order_of_readers),
        cmocka_unit_test(test_each_call_fails),
        cmocka_unit_test(test_each_call_loses_the_device),
        cmocka_unit_test(test_each_call_is_the_last),
        cmocka_unit_test(test_each_allocation_fails),
        cmocka_unit_test(test_each_work_fails),
        cmocka_unit_test(test_each_call_of_a_reader_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
