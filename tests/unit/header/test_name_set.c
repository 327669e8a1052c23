/* daemon/header/name_set.c: a name that comes twice is told, and nothing else is. */
#include "daemon/header/name_set.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static bool add(struct name_set *set, const char *name)
{
    return name_set_add(set, name, strlen(name));
}

static void test_twice(void **state)
{
    struct name_set set;

    (void)state;
    assert_int_equal(name_set_init(&set, 4), 0);
    assert_true(add(&set, "one"));
    assert_true(add(&set, "two"));
    assert_false(add(&set, "one"));
    assert_false(add(&set, "two"));
    assert_true(add(&set, "three"));
    name_set_free(&set);
}

/* All bytes count, NUL too, and so does where a name ends. */
static void test_any_bytes(void **state)
{
    struct name_set set;

    (void)state;
    assert_int_equal(name_set_init(&set, 6), 0);
    assert_true(name_set_add(&set, "", 0));
    assert_false(name_set_add(&set, "", 0));
    assert_true(name_set_add(&set, "a", 1));
    assert_true(name_set_add(&set, "a\0b", 3));
    assert_true(name_set_add(&set, "a\0c", 3));
    assert_true(name_set_add(&set, "a\0", 2));
    assert_false(name_set_add(&set, "a\0c", 3));
    name_set_free(&set);
}

static void test_none(void **state)
{
    struct name_set set;

    (void)state;
    assert_int_equal(name_set_init(&set, 0), 0);
    name_set_free(&set);
    set = (struct name_set){0};
    name_set_free(&set);
}

/* As full as was said: every name finds its slot, and is found again. */
static void test_full(void **state)
{
    enum { N = 1 << 16 };
    static char names[N][8];
    struct name_set set;

    (void)state;
    for (size_t n = 1; n <= N; n *= 2) {
        assert_int_equal(name_set_init(&set, n), 0);
        for (size_t i = 0; i < n; i++) {
            snprintf(names[i], sizeof names[i], "%zu", i);
            assert_true(add(&set, names[i]));
        }
        for (size_t i = 0; i < n; i++)
            assert_false(add(&set, names[i]));
        name_set_free(&set);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_twice),
        cmocka_unit_test(test_any_bytes),
        cmocka_unit_test(test_none),
        cmocka_unit_test(test_full),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
