/* daemon/keep/store_room.h: the store is never said to have more than it takes, and each user has a share. */
#include "daemon/keep/store.h"
#include "daemon/keep/store_room.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define A ((uid_t)4000000001u)
#define B ((uid_t)4000000002u)

static void a_full_store(void **state)
{
    (void)state;
    struct store_room room;
    struct store_charge a, b;
    setenv("FDSTORE", "10", 1);
    store_room_init(&room, NULL);
    unsetenv("FDSTORE");
    assert_int_equal(store_room_begin(&room, A, &a), 0);
    assert_int_equal(store_room_begin(&room, B, &b), 0);
    assert_int_equal(store_room_claim(&room, &a, 4, 0), 0);
    assert_int_equal(store_room_claim(&room, &b, 6, 0), -ENOSPC); /* one stays free, for exchanges */
    assert_int_equal(b.n, 0);
    assert_int_equal(store_room_claim(&room, &b, 5, 0), 0);
    assert_int_equal(store_room_claim(&room, &a, 4, 1), 0);
    assert_int_equal(store_room_claim(&room, &a, 4, 2), -ENOSPC);
    assert_int_equal(a.n, 4);
    assert_false(room.freed);
    store_room_end(&room, &b);
    assert_true(room.freed);
    assert_int_equal(store_room_claim(&room, &a, 8, 2), 0);
    store_room_end(&room, &a);
    assert_int_equal(room.used, 0);
}

static void users_have_shares(void **state)
{
    (void)state;
    const struct quota_limits limits = QUOTA_DEFAULTS;
    struct quota *quota;
    struct store_room room;
    struct store_charge a, b, root;
    assert_int_equal(quota_new(&limits, &quota), 0);
    store_room_init(&room, quota);
    assert_int_equal(room.most, STORE_MAX);
    assert_int_equal(store_room_begin(&room, A, &a), 0);
    assert_int_equal(store_room_begin(&room, B, &b), 0);
    assert_int_equal(store_room_begin(&room, 0, &root), 0);
    assert_int_equal(store_room_claim(&room, &a, QUOTA_KEPT_DEFAULT + 1, 0), -EDQUOT);
    assert_int_equal(store_room_claim(&room, &a, QUOTA_KEPT_DEFAULT, 0), 0);
    assert_int_equal(store_room_claim(&room, &b, QUOTA_KEPT_DEFAULT, 0), -EDQUOT); /* others have less left then */
    assert_int_equal(store_room_claim(&room, &b, QUOTA_KEPT_DEFAULT / 2, 0), 0);
    assert_int_equal(store_room_claim(&room, &root, STORE_MAX - QUOTA_ALL_KEPT, 0), 0);
    store_room_set(&room, &a, 2 * QUOTA_KEPT_DEFAULT); /* the store had so many before a restart */
    assert_int_equal(store_room_claim(&room, &b, 1, 1), -ENOSPC);
    store_room_end(&room, &a);
    assert_int_equal(store_room_claim(&room, &b, 1, 1), 0);
    store_room_end(&room, &b);
    store_room_end(&room, &root);
    quota_free(quota);
}

/* What nobody can parse is no limit; and none is larger than what execve() takes. */
static void the_service_manager_says_how_many(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t most;
    } cases[] = {{"0", 0},        {"7", 7},          {"2560", 2560},    {"4096", STORE_MAX},
                 {"", STORE_MAX}, {"-1", STORE_MAX}, {"9x", STORE_MAX}, {"99999999999999999999999", STORE_MAX}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        setenv("FDSTORE", cases[i].text, 1);
        assert_int_equal(store_most(), cases[i].most);
    }
    unsetenv("FDSTORE");
    assert_int_equal(store_most(), STORE_MAX);
}

static void no_name_is_longer(void **state)
{
    (void)state;
    char text[128];
    struct store_name name;
    const int n = snprintf(text, sizeof(text), "rocmforge-%016x-f%u", 0xabcdefu, UINT32_MAX);
    assert_true(store_name_parse(text, &name));
    assert_int_equal(name.number, UINT32_MAX);
    assert_true((size_t)n + 1 <= STORE_NAME_SIZE);
    assert_true(STORE_MAX * STORE_NAME_SIZE <= STORE_NAMES_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_full_store),
        cmocka_unit_test(users_have_shares),
        cmocka_unit_test(the_service_manager_says_how_many),
        cmocka_unit_test(no_name_is_longer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
