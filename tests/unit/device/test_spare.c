/* daemon/device/spare.c: which arenas of gone models are kept, who gets them, and when they are given up. */
#include "daemon/device/spare.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define GRANULE 10u
#define TOTAL   1000u

struct arena {
    uint64_t bytes;
};

/* A driver, and what it was asked to do. */
static struct {
    uint64_t available;
    int made, freed, reused, reuse_error;
} driver;

static int memory_free(struct device *device, uint64_t *ret, struct device_fault *ret_fault)
{
    (void)device;
    (void)ret_fault;
    *ret = driver.available;
    return 0;
}

static uint64_t up(uint64_t bytes)
{
    return (bytes + GRANULE - 1) / GRANULE * GRANULE;
}

static int arena_new(struct device *device, uint64_t bytes, const struct extent *gaps, size_t n_gaps,
                     struct arena **ret, struct device_fault *ret_fault)
{
    (void)device;
    (void)gaps;
    (void)n_gaps;
    (void)ret_fault;
    if (up(bytes) > driver.available)
        return -ENOMEM;
    *ret = malloc(sizeof(**ret));
    (*ret)->bytes = up(bytes);
    driver.available -= up(bytes);
    driver.made++;
    return 0;
}

static int arena_reuse(struct arena *arena, uint64_t bytes, const struct extent *gaps, size_t n_gaps,
                       struct device_fault *ret_fault)
{
    (void)gaps;
    (void)ret_fault;
    assert_int_equal(arena->bytes, up(bytes));
    assert_int_equal(n_gaps, 1);
    driver.reused++;
    return driver.reuse_error;
}

static void arena_free(struct arena *arena)
{
    driver.available += arena->bytes;
    driver.freed++;
    free(arena);
}

static const struct device_ops ops = {
    .memory_free = memory_free, .arena_new = arena_new, .arena_reuse = arena_reuse, .arena_free = arena_free};

static const struct spare_origin origin = {.model = "llama", .id = 7};
static const struct extent gap = {.bytes = 1};

static struct device device_of(uint64_t budget)
{
    memset(&driver, 0, sizeof(driver));
    driver.available = TOTAL;
    return (struct device){.ops = &ops, .kind = "hip", .total = TOTAL, .budget = budget, .granule = GRANULE};
}

static struct arena *make(struct device *device, uint64_t bytes)
{
    struct arena *arena;
    assert_int_equal(device_arena_new(device, bytes, &gap, 1, &arena, NULL), 0);
    return arena;
}

static uint64_t reach(struct device *device)
{
    uint64_t bytes;
    assert_int_equal(device_survey(device, &bytes, NULL), 0);
    return bytes;
}

static void used_again(void **state)
{
    (void)state;
    struct device device = device_of(TOTAL);
    struct arena *first = make(&device, 95);
    assert_true(device_spare(&device, first, 95, true, &origin, NULL, NULL));
    assert_int_equal(device_spare_bytes(&device), 100);
    assert_int_equal(reach(&device), TOTAL);
    assert_ptr_equal(make(&device, 91), first); /* the same size in granules */
    assert_int_equal(driver.reused, 1);
    assert_int_equal(driver.made, 1);
    assert_int_equal(device_spare_bytes(&device), 0);
    assert_int_equal(atomic_load(&device.taken), 91);
    device_arena_free(&device, first, 91);
}

static void another_size_gets_another(void **state)
{
    (void)state;
    struct device device = device_of(TOTAL);
    struct arena *first = make(&device, 95);
    assert_true(device_spare(&device, first, 95, true, &origin, NULL, NULL));
    struct arena *second = make(&device, 85);
    assert_true(second != first && driver.reused == 0 && driver.freed == 0);
    device_arena_free(&device, second, 85);
    device_spares_release(&device);
    assert_int_equal(driver.freed, 2);
    assert_int_equal(driver.available, TOTAL);
}

static void what_others_had_is_not_used_again(void **state)
{
    (void)state;
    struct device device = device_of(TOTAL);
    struct arena *first = make(&device, 100);
    assert_true(device_spare(&device, first, 100, false, &origin, NULL, NULL));
    struct arena *second = make(&device, 100);
    assert_ptr_not_equal(second, first);
    assert_int_equal(driver.reused, 0);
    device_arena_free(&device, second, 100);
    device_spares_release(&device);
}

static void given_up_when_memory_is_short(void **state)
{
    (void)state;
    struct device device = device_of(TOTAL);
    struct arena *first = make(&device, 400);
    assert_true(device_spare(&device, first, 400, true, &origin, NULL, NULL));
    struct arena *second = make(&device, 700); /* only 600 are free beside it */
    assert_int_equal(driver.freed, 1);
    assert_int_equal(device_spare_bytes(&device), 0);
    device_arena_free(&device, second, 700);
}

static void given_up_for_the_budget(void **state)
{
    (void)state;
    struct device device = device_of(500);
    struct arena *first = make(&device, 300);
    assert_true(device_spare(&device, first, 300, true, &origin, NULL, NULL));
    struct arena *second = make(&device, 210); /* the driver has so much, but models would take 510 */
    assert_int_equal(driver.freed, 1);
    device_arena_free(&device, second, 210);
}

static void not_kept_if_nothing_is_gained(void **state)
{
    (void)state;
    struct device device = device_of(TOTAL);
    struct arena *first = make(&device, 600); /* a load as large would not find other memory */
    assert_false(device_spare(&device, first, 600, true, &origin, NULL, NULL));
    device_arena_free(&device, first, 600);
    struct device host = device_of(TOTAL);
    host.kind = DEVICE_HOST;
    struct arena *second = make(&host, 10);
    assert_false(device_spare(&host, second, 10, true, &origin, NULL, NULL));
    device_arena_free(&host, second, 10);
}

static void cannot_be_cleared(void **state)
{
    (void)state;
    struct device device = device_of(TOTAL);
    struct arena *first = make(&device, 100);
    assert_true(device_spare(&device, first, 100, true, &origin, NULL, NULL));
    driver.reuse_error = -EIO;
    struct arena *second = make(&device, 100);
    assert_true(driver.reused == 1 && driver.freed == 1 && driver.made == 2);
    device_arena_free(&device, second, 100);
}

static uint64_t told;

static void gone(void *context, const struct device *device, const struct spare_origin *of, uint64_t bytes,
                 uint64_t free_before, uint64_t free_after)
{
    assert_ptr_equal(context, &told);
    assert_string_equal(of->model, "llama");
    assert_true(device->budget == TOTAL && bytes == 95);
    told = free_after - free_before;
}

static void who_is_told(void **state)
{
    (void)state;
    struct device device = device_of(TOTAL);
    assert_true(device_spare(&device, make(&device, 95), 95, false, &origin, gone, &told));
    assert_int_equal(told, 0);
    device_spares_release(&device);
    assert_int_equal(told, 100);
    told = 0;
    assert_true(device_spare(&device, make(&device, 95), 95, false, &origin, gone, &told));
    device_spares_drop(&device);
    assert_int_equal(told, 0);
    assert_int_equal(driver.available, TOTAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(used_again),
        cmocka_unit_test(another_size_gets_another),
        cmocka_unit_test(what_others_had_is_not_used_again),
        cmocka_unit_test(given_up_when_memory_is_short),
        cmocka_unit_test(given_up_for_the_budget),
        cmocka_unit_test(not_kept_if_nothing_is_gained),
        cmocka_unit_test(cannot_be_cleared),
        cmocka_unit_test(who_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
