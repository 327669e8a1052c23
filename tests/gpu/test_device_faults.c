/* The GPU module on tests/fake_hip: each call fails, at each time, and the module is used again afterwards. Exits 77
 * if there is no device. */
#include "tests/gpu/device_bench.h"

#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static sem_t put_over;
static bool session_open; /* the last session opened a device */

/* The daemon is another one now, and has the descriptor alone. */
static int take_back(struct device *device, const struct model *model, struct arena **arena,
                     struct device_export *export, struct device_fault *fault)
{
    const int kept = fcntl(export->fd, F_DUPFD_CLOEXEC, 0);
    assert_true(kept >= 0);
    device->ops->arena_free(*arena);
    *arena = NULL;
    int r = device->ops->arena_adopt(device, kept, model->arena_bytes, arena, export, fault);
    if (r < 0) {
        close(kept);
        *arena = NULL;
        return r;
    }
    return model_check(model, device, *arena, fault);
}

static void source_put(struct transfer *transfer)
{
    (void)transfer;
    sem_post(&put_over);
}

/* Puts what `memory` holds into the arena, without a slot's data. */
static int put_from(const struct model *model, struct bench *bench, struct arena *arena, const void *memory,
                    struct device_fault *fault)
{
    const struct piece piece = {.slot_bytes = model->arena_bytes, .arena_bytes = model->arena_bytes};
    struct transfer transfer = {.arena = arena,
                                .slot = &bench->slots.slots[0],
                                .source = memory,
                                .pieces = &piece,
                                .n_pieces = 1,
                                .decode = true,
                                .done = source_put};
    sem_init(&put_over, 0, 0);
    bench->devices[0]->ops->put(bench->devices[0], &transfer);
    while (sem_wait(&put_over) < 0)
        ;
    if (transfer.status < 0)
        *fault = transfer.fault;
    return transfer.status;
}

/* A copy in pinned memory, and back into the same arena, which is used again. */
static int copy_and_back(const struct model *model, struct bench *bench, struct arena *arena,
                         struct device_export *export, struct device_fault *fault)
{
    struct device *device = bench->devices[0];
    const size_t bytes = (model->arena_bytes + 4095) / 4096 * 4096;
    uint8_t *memory = aligned_alloc(4096, bytes);
    int r = device->ops->host_register(device, memory, bytes, fault);
    if (r == 0) {
        r = device->ops->arena_save(arena, 0, memory, model->arena_bytes, fault);
        if (r == 0)
            assert_true(model_same(model, memory));
        if (r == 0)
            r = device->ops->arena_reuse(arena, model->arena_bytes, NULL, 0, fault);
        if (r == 0)
            r = put_from(model, bench, arena, memory, fault);
        if (r == 0)
            r = device->ops->arena_export(arena, export, fault);
        if (r == 0)
            r = device->ops->arena_seal(arena, fault);
        device->ops->host_unregister(device, memory);
    }
    free(memory);
    return r < 0 ? r : model_check(model, device, arena, fault);
}

/* All that a daemon does with a module, for a small model. Stops at the first error, as the daemon does. */
static int session_run(const struct model *model, enum export_wish wish, struct device_fault *fault)
{
    struct bench bench;
    struct device_config how = small_config;
    how.export_wish = wish;
    int r = bench_open(&bench, &how, 3, fault);
    session_open = r == 0;
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
    if (r == 0)
        r = copy_and_back(model, &bench, arena, &export, fault);
    if (r == 0 && device->export_kind == EXPORT_FD)
        r = take_back(device, model, &arena, &export, fault);
    if (arena)
        device->ops->arena_free(arena);
    bench_close(&bench);
    return r;
}

static struct model session_model;
static int session_expected; /* the error if it fails */
static unsigned session_errors;

/* Whichever call fails: there is an error, or the bytes are right; nothing is left behind; nothing hangs. */
static bool session(const char *spec)
{
    struct device_fault fault = {0};
    int r = session_run(&session_model, EXPORT_WISH_FD, &fault);
    if (r == 0)
        r = session_run(&session_model, EXPORT_WISH_IPC, &fault);
    const bool fired = rig.fired();
    assert_nothing_left();
    if (r == 0)
        return fired;
    session_errors++;
    if (!fired)
        assert_fine(r, &fault);
    if (r != session_expected && r != -ENODEV && (session_open || r != -EIO))
        fail_msg("%s: %s instead of %s", spec, strerror(-r), strerror(-session_expected));
    if (!*fault.call || !*fault.text || fault.code == 0)
        fail_msg("%s: no word of what failed", spec);
    return true;
}

static void session_prepare(int expected)
{
    const struct chunk_part parts[] = {
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

/* The same for one call or kind of work, until the session does not make it so often. */
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

/* From some call on all calls fail, and no code says that the device is lost. */
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
    static const char *const calls[] = {"hipMalloc", "hipHostMalloc", "hipMemCreate", "hipMemAddressReserve",
                                        "hipMemMap"};
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
        fail_each(calls[i], ":2", -ENOMEM);
}

static void test_each_work_fails(void **state)
{
    (void)state;
    skip_on_hardware();
    fail_each("copy", ":719", -ENODEV);
    fail_each("kernel", ":700", -ENODEV);
    fail_each("clear", ":719", -ENODEV);
}

/* Which codes mean that the device is lost, although later calls work. */
static void test_codes(void **state)
{
    (void)state;
    skip_on_hardware();
    static const struct {
        int code, error;
    } cases[] = {
        {1, -EIO},      {2, -ENOMEM},   {46, -EIO},     {209, -EIO},    {802, -EIO},    {999, -EIO},
        {100, -ENODEV}, {214, -ENODEV}, {220, -ENODEV}, {226, -ENODEV}, {700, -ENODEV}, {702, -ENODEV},
        {709, -ENODEV}, {710, -ENODEV}, {714, -ENODEV}, {715, -ENODEV}, {716, -ENODEV}, {717, -ENODEV},
        {718, -ENODEV}, {719, -ENODEV}, {721, -ENODEV}, {810, -ENODEV}, {911, -EIO},
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

/* A put fails after some copies were submitted, and the slot is filled again at once. These copies must have ended
 * by then. Visible only if copies are slow. */
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
        assert_fine(bench_open(&bench, &quick_config, 1, &fault), &fault);
        struct device *device = bench.devices[0];
        assert_fine(arena_make(device, 4 * BYTES, &arena, &fault), &fault);
        struct slot *slot = &bench.slots.slots[0];
        /* Two copies; in every second round the slot's kernels would be on another stream. */
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

/* The same with kernels, which run on another stream. What they read in the slot's scratch memory must stay until
 * they have ended. */
static void test_order_after_a_failed_launch(void **state)
{
    (void)state;
    skip_on_hardware();
    struct bench bench;
    struct device_fault fault;
    assert_fine(bench_open(&bench, &quick_config, 1, &fault), &fault);
    struct device *device = bench.devices[0];
    const struct chunk_part parts[] = {{tensor_type_find(2), FORM_F16, 3000}, {tensor_type_find(8), FORM_F32, 3000}};
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

/* An error while freed memory is reclaimed does no harm. If it loses the device, the next call that needs the device
 * reports it. */
static void test_reclaiming_fails(void **state)
{
    (void)state;
    skip_on_hardware();
    /* The arena's own calls come first. */
    static const char *const calls[][3] = {{"hipSetDevice:2", "hipMalloc:1", "hipFree:2"},
                                           {"hipSetDevice:2", "hipMemCreate:1", "hipMemRelease:2"}};
    static const int codes[] = {2, 999, 719};
    for (size_t i = 0; i < 18; i++) {
        const int code = codes[i % 3];
        const bool by_descriptor = i >= 9;
        struct device_config how = quick_config;
        how.export_wish = by_descriptor ? EXPORT_WISH_FD : EXPORT_WISH_IPC;
        struct bench bench;
        struct device_fault fault;
        struct arena *arena;
        char spec[64];
        assert_fine(bench_open(&bench, &how, 1, &fault), &fault);
        struct device *device = bench.devices[0];
        assert_fine(arena_make(device, (uint64_t)300 << 20, &arena, &fault), &fault);
        snprintf(spec, sizeof(spec), "%s:%d", calls[by_descriptor][i % 9 / 3], code);
        rig.inject(spec);
        device->ops->arena_free(arena);
        for (int k = 0; k < 1000 && !rig.fired(); k++)
            usleep(10000);
        assert_true(rig.fired());
        const int r = arena_make(device, 1, &arena, &fault);
        assert_int_equal(r, code == 719 ? -ENODEV : 0);
        if (r == 0)
            device->ops->arena_free(arena);
        else
            assert_int_equal(fault.code, code);
        rig.inject(NULL);
        bench_close(&bench);
        assert_nothing_left();
    }
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
        cmocka_unit_test(test_codes),
        cmocka_unit_test(test_order_after_a_failed_put),
        cmocka_unit_test(test_order_after_a_failed_launch),
        cmocka_unit_test(test_each_call_fails),
        cmocka_unit_test(test_each_call_loses_the_device),
        cmocka_unit_test(test_each_call_is_the_last),
        cmocka_unit_test(test_each_allocation_fails),
        cmocka_unit_test(test_each_work_fails),
        cmocka_unit_test(test_reclaiming_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
