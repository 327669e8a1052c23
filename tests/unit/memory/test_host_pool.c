/* daemon/memory/host_pool.c: runs of pinned memory are taken and given back; what cannot be pinned is said. */
#include "daemon/memory/host_pool.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define MIB ((uint64_t)1 << 20)

static int register_error, registered;

static int host_register(struct device *device, void *memory, size_t bytes, struct device_fault *ret_fault)
{
    (void)device;
    assert_true((uintptr_t)memory % 4096 == 0 && bytes == 16 * MIB);
    if (register_error < 0)
        return device_fault_set(ret_fault, register_error, "hipHostRegister", 2, "out of memory");
    registered++;
    return 0;
}

static void host_unregister(struct device *device, void *memory)
{
    (void)device;
    (void)memory;
    registered--;
}

static uint64_t host_has;

static int memory_free(struct device *device, uint64_t *ret, struct device_fault *ret_fault)
{
    (void)device;
    (void)ret_fault;
    *ret = host_has;
    return 0;
}

static const struct device_ops gpu_ops = {.host_register = host_register, .host_unregister = host_unregister};
static const struct device_ops host_ops = {.memory_free = memory_free};

struct fixture {
    uv_loop_t loop;
    struct core core;
    struct device gpu, other, host;
    struct devices devices;
    struct host_pool *pool;
};

static void pool_make(struct fixture *fixture, uint64_t bytes)
{
    fixture->pool = host_pool_new(&fixture->core, &fixture->devices, bytes);
    while (fixture->pool && host_pool_state(fixture->pool) == HOST_POOL_MAKING && fixture->core.n_jobs > 0)
        uv_run(&fixture->loop, UV_RUN_ONCE);
}

static int begin(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    fixture->gpu = (struct device){.ops = &gpu_ops, .kind = "hip"};
    fixture->other = (struct device){.ops = &gpu_ops, .kind = "cuda"};
    fixture->host = (struct device){.ops = &host_ops, .kind = DEVICE_HOST};
    fixture->devices = (struct devices){.devices = {&fixture->gpu, &fixture->host}, .n = 2};
    host_has = (uint64_t)1 << 40;
    register_error = registered = 0;
    assert_int_equal(uv_loop_init(&fixture->loop), 0);
    assert_int_equal(core_init(&fixture->core, &fixture->loop), 0);
    assert_int_equal(workers_begin(fixture->core.queue, 1), 0);
    *state = fixture;
    return 0;
}

static int end(void **state)
{
    struct fixture *fixture = *state;
    host_pool_free(fixture->pool);
    assert_int_equal(registered, 0);
    core_close(&fixture->core);
    uv_run(&fixture->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&fixture->loop), 0);
    free(fixture);
    return 0;
}

static void runs(void **state)
{
    struct fixture *fixture = *state;
    pool_make(fixture, 17 * MIB); /* whole huge pages of it */
    struct host_pool *pool = fixture->pool;
    assert_int_equal(host_pool_state(pool), HOST_POOL_READY);
    uint8_t *a = host_pool_take(pool, 1), *b = host_pool_take(pool, 4 * MIB), *c = host_pool_take(pool, 9 * MIB);
    assert_true(a && b == a + 2 * MIB && c == b + 4 * MIB);
    memset(c, 1, 10 * MIB);
    assert_null(host_pool_take(pool, 1));
    host_pool_give(pool, b);
    assert_null(host_pool_take(pool, 5 * MIB));
    assert_ptr_equal(host_pool_take(pool, 3 * MIB), b);
    host_pool_give(pool, a);
    host_pool_give(pool, b);
    assert_ptr_equal(host_pool_take(pool, 6 * MIB), a); /* neighbours are one run again */
    host_pool_give(pool, a);
    host_pool_give(pool, c);
    assert_null(host_pool_take(pool, 16 * MIB + 1));
    a = host_pool_take(pool, 16 * MIB);
    assert_non_null(a);
    host_pool_give(pool, a);
}

static void whom_it_serves(void **state)
{
    struct fixture *fixture = *state;
    assert_false(host_pool_serves(NULL, &fixture->gpu));
    assert_int_equal(host_pool_state(NULL), HOST_POOL_NONE);
    pool_make(fixture, 16 * MIB);
    assert_true(host_pool_serves(fixture->pool, &fixture->gpu));
    assert_false(host_pool_serves(fixture->pool, &fixture->other)); /* another runtime does not know the memory */
    fixture->gpu.failed = true;
    assert_false(host_pool_serves(fixture->pool, &fixture->gpu));
}

static void cannot_be_pinned(void **state)
{
    struct fixture *fixture = *state;
    register_error = -ENOMEM;
    pool_make(fixture, 16 * MIB);
    assert_int_equal(host_pool_state(fixture->pool), HOST_POOL_NONE);
    assert_false(host_pool_serves(fixture->pool, &fixture->gpu));
}

static void host_is_full(void **state)
{
    struct fixture *fixture = *state;
    host_has = 20 * MIB;
    pool_make(fixture, 16 * MIB);
    assert_int_equal(host_pool_state(fixture->pool), HOST_POOL_NONE);
    assert_int_equal(registered, 0);
}

static void no_gpu(void **state)
{
    struct fixture *fixture = *state;
    fixture->devices = (struct devices){.devices = {&fixture->host}, .n = 1};
    pool_make(fixture, 16 * MIB);
    assert_null(fixture->pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(runs, begin, end),
        cmocka_unit_test_setup_teardown(whom_it_serves, begin, end),
        cmocka_unit_test_setup_teardown(cannot_be_pinned, begin, end),
        cmocka_unit_test_setup_teardown(host_is_full, begin, end),
        cmocka_unit_test_setup_teardown(no_gpu, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
