/* daemon/model/model.c: states, and who may see and end what. */
#include "daemon/model/model.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static void every_state_has_its_own_name(void **state)
{
    (void)state;
    for (enum model_state a = 0; a < MODEL_STATE_COUNT; a++)
        for (enum model_state b = 0; b <= MODEL_STATE_COUNT; b++)
            assert_true((a == b) == (strcmp(model_state_name(a), model_state_name(b)) == 0));
}

/* Clients see them. */
static void names_of_states(void **state)
{
    (void)state;
    static const char *const names[] = {
        [MODEL_OPENING] = "opening",   [MODEL_QUEUED] = "queued",       [MODEL_ALLOCATING] = "allocating",
        [MODEL_FILLING] = "filling",   [MODEL_SEALING] = "sealing",     [MODEL_RESIDENT] = "resident",
        [MODEL_DRAINING] = "draining", [MODEL_UNLOADING] = "unloading", [MODEL_FAILED] = "failed",
        [MODEL_SAVING] = "saving",     [MODEL_CACHED] = "cached",
    };
    assert_int_equal(sizeof(names) / sizeof(names[0]), MODEL_STATE_COUNT);
    for (enum model_state a = 0; a < MODEL_STATE_COUNT; a++)
        assert_string_equal(model_state_name(a), names[a]);
}

/* The drawing in model.h, a letter for each state that may follow. */
static void what_may_follow(void **state)
{
    (void)state;
    static const char letters[] = "oqafsRDUFSC";
    static const char *const follow[MODEL_STATE_COUNT] = {
        [MODEL_OPENING] = "qaUR", [MODEL_QUEUED] = "aU",     [MODEL_ALLOCATING] = "qfU", [MODEL_FILLING] = "sU",
        [MODEL_SEALING] = "RU",   [MODEL_RESIDENT] = "DUFS", [MODEL_DRAINING] = "U",     [MODEL_UNLOADING] = "C",
        [MODEL_FAILED] = "DU",    [MODEL_SAVING] = "C",      [MODEL_CACHED] = "a",
    };
    for (enum model_state from = 0; from < MODEL_STATE_COUNT; from++)
        for (enum model_state to = 0; to < MODEL_STATE_COUNT; to++)
            assert_int_equal(model_may_move(from, to), from == to || strchr(follow[from], letters[to]));
}

static void who_may_end_it(void **state)
{
    (void)state;
    const struct model model = {.uid = 12345};
    assert_true(model_may_end(&model, 12345));
    assert_false(model_may_end(&model, 12346));
    assert_true(model_may_end(&model, 0));
    assert_true(model_may_end(&model, geteuid()));
}

static void what_is_lost(void **state)
{
    (void)state;
    struct device device = {0};
    struct model model = {.device = &device, .state = MODEL_RESIDENT};
    assert_false(model_lost(&model));
    model_move(&model, MODEL_DRAINING);
    assert_false(model_lost(&model));
    device.failed = true;
    assert_true(model_lost(&model));
    model.state = MODEL_FAILED;
    assert_true(model_lost(&model));
    model_move(&model, MODEL_UNLOADING);
    assert_false(model_lost(&model)); /* nobody is asked about it any more */
}

/* Its name is free then, and what it is called instead nobody may ask for. */
static void losing_its_name(void **state)
{
    (void)state;
    struct model model = {.id = UINT64_MAX};
    memset(model.name, 'n', MODEL_NAME_MAX);
    assert_false(model_nameless(&model));
    model_lose_name(&model);
    assert_true(model_nameless(&model));
    assert_string_equal(model.name + MODEL_NAME_MAX, "#18446744073709551615");
    assert_true(model_name_check("n#1") < 0);
    model_lose_name(&model); /* once is enough */
    assert_string_equal(model.name + MODEL_NAME_MAX, "#18446744073709551615");
}

static void who_sees_it(void **state)
{
    (void)state;
    const uid_t own = getuid(), owner = own + 1000, stranger = own + 1001;
    const struct peer user = {.uid = owner}, other = {.uid = stranger}, root = {.uid = 0}, self = {.uid = own};
    struct model model = {.uid = owner, .access = ACCESS_PUBLIC};
    assert_int_equal(model_sight(&model, &user), SIGHT_OWN);
    assert_int_equal(model_sight(&model, &other), SIGHT_READER);
    assert_int_equal(model_sight(&model, &root), SIGHT_READER);
    model.access = ACCESS_PRIVATE;
    assert_int_equal(model_admit(&model, &other), 0);                  /* and changes nothing */
    for (enum access access = 0; access <= ACCESS_PRIVATE; access++) { /* no facts: nobody is known to read the file */
        model.access = access;
        assert_int_equal(model_sight(&model, &user), SIGHT_OWN);
        assert_int_equal(model_sight(&model, &other), SIGHT_NONE);
        assert_int_equal(model_sight(&model, &root), SIGHT_TRUSTED);
        assert_int_equal(model_sight(&model, &self), SIGHT_TRUSTED);
        assert_true(model_attachable(&model, &user));
        assert_int_equal(model_attachable(&model, &root), access == ACCESS_READERS);
        assert_false(model_attachable(&model, &other) || model_visible(&model, &other));
    }
    model.access = ACCESS_READERS;
    for (uid_t uid = 0; uid < MODEL_GUESTS_MAX; uid++) {
        const struct peer guest = {.uid = stranger + uid};
        assert_int_equal(model_admit(&model, &guest), 0);
        assert_int_equal(model_admit(&model, &guest), 0);
        assert_int_equal(model_sight(&model, &guest), SIGHT_READER);
    }
    const struct peer last = {.uid = stranger + MODEL_GUESTS_MAX};
    assert_int_equal(model_admit(&model, &last), -EMLINK);
    model.access = ACCESS_PRIVATE;
    assert_false(model_visible(&model, &other));
    free(model.guests);
}

static void what_keeps_it(void **state)
{
    (void)state;
    struct model model = {0};
    assert_false(model_in_use(&model));
    model_hold(&model);
    model_hold(&model);
    model_unhold(&model);
    assert_true(model_in_use(&model));
    model_unhold(&model);
    assert_false(model_in_use(&model));
    model.n_leases = 1;
    assert_true(model_in_use(&model));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_state_has_its_own_name),
        cmocka_unit_test(names_of_states),
        cmocka_unit_test(what_may_follow),
        cmocka_unit_test(who_may_end_it),
        cmocka_unit_test(what_is_lost),
        cmocka_unit_test(losing_its_name),
        cmocka_unit_test(who_sees_it),
        cmocka_unit_test(what_keeps_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
