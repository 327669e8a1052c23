/* daemon/base/log.c: how many lines clients may cause. */
#include "daemon/base/log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define BEGAN 5000000000u

static void spend(struct log_share *share, uint64_t now)
{
    unsigned held;
    for (unsigned i = 0; i < LOG_CLIENT_LINES; i++) {
        assert_true(log_share_take(share, now, &held));
        assert_int_equal(held, 0);
    }
}

static void shares(void **state)
{
    (void)state;
    struct log_share share = {0};
    unsigned held;
    spend(&share, BEGAN);
    for (unsigned i = 0; i < 7; i++)
        assert_false(log_share_take(&share, BEGAN + i, &held));
    assert_false(log_share_take(&share, BEGAN + LOG_CLIENT_NS - 1, &held));
    /* The time is over: what was left out is told, once. */
    assert_true(log_share_take(&share, BEGAN + LOG_CLIENT_NS, &held));
    assert_int_equal(held, 8);
    assert_true(log_share_take(&share, BEGAN + LOG_CLIENT_NS, &held));
    assert_int_equal(held, 0);
}

static void few_are_all_said(void **state)
{
    (void)state;
    struct log_share share = {0};
    for (uint64_t now = BEGAN; now < BEGAN + 5 * LOG_CLIENT_NS; now += LOG_CLIENT_NS)
        spend(&share, now);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shares),
        cmocka_unit_test(few_are_all_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
