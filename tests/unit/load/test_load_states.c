/* daemon/load/load.c: the states of a load, and which may follow which. */
#include "daemon/base/state.h"
#include "daemon/load/states.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

/* The drawing in load.h, a letter for each state. */
static const struct {
    const char *name;
    char letter;
    const char *follow;
} drawn[] = {
    [LOAD_IDENTIFYING] = {"identifying", 'i', "orD"}, /* new, cached, and joined or refused */
    [LOAD_OPENING] = {"opening", 'o', "rS"},
    [LOAD_RESERVING] = {"reserving", 'r', "aS"},
    [LOAD_ALLOCATING] = {"allocating", 'a', "rfS"}, /* back if the driver has less than the ledger */
    [LOAD_FILLING] = {"filling", 'f', "sS"},
    [LOAD_SEALING] = {"sealing", 's', "DS"},
    [LOAD_STOPPING] = {"stopping", 'S', "RD"},
    [LOAD_RELEASING] = {"releasing", 'R', "D"},
    [LOAD_DONE] = {"done", 'D', ""},
};

#define DRAWN (sizeof(drawn) / sizeof(drawn[0]))

static void names(void **state)
{
    (void)state;
    assert_int_equal(load_states.n, DRAWN);
    for (unsigned i = 0; i < DRAWN; i++)
        assert_string_equal(state_name(&load_states, i), drawn[i].name);
}

static void what_may_follow(void **state)
{
    (void)state;
    for (unsigned from = 0; from < DRAWN; from++)
        for (unsigned to = 0; to < DRAWN; to++)
            assert_int_equal(state_may_follow(&load_states, from, to), !!strchr(drawn[from].follow, drawn[to].letter));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names),
        cmocka_unit_test(what_may_follow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
