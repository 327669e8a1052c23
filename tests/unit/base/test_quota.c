/* daemon/base/quota.c: charges add up by user and kind, limits hold, and what is returned can be had again. */
#include "daemon/base/quota.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define A ((uid_t)4000000001u)
#define B ((uid_t)4000000002u)
#define C ((uid_t)4000000003u)

static struct quota *make(void)
{
    struct quota_limits limits = QUOTA_DEFAULTS;
    limits.most[QUOTA_LOADS] = 2;
    limits.most[QUOTA_BYTES] = 100;
    struct quota *quota;
    assert_int_equal(quota_new(&limits, &quota), 0);
    return quota;
}

static void each_user_has_its_own(void **state)
{
    (void)state;
    struct quota *quota = make();
    struct quota_charge a1, a2, a3 = {0}, b;
    uint64_t limit = 0;
    assert_int_equal(quota_take(quota, A, QUOTA_LOADS, 1, &a1, &limit), 0);
    assert_int_equal(quota_take(quota, A, QUOTA_LOADS, 1, &a2, &limit), 0);
    assert_int_equal(quota_take(quota, A, QUOTA_LOADS, 1, &a3, &limit), -EDQUOT);
    assert_int_equal(limit, 2);
    assert_null(a3.user);
    assert_int_equal(quota_take(quota, B, QUOTA_LOADS, 2, &b, &limit), 0);
    quota_return(&a1);
    quota_return(&a1); /* once is enough */
    assert_int_equal(quota_take(quota, A, QUOTA_LOADS, 1, &a3, &limit), 0);
    quota_return(&a2);
    quota_return(&a3);
    quota_return(&b);
    quota_free(quota); /* asserts that nobody has anything */
}

/* One user has no more than stays free for the others, and a trusted one is not counted among them. */
static void all_users_together(void **state)
{
    (void)state;
    struct quota_limits limits = QUOTA_DEFAULTS;
    limits.most[QUOTA_LOADS] = 60;
    limits.all[QUOTA_LOADS] = 100;
    struct quota *quota;
    assert_int_equal(quota_new(&limits, &quota), 0);
    struct quota_charge a, b, c, own, none = {0};
    uint64_t limit = 0;
    assert_int_equal(quota_take(quota, A, QUOTA_LOADS, 51, &none, &limit), -EDQUOT);
    assert_int_equal(limit, 50);
    assert_int_equal(quota_take(quota, A, QUOTA_LOADS, 50, &a, &limit), 0);
    assert_int_equal(quota_take(quota, getuid(), QUOTA_LOADS, 500, &own, &limit), 0);
    assert_int_equal(quota_take(quota, B, QUOTA_LOADS, 26, &none, &limit), -EDQUOT);
    assert_int_equal(limit, 25);
    assert_int_equal(quota_take(quota, B, QUOTA_LOADS, 25, &b, &limit), 0);
    assert_false(quota_within(&a, &limit)); /* it was within, before the other came */
    assert_int_equal(limit, 37);
    assert_int_equal(quota_take(quota, C, QUOTA_LOADS, 12, &c, &limit), 0);
    quota_set(&a, 10);
    assert_true(quota_within(&a, &limit));
    assert_true(quota_may_grow(&b, 6, &limit));
    assert_false(quota_may_grow(&b, 15, &limit));
    quota_return(&a);
    quota_return(&b);
    quota_return(&c);
    quota_return(&own);
    assert_int_equal(quota_take_none(quota, A, QUOTA_LOADS, &a), 0);
    assert_true(quota_may_grow(&a, 50, &limit));
    quota_return(&a);
    quota_free(quota);
}

static void charges_grow(void **state)
{
    (void)state;
    struct quota *quota = make();
    struct quota_charge one, two, more;
    uint64_t limit = 0;
    assert_int_equal(quota_take(quota, A, QUOTA_BYTES, 0, &one, &limit), 0);
    assert_int_equal(quota_take(quota, A, QUOTA_BYTES, 0, &two, &limit), 0);
    quota_set(&one, 60);
    assert_true(quota_may_grow(&two, 40, &limit));
    assert_false(quota_may_grow(&two, 41, &limit));
    assert_int_equal(limit, 100);
    assert_false(quota_may_grow(&two, UINT64_MAX, &limit)); /* no sum wraps */
    quota_set(&two, 90);                                    /* what was taken is taken */
    assert_false(quota_may_grow(&one, 0, &limit));
    assert_int_equal(quota_take(quota, A, QUOTA_BYTES, 0, &more, &limit), -EDQUOT);
    quota_set(&one, 10);
    assert_true(quota_may_grow(&one, 0, &limit));
    quota_return(&one);
    quota_return(&two);
    quota_free(quota);
}

static void trusted_users_are_not_limited(void **state)
{
    (void)state;
    struct quota *quota = make();
    struct quota_charge root, own, nobody = {0};
    uint64_t limit;
    assert_int_equal(quota_take(quota, 0, QUOTA_LOADS, 1000, &root, &limit), 0);
    assert_int_equal(quota_take(quota, getuid(), QUOTA_LOADS, 1000, &own, &limit), 0);
    assert_true(quota_may_grow(&root, UINT64_MAX, &limit));
    quota_set(&nobody, 5);
    assert_true(quota_may_grow(&nobody, UINT64_MAX, &limit));
    quota_return(&nobody);
    quota_return(&root);
    quota_return(&own);
    quota_free(quota);
}

static void every_kind_has_its_own_name(void **state)
{
    (void)state;
    for (enum quota_kind a = 0; a < QUOTA_KINDS; a++)
        for (enum quota_kind b = 0; b < QUOTA_KINDS; b++)
            assert_true((a == b) == (strcmp(quota_name(a), quota_name(b)) == 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_user_has_its_own),
        cmocka_unit_test(all_users_together),
        cmocka_unit_test(charges_grow),
        cmocka_unit_test(trusted_users_are_not_limited),
        cmocka_unit_test(every_kind_has_its_own_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
