/* daemon/memory/device_choice.c: which of several devices a model goes to. */
#include "daemon/memory/device_choice.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static bool decodes_nothing(struct device *device, const struct tensor_type *type, enum form form)
{
    (void)device;
    (void)type;
    (void)form;
    return false;
}

static bool decodes_all(struct device *device, const struct tensor_type *type, enum form form)
{
    (void)device;
    (void)type;
    (void)form;
    return true;
}

static const struct device_ops with_kernels = {.decodes = decodes_all};
static const struct device_ops without = {.decodes = decodes_nothing};

/* Two GPUs and the host, with 100 bytes each. */
struct fixture {
    struct devices all;
    struct registry registry;
    struct residency residency;
    struct device devices[3];
};

static int fixture_make(void **state)
{
    static const char *const ids[] = {"hip:0", "hip:1", "host"};
    static const char *const kinds[] = {"hip", "hip", "host"};
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    if (!fixture)
        return -1;
    registry_init(&fixture->registry, NULL);
    fixture->residency.registry = &fixture->registry;
    fixture->residency.devices = &fixture->all;
    for (size_t i = 0; i < 3; i++) {
        struct device *device = &fixture->devices[i];
        *device = (struct device){.ops = &with_kernels,
                                  .kind = kinds[i],
                                  .slot_bytes = 4096,
                                  .part_bytes = 4096,
                                  .granule = 256,
                                  .budget = 100};
        strcpy(device->id, ids[i]);
        fixture->all.devices[fixture->all.n++] = device;
    }
    *state = fixture;
    return 0;
}

static int fixture_free(void **state)
{
    free(*state);
    return 0;
}

/* The host stands in for GPUs, but only where any device may be taken. */
static void lost(void **state)
{
    struct fixture *fixture = *state;
    struct device *devices = fixture->devices;
    struct device_set set;
    devices[0].failed = true;
    assert_int_equal(devices_named(&fixture->all, "hip", &set), 1);
    assert_ptr_equal(device_choice_roomiest(&set), &devices[1]);
    assert_int_equal(devices_named(&fixture->all, "hip:0", &set), 1);
    assert_null(device_choice_roomiest(&set));
    devices[1].failed = true;
    assert_int_equal(devices_named(&fixture->all, "auto", &set), 1);
    assert_ptr_equal(device_choice_roomiest(&set), &devices[2]);
    assert_int_equal(devices_named(&fixture->all, "hip", &set), 2);
    assert_null(device_choice_roomiest(&set));
}

static const uint64_t nobody[DEVICES_MAX]; /* came earlier */

static void place(struct fixture *fixture, uint64_t bytes, size_t expected)
{
    struct model_header model = {0};
    const struct plan plan = {.model = &model, .arena_bytes = bytes};
    struct device_set set;
    assert_int_equal(devices_named(&fixture->all, "auto", &set), 2);
    for (size_t first = 0; first < 2; first++) /* which one it was cut for does not matter */
        assert_ptr_equal(device_choose(&fixture->residency, &set, &fixture->devices[first], &plan, nobody),
                         &fixture->devices[expected]);
}

static void where_the_most_is_free(void **state)
{
    struct fixture *fixture = *state;
    struct device *devices = fixture->devices;
    place(fixture, 50, 0);
    devices[0].used = 1;
    place(fixture, 50, 1);
    devices[1].reach = 60; /* others have the rest */
    place(fixture, 50, 0);
    devices[0].used = 80;
    place(fixture, 50, 1);
    devices[1].failed = true;
    struct device_set set = {.devices = {&devices[0], &devices[1]}, .n = 2};
    struct model_header model = {0};
    const struct plan plan = {.model = &model, .arena_bytes = 50};
    assert_ptr_equal(device_choose(&fixture->residency, &set, &devices[1], &plan, nobody), &devices[0]);
}

static void before_others_have_to_go(void **state)
{
    struct fixture *fixture = *state;
    struct device *devices = fixture->devices;
    struct model idle = {.state = MODEL_RESIDENT, .device = &devices[0], .reserved = 60};
    TAILQ_INSERT_TAIL(&fixture->registry.models, &idle, link);
    devices[0].used = 60;
    devices[1].used = 50;
    place(fixture, 50, 1); /* fits there */
    place(fixture, 60, 0); /* fits nowhere, but the first has one that can go */
    idle.pinned = true;
    place(fixture, 60, 1); /* nobody can help: where the most is */
    idle.state = MODEL_UNLOADING;
    place(fixture, 60, 0); /* or wait for what is on its way out */
    TAILQ_REMOVE(&fixture->registry.models, &idle, link);
}

/* What those wait for who came earlier is not there for others. */
static void behind_others(void **state)
{
    struct fixture *fixture = *state;
    const struct device_set set = {.devices = {&fixture->devices[0], &fixture->devices[1]}, .n = 2};
    const uint64_t ahead[] = {60, 0};
    struct model_header model = {0};
    struct plan plan = {.model = &model, .arena_bytes = 50};
    fixture->devices[1].used = 40;
    assert_ptr_equal(device_choose(&fixture->residency, &set, &fixture->devices[0], &plan, nobody),
                     &fixture->devices[0]);
    assert_ptr_equal(device_choose(&fixture->residency, &set, &fixture->devices[0], &plan, ahead),
                     &fixture->devices[1]);
}

/* A plan with blocks to decode, cut to be decoded by the device, is none for one that has no kernels, or other slots.
 */
static void only_where_it_can_be_filled(void **state)
{
    struct fixture *fixture = *state;
    struct device *devices = fixture->devices;
    struct header_tensor tensor = {.type = tensor_type_find(2)};
    struct model_header model = {.n_tensors = 1, .tensors = &tensor};
    struct tensor_place place = {.convert = FORM_F16};
    struct plan plan = {.model = &model, .places = &place, .arena_bytes = 50, .verbatim = true};
    const struct device_set set = {.devices = {&devices[0], &devices[1]}, .n = 2};
    devices[0].used = 10;
    devices[1].ops = &without;
    assert_ptr_equal(device_choose(&fixture->residency, &set, &devices[0], &plan, nobody), &devices[0]);
    assert_ptr_equal(device_choose(&fixture->residency, &set, &devices[1], &plan, nobody),
                     &devices[1]); /* by the CPU, then */
    struct chunk chunk;
    plan.verbatim = false; /* cut so that the CPU decodes */
    plan.chunks = &chunk;
    assert_ptr_equal(device_choose(&fixture->residency, &set, &devices[0], &plan, nobody), &devices[1]);
    devices[1].slot_bytes *= 2;
    assert_ptr_equal(device_choose(&fixture->residency, &set, &devices[0], &plan, nobody), &devices[0]);
    assert_ptr_equal(device_choose(&fixture->residency, &set, &devices[1], &plan, nobody), &devices[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(lost, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(where_the_most_is_free, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(before_others_have_to_go, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(behind_others, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(only_where_it_can_be_filled, fixture_make, fixture_free),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
