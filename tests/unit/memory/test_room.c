/* daemon/memory/room.c against a brute-force choice over all sets of models, on random states. */
#include "daemon/memory/room.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define CANDIDATES_MAX 8
#define ROUNDS         20000

static uint64_t up_to(uint64_t most)
{
    return (uint64_t)random() % (most + 1);
}

/* The candidate was used after the others; of two used at once the one that stands behind. */
static unsigned rank(const struct candidate *candidates, size_t n, size_t index)
{
    unsigned older = 0;
    for (size_t i = 0; i < n; i++)
        older += candidates[i].last_used < candidates[index].last_used ||
                 (candidates[i].last_used == candidates[index].last_used && i < index);
    return older;
}

/* What a set frees. Its bits are the candidates' ranks. */
static uint64_t freed(const struct candidate *candidates, size_t n, unsigned set)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < n; i++)
        if (set >> rank(candidates, n, i) & 1)
            bytes += candidates[i].bytes;
    return bytes;
}

/* Bytes promised to everybody, those that are asked for included, once a set is gone, and perhaps what departs. */
static int holds(const struct room *room, uint64_t bytes, uint64_t gone)
{
    return room->used + room->ahead + bytes <= room->limit + gone;
}

/* The set that has to go: written as a number, the least of those that suffice. */
static int brute_force(const struct room *room, uint64_t bytes, const struct candidate *candidates, size_t n,
                       unsigned *ret)
{
    const unsigned all = (1u << n) - 1;
    if (!holds(room, bytes, freed(candidates, n, all) + room->departing))
        return -ENOSPC;
    unsigned set = 0;
    while (!holds(room, bytes, freed(candidates, n, set)))
        if (set++ == all)
            return -EAGAIN;
    /* While something departs nobody is chosen: it is seen then who has to go. */
    if (set != 0 && room->departing > 0)
        return -EAGAIN;
    *ret = set;
    return 0;
}

static void agrees_with_brute_force(void **state)
{
    (void)state;
    srandom(1);
    unsigned outcomes[3] = {0};
    for (int round = 0; round < ROUNDS; round++) {
        struct candidate candidates[CANDIDATES_MAX] = {0};
        const size_t n = (size_t)up_to(CANDIDATES_MAX);
        uint64_t evictable = 0;
        for (size_t i = 0; i < n; i++) {
            candidates[i] = (struct candidate){1 + up_to(19), up_to(5), random() & 1};
            evictable += candidates[i].bytes;
        }
        struct room room = {.limit = up_to(150), .departing = random() & 1 ? up_to(30) : 0};
        room.used = evictable + room.departing + up_to(60); /* the rest is in use */
        room.ahead = random() & 1 ? up_to(40) : 0;
        const uint64_t bytes = up_to(60);
        struct room_shortage shortage;
        unsigned expected = 0, actual = 0;
        const int can = brute_force(&room, bytes, candidates, n, &expected);
        assert_int_equal(room_choose(&room, bytes, candidates, n, &shortage), can);
        for (size_t i = 0; i < n; i++)
            if (candidates[i].chosen)
                actual |= 1u << rank(candidates, n, i);
        assert_int_equal(actual, expected);
        outcomes[can == 0 ? 0 : can == -EAGAIN ? 1 : 2]++;

        /* What is told is what could be had: so much fits at once, and with all evictions. */
        assert_int_equal(shortage.available > 0, holds(&room, 1, 0));
        if (shortage.available > 0)
            assert_true(holds(&room, shortage.available, 0) && !holds(&room, shortage.available + 1, 0));
        const uint64_t most = shortage.available + shortage.evictable;
        if (most > 0)
            assert_true(holds(&room, most, evictable) && !holds(&room, most + 1, evictable));
    }
    for (int i = 0; i < 3; i++)
        assert_in_range(outcomes[i], ROUNDS / 20, ROUNDS); /* each answer was asked for */
}

static void no_sum_wraps(void **state)
{
    (void)state;
    struct candidate candidate = {10, 1, true};
    struct room room = {.limit = UINT64_MAX, .used = 20};
    struct room_shortage shortage;
    assert_int_equal(room_choose(&room, UINT64_MAX, &candidate, 1, &shortage), 0);
    assert_false(candidate.chosen);
    room.limit = 100;
    assert_int_equal(room_choose(&room, UINT64_MAX, &candidate, 1, &shortage), -ENOSPC);
    room.ahead = UINT64_MAX;
    assert_int_equal(room_choose(&room, 1, &candidate, 1, &shortage), -ENOSPC);
    assert_int_equal(shortage.available, 0);
    assert_int_equal(shortage.evictable, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_brute_force),
        cmocka_unit_test(no_sum_wraps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
