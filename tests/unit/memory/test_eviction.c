/* daemon/memory/eviction.c against a brute-force choice over all sets, on random states. */
#include "daemon/memory/eviction.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define CANDIDATES_MAX 10
#define ROUNDS         20000

/* Position of a candidate by age: how many are older. */
static unsigned rank(const struct candidate *candidates, size_t n, size_t index)
{
    unsigned older = 0;
    for (size_t i = 0; i < n; i++)
        older += candidates[i].last_used < candidates[index].last_used ||
                 (candidates[i].last_used == candidates[index].last_used && i < index);
    return older;
}

/* Of all sets that suffice, the least when written as a number whose highest bit is the most recently used. */
static int brute_force(const struct candidate *candidates, size_t n, uint64_t needed, unsigned *ret)
{
    int found = 0;
    for (unsigned set = 0; set < 1u << n; set++) {
        uint64_t freed = 0;
        for (size_t i = 0; i < n; i++)
            if (set >> rank(candidates, n, i) & 1)
                freed += candidates[i].bytes;
        if (freed >= needed) {
            *ret = set; /* sets come in ascending order */
            found = 1;
            break;
        }
    }
    return found;
}

static void agrees_with_brute_force(void **state)
{
    (void)state;
    srandom(1);
    unsigned possible = 0;
    for (int round = 0; round < ROUNDS; round++) {
        struct candidate candidates[CANDIDATES_MAX] = {0};
        size_t n = (size_t)random() % (CANDIDATES_MAX + 1);
        uint64_t sum = 0;
        for (size_t i = 0; i < n; i++) {
            candidates[i].bytes = (uint64_t)random() % 20;
            candidates[i].last_used = (uint64_t)random() % 8;
            candidates[i].chosen = random() & 1;
            sum += candidates[i].bytes;
        }
        uint64_t needed = (uint64_t)random() % (sum + sum / 4 + 2), evictable = 0;
        unsigned expected = 0, actual = 0;
        int can = brute_force(candidates, n, needed, &expected);
        possible += (unsigned)can;
        int r = eviction_choose(candidates, n, needed, &evictable);
        assert_int_equal(r, can ? 0 : -ENOSPC);
        assert_int_equal(evictable, sum);
        for (size_t i = 0; i < n; i++)
            if (candidates[i].chosen)
                actual |= 1u << rank(candidates, n, i);
        assert_int_equal(actual, can ? expected : 0);
    }
    assert_in_range(possible, ROUNDS / 2, ROUNDS - ROUNDS / 20); /* both answers were asked for */
}

static void nothing_needed_nothing_chosen(void **state)
{
    (void)state;
    struct candidate candidates[] = {{10, 1, true}, {20, 2, true}};
    assert_int_equal(eviction_choose(candidates, 2, 0, NULL), 0);
    assert_false(candidates[0].chosen);
    assert_false(candidates[1].chosen);
    assert_int_equal(eviction_choose(NULL, 0, 0, NULL), 0);
    assert_int_equal(eviction_choose(NULL, 0, 1, NULL), -ENOSPC);
}

static void spares_what_it_does_not_need(void **state)
{
    (void)state;
    /* The oldest alone does not do, and once the next has to go as well, the oldest can stay. */
    struct candidate candidates[] = {{1, 1, false}, {100, 2, false}, {100, 3, false}};
    assert_int_equal(eviction_choose(candidates, 3, 100, NULL), 0);
    assert_false(candidates[0].chosen);
    assert_true(candidates[1].chosen);
    assert_false(candidates[2].chosen);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_brute_force),
        cmocka_unit_test(nothing_needed_nothing_chosen),
        cmocka_unit_test(spares_what_it_does_not_need),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
