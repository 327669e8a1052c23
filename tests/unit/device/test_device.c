/* daemon/device/device.c: what a driver has free is counted together with what models have at the same moment. */
#include "daemon/device/device.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define TOTAL  1000u
#define ROUNDS 200

struct arena {
    uint64_t bytes;
};

/* A driver: what is free of TOTAL bytes. */
static atomic_uint_least64_t driver;
static int driver_error;

static int memory_free(struct device *device, uint64_t *ret, struct device_fault *ret_fault)
{
    (void)device;
    (void)ret_fault;
    if (driver_error == 0)
        *ret = atomic_load(&driver);
    return driver_error;
}

static void sleep_a_little(void)
{
    nanosleep(&(struct timespec){.tv_nsec = random() % 100000}, NULL);
}

static int arena_new(struct device *device, uint64_t bytes, const struct extent *gaps, size_t n_gaps,
                     struct arena **ret, struct device_fault *ret_fault)
{
    (void)device;
    (void)gaps;
    (void)n_gaps;
    (void)ret_fault;
    sleep_a_little();
    if (bytes > atomic_load(&driver))
        return -ENOMEM;
    *ret = malloc(sizeof(**ret));
    (*ret)->bytes = bytes;
    atomic_fetch_sub(&driver, bytes);
    sleep_a_little();
    return 0;
}

static void arena_free(struct arena *arena)
{
    sleep_a_little();
    atomic_fetch_add(&driver, arena->bytes);
    sleep_a_little();
    free(arena);
}

static const struct device_ops ops = {.memory_free = memory_free, .arena_new = arena_new, .arena_free = arena_free};

static void counts_models_too(void **state)
{
    (void)state;
    struct device device = {.ops = &ops, .kind = "hip", .total = TOTAL, .budget = TOTAL};
    struct arena *arena;
    uint64_t reach = 0;
    atomic_store(&driver, 700);
    assert_int_equal(device_survey(&device, &reach, NULL), 0);
    assert_int_equal(reach, 700);
    assert_int_equal(device_arena_new(&device, 300, NULL, 0, &arena, NULL), 0);
    assert_int_equal(device_survey(&device, &reach, NULL), 0);
    assert_int_equal(reach, 700);
    atomic_fetch_sub(&driver, 150); /* others take some */
    assert_int_equal(device_survey(&device, &reach, NULL), 0);
    assert_int_equal(reach, 550);
    struct arena *none;
    assert_int_equal(device_arena_new(&device, 300, NULL, 0, &none, NULL), -ENOMEM);
    assert_int_equal(device_survey(&device, &reach, NULL), 0);
    assert_int_equal(reach, 550);
    device_arena_free(&device, arena, 300);
    assert_int_equal(device_survey(&device, &reach, NULL), 0);
    assert_int_equal(reach, 550);
}

static void bounds(void **state)
{
    (void)state;
    struct device device = {.ops = &ops, .kind = "hip"};
    uint64_t reach = 77;
    driver_error = -EIO;
    assert_int_equal(device_survey(&device, &reach, NULL), -EIO);
    assert_int_equal(reach, 77);
    driver_error = 0;
    atomic_store(&driver, 0);
    assert_int_equal(device_survey(&device, &reach, NULL), 0);
    assert_int_equal(reach, 1); /* 0 is for one that was never asked */
    atomic_store(&driver, UINT64_MAX);
    atomic_store(&device.taken, 5);
    assert_int_equal(device_survey(&device, &reach, NULL), 0);
    assert_int_equal(reach, UINT64_MAX);
}

static void *come_and_go(void *context)
{
    struct device *device = context;
    for (int i = 0; i < ROUNDS; i++) {
        struct arena *arena;
        if (device_arena_new(device, 400, NULL, 0, &arena, NULL) < 0)
            abort();
        sleep_a_little();
        device_arena_free(device, arena, 400);
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
    return NULL;
}

/* While arenas come and go the sum stays what it is. */
static void while_arenas_move(void **state)
{
    (void)state;
    struct device device = {.ops = &ops, .kind = "hip"};
    pthread_t thread;
    atomic_store(&driver, 900);
    assert_int_equal(pthread_create(&thread, NULL, come_and_go, &device), 0);
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t reach = 0;
        assert_int_equal(device_survey(&device, &reach, NULL), 0);
        assert_int_equal(reach, 900);
        sleep_a_little();
    }
    pthread_join(thread, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts_models_too),
        cmocka_unit_test(bounds),
        cmocka_unit_test(while_arenas_move),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
