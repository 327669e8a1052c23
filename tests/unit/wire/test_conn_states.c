/* daemon/wire/conn.c: the states of a connection, and which may follow which. */
#include "daemon/base/state.h"
#include "daemon/wire/conn_state.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

/* A letter for each state. */
static const struct {
    const char *name;
    char letter;
    const char *follow;
} drawn[] = {
    [CONN_OPEN] = {"open", 'o', "ebc"},
    [CONN_ENDING] = {"ending", 'e', "bc"},
    [CONN_BROKEN] = {"broken", 'b', "c"}, /* the loop closes it later */
    [CONN_CLOSED] = {"closed", 'c', ""},
};

#define DRAWN (sizeof(drawn) / sizeof(drawn[0]))

static void names(void **state)
{
    (void)state;
    assert_int_equal(conn_states.n, DRAWN);
    for (unsigned i = 0; i < DRAWN; i++)
        assert_string_equal(state_name(&conn_states, i), drawn[i].name);
}

static void what_may_follow(void **state)
{
    (void)state;
    for (unsigned from = 0; from < DRAWN; from++)
        for (unsigned to = 0; to < DRAWN; to++)
            assert_int_equal(state_may_follow(&conn_states, from, to), !!strchr(drawn[from].follow, drawn[to].letter));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names),
        cmocka_unit_test(what_may_follow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
