/* daemon/base/mailbox.c: what is posted comes in order, and what takes long leaves time for the loop's other work. */
#include "daemon/base/mailbox.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define LETTERS  6u
#define WASTE_NS 3000000u

struct fixture {
    uv_loop_t loop;
    struct mailbox *mailbox;
    struct parcel {
        struct letter letter;
        struct fixture *fixture;
    } parcels[LETTERS];
    size_t order[LETTERS], n;
    uint64_t takes;    /* nanoseconds that each delivery takes */
    size_t posts_more; /* the first delivery posts so many, from here on; 0: none */
    bool closes;       /* the first delivery closes the mailbox */
};

static void post(struct fixture *fixture, size_t from, size_t to)
{
    for (size_t i = from; i < to; i++)
        mailbox_post(fixture->mailbox, &fixture->parcels[i].letter);
}

static void deliver(struct letter *letter)
{
    struct parcel *parcel = (struct parcel *)letter;
    struct fixture *fixture = parcel->fixture;
    fixture->order[fixture->n++] = (size_t)(parcel - fixture->parcels);
    const uint64_t began = uv_hrtime();
    while (uv_hrtime() - began < fixture->takes)
        ;
    if (fixture->n == 1 && fixture->posts_more > 0)
        post(fixture, fixture->posts_more, LETTERS);
    if (fixture->n == 1 && fixture->closes) {
        mailbox_close(fixture->mailbox);
        fixture->mailbox = NULL;
    }
}

static int make(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    if (!fixture || uv_loop_init(&fixture->loop) < 0 || mailbox_new(&fixture->loop, &fixture->mailbox) < 0)
        return -1;
    for (size_t i = 0; i < LETTERS; i++)
        fixture->parcels[i] = (struct parcel){.letter = {.deliver = deliver}, .fixture = fixture};
    *state = fixture;
    return 0;
}

static int unmake(void **state)
{
    struct fixture *fixture = *state;
    mailbox_close(fixture->mailbox);
    uv_run(&fixture->loop, UV_RUN_DEFAULT);
    int left = uv_loop_close(&fixture->loop) < 0 || fixture->n != LETTERS;
    for (size_t i = 0; i < fixture->n; i++)
        left |= fixture->order[i] != i;
    free(fixture);
    return left;
}

/* unmake() looks at the order. */
static void all_that_takes_no_time(void **state)
{
    struct fixture *fixture = *state;
    post(fixture, 0, LETTERS);
    uv_run(&fixture->loop, UV_RUN_NOWAIT);
    assert_int_equal(fixture->n, LETTERS);
}

/* The loop comes round after each, without being woken, and what is posted meanwhile stays behind what waits. */
static void others_have_their_turn(void **state)
{
    struct fixture *fixture = *state;
    fixture->takes = WASTE_NS;
    fixture->posts_more = 3;
    post(fixture, 0, 3);
    for (size_t n = 1; n <= LETTERS; n++) {
        uv_run(&fixture->loop, UV_RUN_ONCE);
        assert_int_equal(fixture->n, n);
    }
}

static void the_end_brings_what_waits(void **state)
{
    struct fixture *fixture = *state;
    fixture->takes = WASTE_NS;
    fixture->posts_more = 3;
    post(fixture, 0, 3);
    uv_run(&fixture->loop, UV_RUN_ONCE);
    assert_int_equal(fixture->n, 1);
}

/* As when the last job of a daemon that stops is over. */
static void closed_by_what_it_brings(void **state)
{
    struct fixture *fixture = *state;
    fixture->closes = true;
    fixture->takes = WASTE_NS;
    post(fixture, 0, LETTERS);
    uv_run(&fixture->loop, UV_RUN_ONCE);
    assert_int_equal(fixture->n, LETTERS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(all_that_takes_no_time, make, unmake),
        cmocka_unit_test_setup_teardown(others_have_their_turn, make, unmake),
        cmocka_unit_test_setup_teardown(the_end_brings_what_waits, make, unmake),
        cmocka_unit_test_setup_teardown(closed_by_what_it_brings, make, unmake),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
