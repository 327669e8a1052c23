#include "daemon/wire/turns.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define US 1000u
#define MS 1000000u

/* Somebody who wants a turn again after each one, and takes `ns` each time. */
struct busy {
    struct turn turn;
    uint64_t ns;
    uint64_t served;
    unsigned n;
    unsigned most; /* turns that it wants */
};

struct fixture {
    uv_loop_t loop;
    struct turns *turns;
    uv_timer_t end;
};

static uint64_t longest; /* turn of the present test; more than asked for where the processor was taken away */

/* As equal as turns allow. */
static void assert_equal_shares(uint64_t a, uint64_t b)
{
    assert_true(a < b + longest + MS && b < a + longest + MS);
}

static void busy_run(struct turn *turn)
{
    struct busy *busy = (struct busy *)((char *)turn - offsetof(struct busy, turn));
    const uint64_t began = uv_hrtime();
    while (uv_hrtime() - began < busy->ns)
        ;
    const uint64_t took = uv_hrtime() - began;
    busy->served += took;
    longest = took > longest ? took : longest;
    if (++busy->n < busy->most)
        turn_wait(turn);
}

static void busy_begin(struct fixture *f, struct busy *busy, uid_t uid, uint64_t ns, unsigned most)
{
    *busy = (struct busy){.ns = ns, .most = most};
    assert_int_equal(turn_begin(f->turns, &busy->turn, uid, busy_run), 0);
}

static void end(uv_timer_t *timer)
{
    uv_stop(timer->loop);
}

/* Runs the loop for some time, also if there is nothing to do. */
static void run_for(struct fixture *f, unsigned ms)
{
    uv_update_time(&f->loop);
    uv_timer_start(&f->end, end, ms, 0);
    uv_run(&f->loop, UV_RUN_DEFAULT);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    assert_non_null(f);
    assert_int_equal(uv_loop_init(&f->loop), 0);
    assert_int_equal(turns_new(&f->loop, &f->turns), 0);
    uv_timer_init(&f->loop, &f->end);
    longest = 0;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    turns_close(f->turns);
    uv_close((uv_handle_t *)&f->end, NULL);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    free(f);
    return 0;
}

/* A user with fifty connections gets as much time as one with a single one. */
static void test_shares_of_users(void **state)
{
    struct fixture *f = *state;
    struct busy many[50], one;
    uint64_t of_many = 0;
    for (size_t i = 0; i < 50; i++) {
        busy_begin(f, &many[i], 1, 100 * US, UINT32_MAX);
        turn_wait(&many[i].turn);
    }
    busy_begin(f, &one, 2, 50 * US, UINT32_MAX);
    turn_wait(&one.turn);
    run_for(f, 200);
    for (size_t i = 0; i < 50; i++) {
        assert_true(many[i].n > 0);
        of_many += many[i].served;
        turn_end(&many[i].turn);
    }
    turn_end(&one.turn);
    assert_equal_shares(one.served, of_many);
}

/* Who was away gets no more than a fair share afterwards. */
static void test_nothing_is_saved_up(void **state)
{
    struct fixture *f = *state;
    struct busy always, later;
    busy_begin(f, &always, 1, 100 * US, UINT32_MAX);
    busy_begin(f, &later, 2, 100 * US, UINT32_MAX);
    turn_wait(&always.turn);
    run_for(f, 100);
    const uint64_t before = always.served;
    turn_wait(&later.turn);
    run_for(f, 100);
    const uint64_t since = always.served - before;
    turn_end(&always.turn);
    turn_end(&later.turn);
    assert_equal_shares(later.served, since);
}

/* Who asks seldom comes next, whatever waits. */
static void test_who_asks_seldom(void **state)
{
    struct fixture *f = *state;
    struct busy many[20], seldom;
    for (size_t i = 0; i < 20; i++) {
        busy_begin(f, &many[i], 1, 2 * MS, 2);
        turn_wait(&many[i].turn);
    }
    busy_begin(f, &seldom, 2, 0, 1);
    uv_run(&f->loop, UV_RUN_NOWAIT); /* two of them at most: the time for turns is over then */
    turn_wait(&seldom.turn);
    uv_run(&f->loop, UV_RUN_NOWAIT);
    assert_int_equal(seldom.n, 1);
    unsigned n = 0;
    for (size_t i = 0; i < 20; i++)
        n += many[i].n;
    assert_in_range(n, 1, 3);
    for (size_t i = 0; i < 20; i++)
        turn_end(&many[i].turn);
    turn_end(&seldom.turn);
}

static void ends_itself(struct turn *turn)
{
    turn_end(turn);
    turn_wait(turn); /* nothing: it was ended */
}

static void test_ends(void **state)
{
    struct fixture *f = *state;
    struct turn turn;
    struct busy waits;
    assert_int_equal(turn_begin(f->turns, &turn, 3, ends_itself), 0);
    turn_wait(&turn);
    turn_wait(&turn);
    busy_begin(f, &waits, 3, 0, 1);
    turn_wait(&waits.turn);
    turn_end(&waits.turn);
    turn_end(&waits.turn);
    run_for(f, 1);
    assert_null(turn.user);
    assert_false(turn.waiting);
    assert_int_equal(waits.n, 0);
    turn_end(&(struct turn){0});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_shares_of_users, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nothing_is_saved_up, setup, teardown),
        cmocka_unit_test_setup_teardown(test_who_asks_seldom, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ends, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
