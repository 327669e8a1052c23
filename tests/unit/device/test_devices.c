/* daemon/device/devices.c: which devices a name means, and sets of them; awaited.c: what stands in for GPUs. */
#include "daemon/device/awaited.h"
#include "daemon/device/devices.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

/* Two GPUs and the host. */
struct fixture {
    struct devices all;
    struct device devices[3];
};

static int fixture_make(void **state)
{
    static const char *const ids[] = {"hip:0", "hip:1", "host"};
    static const char *const kinds[] = {"hip", "hip", "host"};
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    if (!fixture)
        return -1;
    for (size_t i = 0; i < 3; i++) {
        fixture->devices[i].kind = kinds[i];
        strcpy(fixture->devices[i].id, ids[i]);
        fixture->all.devices[fixture->all.n++] = &fixture->devices[i];
    }
    *state = fixture;
    return 0;
}

static int fixture_free(void **state)
{
    free(*state);
    return 0;
}

static void names(void **state)
{
    struct fixture *fixture = *state;
    struct device *devices = fixture->devices;
    struct device_set set;
    assert_int_equal(devices_named(&fixture->all, "auto", &set), 2);
    assert_true(device_set_has(&set, &devices[0]) && device_set_has(&set, &devices[1]));
    assert_false(device_set_has(&set, &devices[2]));
    assert_int_equal(devices_named(&fixture->all, "hip", &set), 2);
    assert_int_equal(devices_named(&fixture->all, "host", &set), 1);
    assert_int_equal(devices_named(&fixture->all, "hip:1", &set), 1);
    assert_ptr_equal(set.devices[0], &devices[1]);
    static const char *const unknown[] = {"cuda", "hip:2", "hip:", "", "h", "HOST"};
    for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++)
        assert_int_equal(devices_named(&fixture->all, unknown[i], &set), 0);
}

/* A lost device is named only where there is no other; the host stands in for GPUs, but only where any device may be
 * taken. */
static void lost(void **state)
{
    struct fixture *fixture = *state;
    struct device_set set;
    fixture->devices[0].failed = true;
    assert_int_equal(devices_named(&fixture->all, "hip", &set), 1);
    assert_ptr_equal(set.devices[0], &fixture->devices[1]);
    assert_int_equal(devices_named(&fixture->all, "hip:0", &set), 1);
    assert_ptr_equal(set.devices[0], &fixture->devices[0]);
    fixture->devices[1].failed = true;
    assert_int_equal(devices_named(&fixture->all, "auto", &set), 1);
    assert_ptr_equal(set.devices[0], devices_host(&fixture->all));
    assert_int_equal(devices_named(&fixture->all, "hip", &set), 2);
}

static void sets(void **state)
{
    struct fixture *fixture = *state;
    struct device *devices = fixture->devices;
    const struct device_set both = {.devices = {&devices[0], &devices[1]}, .n = 2};
    const struct device_set second = {.devices = {&devices[1]}, .n = 1}, host = {.devices = {&devices[2]}, .n = 1};
    assert_true(device_set_equal(&both, &both) && device_set_overlap(&both, &second));
    assert_false(device_set_equal(&both, &second));
    assert_false(device_set_overlap(&both, &host));
    assert_false(device_set_equal(&second, &host));
}

/* GPUs that were opened later come to stand in front, in their order. */
static void joined(void **state)
{
    struct fixture *fixture = *state;
    struct device *devices = fixture->devices;
    struct devices all = {.devices = {&devices[2]}, .n = 1};
    struct devices gpus = {.devices = {&devices[0], &devices[1]}, .n = 2};
    assert_int_equal(devices_join(&all, &gpus), 0);
    assert_int_equal(gpus.n, 0);
    assert_int_equal(all.n, 3);
    for (size_t i = 0; i < 3; i++)
        assert_ptr_equal(all.devices[i], &devices[i]);
    assert_int_equal(devices_join(&all, &gpus), 0); /* none */
    assert_int_equal(all.n, 3);
    gpus.n = DEVICES_MAX - 2;
    assert_int_equal(devices_join(&all, &gpus), -ENOSPC);
    assert_true(all.n == 3 && gpus.n == DEVICES_MAX - 2);
}

static void awaited(void **state)
{
    (void)state;
    struct awaited_gpus gpus = {0};
    const struct awaited_gpu first = {.id = "hip:0", .kind = "hip", .name = "x", .uuid = "A", .pci = "1", .total = 9};
    struct awaited_gpu other = first;
    struct device *device = awaited_get(&gpus, &first);
    assert_non_null(device);
    assert_true(device_is_awaited(device) && device->total == 9 && device->export_kind == EXPORT_FD);
    other.id = "hip:1"; /* by its UUID it is the same one */
    assert_ptr_equal(awaited_get(&gpus, &other), device);
    other.uuid = "B";
    assert_ptr_not_equal(awaited_get(&gpus, &other), device);
    assert_int_equal(gpus.n, 2);
    struct arena *arena;
    struct device_export export;
    const int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_int_equal(device_arena_adopt(device, fd, 5, &arena, &export, NULL), 0);
    assert_true(export.fd == fd && export.handle_size == 0);
    device_arena_free(device, arena, 5);
    assert_int_equal(fcntl(fd, F_GETFD), -1);
    awaited_close(&gpus);
    assert_int_equal(gpus.n, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(names, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(lost, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(sets, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(joined, fixture_make, fixture_free),
        cmocka_unit_test(awaited),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
