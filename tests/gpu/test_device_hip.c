/* The GPU module through daemon/device/device.h alone, on a GPU or on tests/fake_hip.
 *
 * Environment: as in device_bench.h; ROCMFORGE_TEST_WHY, the expected reason why there is no device. Exits 77 if
 * there is no device to test. */
#include "kernels/dequant.h"
#include "tests/gpu/device_bench.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

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
        assert_false(device->exports_leak);
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

/* Each type into each form, with sizes around the tile of a kernel, aligned and not. */
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
            struct chunk_part parts[sizeof(elements) / sizeof(elements[0]) + 2];
            size_t n = 0;
            assert_true(bench.devices[0]->ops->decodes(bench.devices[0], type, form));
            kernels++;
            for (size_t i = 0; i < sizeof(elements) / sizeof(elements[0]); i++)
                parts[n++] =
                    (struct chunk_part){type, form, (elements[i] + type->block_elements - 1) / type->block_elements};
            parts[n++] = (struct chunk_part){type, form, 1};
            parts[n++] = (struct chunk_part){type, form, type->block_elements == 1 ? 12345 : 7};
            for (unsigned skew = 0; skew < 3; skew++) {
                struct model model;
                model_make(&model, parts, n, skew * 9, 1000 * id + form);
                load_and_check(&bench.slots, &model, 4u << 20, true);
                /* Cut at any place. */
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
    const struct chunk_part part = {tensor_type_find(0), FORM_F16, 300000};
    struct model model;
    model_make(&model, &part, 1, 0, 5);
    assert_true(model.overflows > 1000);
    /* Twice: the second time the slots have counted before. */
    load_and_check(&bench.slots, &model, 100000, true);
    load_and_check(&bench.slots, &model, 100000, true);
    model_drop(&model);
    bench_close(&bench);
}

/* A put that fails: what its kernels counted must not be reported by the slot's next transfer. */
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
    const struct chunk_part large[] = {{tensor_type_find(0), FORM_F16, 300000},
                                       {tensor_type_find(0), FORM_F16, 300000}};
    const struct chunk_part small = {tensor_type_find(1), FORM_F32, 1000};
    struct model with, without;
    model_make(&with, large, 2, 0, 5);
    model_make(&without, &small, 1, 0, 5);
    assert_true(with.overflows > 1000 && without.overflows == 0);
    put_in_vain(&bench.slots, &with, "hipMemcpy:1:1"); /* reading the count fails */
    load_and_check(&bench.slots, &without, 4u << 20, true);
    put_in_vain(&bench.slots, &with, "hipMemcpy:1:1");
    put_in_vain(&bench.slots, &without, "hipMemcpy:1:1");
    load_and_check(&bench.slots, &with, 4u << 20, true);
    put_in_vain(&bench.slots, &with, "hipModuleLaunchKernel:2:1"); /* the first kernel has counted */
    load_and_check(&bench.slots, &without, 4u << 20, true);
    load_and_check(&bench.slots, &with, 4u << 20, true);
    model_drop(&with);
    model_drop(&without);
    bench_close(&bench);
    assert_nothing_left();
}

/* Tensors of all kinds and sizes, as in a model. */
static size_t mixture(struct chunk_part *parts, size_t n, uint64_t seed)
{
    static const uint32_t ids[] = {2, 8, 12, 14, 0, 1, 30, 3, 20, 39};
    for (size_t i = 0; i < n; i++) {
        const struct tensor_type *type = tensor_type_find(ids[random_next(&seed) % 10]);
        const uint64_t elements = random_next(&seed) % 3 ? random_next(&seed) % 300000 : random_next(&seed) % 5000;
        parts[i] = (struct chunk_part){type, (enum form)(random_next(&seed) % FORM_COUNT),
                                       elements / type->block_elements + 1};
    }
    return n;
}

/* Streams, slots and events in any order. Slots are filled again as soon as they are given back. */
static void test_order(void **state)
{
    (void)state;
    static const unsigned streams[] = {1, 2, 3, 8, DEVICE_STREAMS_MAX};
    for (size_t i = 0; i < sizeof(streams) / sizeof(streams[0]); i++) {
        const struct device_config how = {.workers = 4, .streams = streams[i], OPENED_QUICKLY};
        struct bench bench;
        struct device_fault fault;
        assert_fine(bench_open(&bench, &how, 5, &fault), &fault);
        for (unsigned round = 0; round < 3; round++) {
            struct chunk_part parts[40];
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

/* Small tensors that are neighbours in the file and apart in the arena, as with the alignment of 32 in GGUF. */
static void test_neighbours(void **state)
{
    (void)state;
    struct bench bench;
    struct device_fault fault;
    assert_fine(bench_open(&bench, &config, 2, &fault), &fault);
    struct chunk_part parts[300];
    for (size_t i = 0; i < 300; i++)
        parts[i] = (struct chunk_part){tensor_type_find(i % 7 < 4 ? 0 : 2), i % 7 < 5 ? FORM_NATIVE : FORM_F16,
                                       16 * (1 + i % 5)};
    struct model model;
    model_make(&model, parts, 300, 0, 11);
    load_and_check(&bench.slots, &model, 4u << 20, true);
    load_and_check(&bench.slots, &model, 4u << 20, false);
    model_drop(&model);
    bench_close(&bench);
}

/* A load that is cancelled: nothing more is put, and the arena is freed. */
static void test_given_up(void **state)
{
    (void)state;
    struct bench bench;
    struct device_fault fault;
    assert_fine(bench_open(&bench, &config, 3, &fault), &fault);
    struct chunk_part parts[10];
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

/* Parts of an arena that nothing is put into hold no old data. */
static void test_gaps(void **state)
{
    (void)state;
    struct bench bench;
    struct device_fault fault;
    assert_fine(bench_open(&bench, &config, 3, &fault), &fault);
    struct device *device = bench.devices[0];
    const struct chunk_part part = {tensor_type_find(2), FORM_F16, 50000};
    struct model model;
    model_make(&model, &part, 1, 0, 4);
    load_and_check(&bench.slots, &model, 4u << 20, true); /* leaves its bytes in the memory */

    const uint64_t bytes = (3u << 20) + 5000;
    const struct extent gaps[] = {{0, 3}, {100, 57}, {1u << 20, 300000}, {bytes - 1, 1}};
    struct arena *arena;
    assert_fine(device->ops->arena_new(device, bytes, gaps, sizeof(gaps) / sizeof(gaps[0]), &arena, &fault), &fault);
    assert_fine(device->ops->arena_seal(arena, &fault), &fault); /* waits until it is cleared */
    uint8_t *got = malloc(4u << 20);
    assert_fine(device->ops->arena_read(arena, 0, got, 4u << 20, &fault), &fault);
    for (size_t i = 0; i < sizeof(gaps) / sizeof(gaps[0]); i++)
        for (uint64_t at = gaps[i].offset; at < gaps[i].offset + gaps[i].bytes; at++)
            assert_int_equal(got[at], 0);
    for (uint64_t at = bytes; at < 4u << 20; at++)
        assert_int_equal(got[at], 0); /* to the end of the granule */
    free(got);
    device->ops->arena_free(arena);
    model_drop(&model);
    bench_close(&bench);
    assert_nothing_left();
}

/* An arena that is used again: what nothing is put into is cleared, and its export is what it was. */
static void test_reuse(void **state)
{
    (void)state;
    struct bench bench;
    struct device_fault fault;
    assert_fine(bench_open(&bench, &config, 3, &fault), &fault);
    struct device *device = bench.devices[0];
    const struct chunk_part part = {tensor_type_find(2), FORM_F16, 50000};
    struct model model;
    struct outcome outcome;
    struct arena *arena;
    struct device_export before, after;
    model_make(&model, &part, 1, 0, 4);
    assert_fine(arena_make(device, model.arena_bytes, &arena, &fault), &fault);
    model_put(&model, &bench.slots, arena, 4u << 20, true, &outcome);
    assert_fine(outcome.status, &outcome.fault);
    assert_fine(device->ops->arena_export(arena, &before, &fault), &fault);
    assert_fine(device->ops->arena_seal(arena, &fault), &fault);

    const uint64_t bytes = model.arena_bytes - 1000;
    const struct extent gaps[] = {{0, 64}, {70000, 5000}};
    assert_fine(device->ops->arena_reuse(arena, bytes, gaps, 2, &fault), &fault);
    assert_fine(device->ops->arena_export(arena, &after, &fault), &fault);
    assert_fine(device->ops->arena_seal(arena, &fault), &fault);
    assert_int_equal(after.fd, before.fd);
    assert_int_equal(after.handle_size, before.handle_size);
    const uint64_t whole = (bytes + device->granule - 1) / device->granule * device->granule;
    uint8_t *got = malloc(whole);
    assert_fine(device->ops->arena_read(arena, 0, got, whole, &fault), &fault);
    for (size_t i = 0; i < sizeof(gaps) / sizeof(gaps[0]); i++)
        for (uint64_t at = gaps[i].offset; at < gaps[i].offset + gaps[i].bytes; at++)
            assert_int_equal(got[at], 0);
    for (uint64_t at = bytes; at < whole; at++)
        assert_int_equal(got[at], 0);
    free(got);

    assert_fine(device->ops->arena_reuse(arena, model.arena_bytes, NULL, 0, &fault), &fault);
    model_put(&model, &bench.slots, arena, 4u << 20, true, &outcome);
    assert_fine(outcome.status, &outcome.fault);
    assert_fine(device->ops->arena_seal(arena, &fault), &fault);
    assert_fine(model_check(&model, device, arena, &fault), &fault);
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
    const struct chunk_part part = {tensor_type_find(2), FORM_F16, 1000};
    struct model model;
    uint64_t before, after;
    /* The first use makes the driver allocate memory for itself; do that now. */
    model_make(&model, &part, 1, 0, 9);
    load_and_check(&bench.slots, &model, 4u << 20, true);
    assert_fine(device->ops->memory_free(device, &before, &fault), &fault);
    assert_int_equal(arena_make(device, device->total * 2, &arena, &fault), -ENOMEM);
    assert_true(*fault.call && *fault.text && fault.code != 0);
    assert_int_equal(arena_make(device, UINT64_MAX, &arena, &fault), -ENOMEM);
    /* There is not enough memory left while the other arena has it. */
    assert_fine(arena_make(device, before / 4 * 3, &arena, &fault), &fault);
    assert_int_equal(arena_make(device, before / 2, &other, &fault), -ENOMEM);
    device->ops->arena_free(arena);
    assert_fine(device->ops->memory_free(device, &after, &fault), &fault);
    /* Not exactly: a driver keeps or releases a granule of its own. */
    assert_in_range(after, before - (32u << 20), before + (32u << 20));
    /* And the device still works. */
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
    struct chunk_part parts[6];
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
        assert_int_equal(export.fd >= 0, device->export_kind == EXPORT_FD);
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
    struct chunk_part parts[20];
    struct model model;
    assert_string_not_equal(bench.devices[0]->id, bench.devices[1]->id);
    assert_string_not_equal(bench.devices[0]->pci, bench.devices[1]->pci);
    assert_string_not_equal(bench.devices[0]->uuid, bench.devices[1]->uuid);
    assert_fine(slots_make(&second, bench.devices[1], 3, &fault), &fault);
    model_make(&model, parts, mixture(parts, 20, 8), 0, 8);
    load_and_check(&second, &model, 256u << 10, true);
    load_and_check(&bench.slots, &model, 256u << 10, true);
    if (rig.inject) {
        /* One device is lost. The other is not affected. */
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

/* Memory that cannot be exported is useless. Such a device is left out, and the fault names the call. */
static void test_exports_are_tried(void **state)
{
    (void)state;
    skip_on_hardware();
    struct bench bench;
    struct device_fault fault = {0};
    struct device_config how = quick_config;
    how.export_wish = EXPORT_WISH_IPC;
    rig.inject("hipIpcGetMemHandle:1+:1");
    assert_int_equal(bench_open(&bench, &how, 1, &fault), -EIO);
    assert_string_equal(fault.call, "hipIpcGetMemHandle");
    assert_string_equal(fault.text, "invalid argument");
    assert_int_equal(fault.code, 1);
    assert_nothing_left();

    rig.inject(NULL);
    fault = (struct device_fault){0};
    assert_fine(bench_open(&bench, &how, 1, &fault), &fault);
    assert_string_equal(fault.call, "");
    assert_int_equal(bench.devices[0]->export_kind, EXPORT_IPC);
    assert_string_equal(bench.devices[0]->no_descriptors, "");
    const int n = bench.n;
    bench_close(&bench);
    if (n < 2)
        return;
    rig.inject("hipIpcGetMemHandle:1:1");
    assert_fine(bench_open(&bench, &how, 1, &fault), &fault);
    rig.inject(NULL);
    assert_int_equal(bench.n, n - 1);
    assert_string_equal(bench.devices[0]->id, "hip:1");
    assert_string_equal(fault.call, "hipIpcGetMemHandle");
    bench_close(&bench);
    assert_nothing_left();
}

/* Whatever of it does not work: the device exports handles instead and says why; or it cannot be opened, if nothing but
 * descriptors will do. */
static void test_descriptors_are_tried(void **state)
{
    (void)state;
    skip_on_hardware();
    static const char *const calls[] = {"hipMemGetAllocationGranularity",
                                        "hipMemCreate",
                                        "hipMemAddressReserve",
                                        "hipMemMap",
                                        "hipMemSetAccess",
                                        "hipMemExportToShareableHandle",
                                        "hipRuntimeGetVersion",
                                        "hipMemImportFromShareableHandle"};
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        struct device_config how = quick_config;
        struct bench bench;
        struct device_fault fault = {0};
        char spec[64], why[96];
        snprintf(spec, sizeof(spec), "%s:1+:801", calls[i]);
        snprintf(why, sizeof(why), "%s: not supported (801)", calls[i]);
        rig.inject(spec);
        how.export_wish = EXPORT_WISH_FD;
        assert_int_equal(bench_open(&bench, &how, 1, &fault), -EIO);
        assert_string_equal(fault.call, calls[i]);
        assert_nothing_left();
        fault = (struct device_fault){0};
        how.export_wish = EXPORT_WISH_AUTO;
        assert_fine(bench_open(&bench, &how, 1, &fault), &fault);
        assert_string_equal(fault.call, "");
        assert_int_equal(bench.devices[0]->export_kind, EXPORT_IPC);
        assert_string_equal(bench.devices[0]->no_descriptors, why);
        assert_int_equal(bench.devices[0]->granule, 2u << 20);
        rig.inject(NULL);
        bench_close(&bench);
        assert_nothing_left();
    }
}

/* Memory that descriptors are made of gets no handle, which anybody could open. */
static void test_either_a_descriptor_or_a_handle(void **state)
{
    (void)state;
    struct bench bench;
    struct device_fault fault;
    struct device_export export;
    struct arena *arena;
    assert_fine(bench_open(&bench, &config, 1, &fault), &fault);
    struct device *device = bench.devices[0];
    assert_fine(arena_make(device, 1, &arena, &fault), &fault);
    assert_fine(device->ops->arena_export(arena, &export, &fault), &fault);
    print_message("exports %s\n", device->export_kind == EXPORT_FD ? "descriptors" : "handles");
    if (device->export_kind == EXPORT_FD) {
        assert_true(export.fd >= 0 && export.handle_size == 0);
        assert_true(fcntl(export.fd, F_GETFD) & FD_CLOEXEC);
    } else {
        assert_true(export.fd == -1 && export.handle_size == 64);
    }
    device->ops->arena_free(arena);
    if (device->export_kind == EXPORT_FD)
        assert_int_equal(fcntl(export.fd, F_GETFD), -1);
    bench_close(&bench);
    assert_nothing_left();
}

/* What was exported is taken back, though the arena is gone: the bytes are there without having been put. */
static void test_taken_back(void **state)
{
    (void)state;
    struct bench bench;
    struct device_fault fault;
    struct device_export export;
    struct outcome outcome;
    struct arena *arena, *again = NULL;
    assert_fine(bench_open(&bench, &config, 2, &fault), &fault);
    struct device *device = bench.devices[0];
    if (device->export_kind != EXPORT_FD) {
        assert_int_equal(device->ops->arena_adopt(device, 0, 1, &again, &export, &fault), -ENOTSUP);
        bench_close(&bench);
        print_message("exports handles\n");
        skip();
    }
    struct chunk_part parts[6];
    struct model model;
    model_make(&model, parts, mixture(parts, 6, 13), 0, 13);
    uint64_t before, after;
    load_and_check(&bench.slots, &model, 1u << 20, true);
    assert_fine(device->ops->memory_free(device, &before, &fault), &fault);
    assert_fine(arena_make(device, model.arena_bytes, &arena, &fault), &fault);
    model_put(&model, &bench.slots, arena, 1u << 20, true, &outcome);
    assert_fine(outcome.status, &outcome.fault);
    assert_fine(device->ops->arena_export(arena, &export, &fault), &fault);
    assert_fine(device->ops->arena_seal(arena, &fault), &fault);
    for (int i = 0; i < 3; i++) {
        const int kept = fcntl(export.fd, F_DUPFD_CLOEXEC, 0);
        device->ops->arena_free(arena);
        assert_true(device->ops->arena_adopt(device, kept, model.arena_bytes + (64u << 20), &again, &export, &fault) <
                    0);
        assert_true(*fault.call && *fault.text);
        assert_fine(device->ops->arena_adopt(device, kept, model.arena_bytes, &arena, &export, &fault), &fault);
        assert_int_equal(export.fd, kept);
        assert_fine(model_check(&model, device, arena, &fault), &fault);
    }
    device->ops->arena_free(arena);
    assert_int_equal(fcntl(export.fd, F_GETFD), -1);
    const int wrong = open("/dev/zero", O_RDWR | O_CLOEXEC);
    assert_true(device->ops->arena_adopt(device, wrong, model.arena_bytes, &again, &export, &fault) < 0);
    assert_int_equal(close(wrong), 0);
    assert_null(again);
    assert_fine(device->ops->memory_free(device, &after, &fault), &fault);
    assert_int_equal(before, after);
    model_drop(&model);
    bench_close(&bench);
    assert_nothing_left();
}

static void test_staging_setting(void **state)
{
    (void)state;
    static const struct {
        uint64_t staging;
        size_t bytes;
        unsigned n;
    } cases[] = {
        {0, 16u << 20, 3},         {128u << 20, 16u << 20, 8}, {63u << 20, 16u << 20, 3},
        {36u << 20, 12u << 20, 3}, {1u << 20, 340u << 10, 3},  {1, 64u << 10, 3},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct device_config how = {.workers = 4, .staging = cases[i].staging, OPENED_QUICKLY};
        struct bench bench;
        struct device_fault fault;
        assert_fine(bench_open(&bench, &how, 1, &fault), &fault);
        assert_int_equal(bench.devices[0]->slot_bytes, cases[i].bytes);
        assert_int_equal(bench.devices[0]->n_slots, cases[i].n);
        bench_close(&bench);
    }
}

/* The module says in its own words why there is no device. Texts of AMD's runtime differ between versions, and
 * CUDA's says of a missing driver that it is too old. */
static bool absence_is_told(const struct device_fault *fault)
{
    const char *why = getenv("ROCMFORGE_TEST_WHY");
    if (!why && fault->code == 35)
        why = "no NVIDIA driver";
    else if (!why && fault->code == 100 && strncmp(fault->call, "hip", 3) == 0)
        why = "no AMD GPU that ROCm can use";
    return *fault->call && *fault->text && fault->code != 0 && (!why || strstr(fault->text, why));
}

/* test_device_hip [TEST | -TEST | --absent]: all tests; those whose names match; those whose names do not match; or
 * a test for a machine without a device: what the module says there. */

int main(int argc, char **argv)
{
    const bool absent = argc > 1 && strcmp(argv[1], "--absent") == 0;
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    struct device_fault fault = {0};
    int r = bench_begin(&fault);
    if (r == -ENODEV)
        return absent ? !absence_is_told(&fault) : 77;
    if (r < 0)
        return 1;
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
        cmocka_unit_test(test_reuse),
        cmocka_unit_test(test_neighbours),
        cmocka_unit_test(test_given_up),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_again_and_again),
        cmocka_unit_test(test_two_devices),
        cmocka_unit_test(test_staging_setting),
        cmocka_unit_test(test_exports_are_tried),
        cmocka_unit_test(test_descriptors_are_tried),
        cmocka_unit_test(test_either_a_descriptor_or_a_handle),
        cmocka_unit_test(test_taken_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
