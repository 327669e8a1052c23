/* daemon/base/counters.c: what happened is counted once, in its place, and no number of limits exceeds the table. */
#include "daemon/base/counters.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static void loads_fall_into_buckets(void **state)
{
    (void)state;
    struct counters counters = {0};
    const struct histogram *seconds = &counters.load_seconds[OUTCOME_LOADED];
    counters_load(&counters, OUTCOME_LOADED, 5, 10000000); /* what is equal to a bound is in its bucket */
    counters_load(&counters, OUTCOME_LOADED, 7, 10000001);
    counters_load(&counters, OUTCOME_LOADED, 0, UINT64_MAX);
    assert_int_equal(counters.loads[OUTCOME_LOADED], 3);
    assert_int_equal(counters.load_bytes[OUTCOME_LOADED], 12);
    assert_int_equal(counters.loads[OUTCOME_FAILED], 0);
    assert_int_equal(seconds->buckets[0], 1);
    assert_int_equal(seconds->buckets[1], 1);
    assert_int_equal(seconds->buckets[COUNTERS_BUCKETS - 1], 1);
    assert_int_equal(seconds->n, 3);
    for (size_t i = 1; i < COUNTERS_BUCKETS; i++)
        assert_true(histogram_bound(i - 1) < histogram_bound(i));
    assert_true(isinf(histogram_bound(COUNTERS_BUCKETS - 1)));
}

static void refusals_are_counted_by_limit(void **state)
{
    (void)state;
    struct counters counters = {0};
    counters_error(&counters, WIRE_LimitExceeded, "user-loads");
    counters_error(&counters, WIRE_LimitExceeded, "user-leases");
    counters_error(&counters, WIRE_LimitExceeded, "user-loads");
    counters_error(&counters, WIRE_LimitExceeded, "");
    counters_error(&counters, WIRE_ModelNotFound, NULL);
    assert_int_equal(counters.errors[WIRE_LimitExceeded], 4);
    assert_int_equal(counters.errors[WIRE_ModelNotFound], 1);
    assert_string_equal(counters.refusals[0].limit, "user-loads");
    assert_int_equal(counters.refusals[0].n, 2);
    assert_string_equal(counters.refusals[1].limit, "user-leases");
    assert_int_equal(counters.refusals[1].n, 1);
    assert_string_equal(counters.refusals[2].limit, "");
}

static void there_may_be_more_limits_than_room(void **state)
{
    (void)state;
    struct counters counters = {0};
    char limit[64];
    for (unsigned i = 0; i < 2 * COUNTERS_LIMITS; i++) {
        snprintf(limit, sizeof(limit), "%u-with-a-name-that-is-longer-than-any-entry", i);
        counters_error(&counters, WIRE_LimitExceeded, limit);
        counters_error(&counters, WIRE_LimitExceeded, limit);
    }
    assert_int_equal(counters.errors[WIRE_LimitExceeded], 4 * COUNTERS_LIMITS);
    for (unsigned i = 0; i < COUNTERS_LIMITS; i++)
        assert_int_equal(counters.refusals[i].n, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loads_fall_into_buckets),
        cmocka_unit_test(refusals_are_counted_by_limit),
        cmocka_unit_test(there_may_be_more_limits_than_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
