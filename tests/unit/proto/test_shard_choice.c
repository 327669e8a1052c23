/* proto/shard_choice.c: what it chooses is what trying every choice finds. */
#include "proto/shard_choice.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

enum { FILES = 4, CANDIDATES = 12, NAMES = 3, KEYS = 2, ROUNDS = 10000 };

struct rig {
    size_t n_files, n;
    bool by_name;
    struct shard_candidate all[CANDIDATES];
    uint64_t names[CANDIDATES][NAMES];
    struct shard_key keys[CANDIDATES][KEYS];
};

static size_t below(size_t n)
{
    return (size_t)random() % n;
}

/* Few names, keys and values, so that candidates often fit and often do not. */
static void fill(struct rig *rig)
{
    *rig = (struct rig){.n_files = 1 + below(FILES), .by_name = below(2) > 0};
    rig->n = rig->n_files + below(CANDIDATES - rig->n_files + 1);
    const uint64_t total = 1 + below(6);
    for (size_t i = 0; i < rig->n; i++) {
        struct shard_header *header = &rig->all[i].header;
        header->place = (struct shard_place){.gguf = true, .split = true, .count = rig->n_files, .tensors = total};
        header->place.number = i < rig->n_files ? i : below(rig->n_files);
        rig->all[i].named = below(3) == 0;
        header->names = rig->names[i];
        header->n_names = below(NAMES + 1);
        const size_t first = below(8);
        for (size_t k = 0; k < header->n_names; k++)
            rig->names[i][k] = (first + k) % 8 << 32; /* the table's slots are not all others */
        header->keys = rig->keys[i];
        header->n_keys = below(KEYS + 1);
        for (size_t k = 0; k < header->n_keys; k++)
            rig->keys[i][k] = (struct shard_key){.key = 10 * k + below(2), .value = below(2)};
    }
}

static bool fit(const struct shard_header *a, const struct shard_header *b)
{
    for (size_t i = 0; i < a->n_names; i++)
        for (size_t k = 0; k < b->n_names; k++)
            if (a->names[i] == b->names[k])
                return false;
    for (size_t i = 0; i < a->n_keys; i++)
        for (size_t k = 0; k < b->n_keys; k++)
            if (a->keys[i].key == b->keys[k].key && a->keys[i].value != b->keys[k].value)
                return false;
    return true;
}

static bool counts(const struct rig *rig, size_t candidate)
{
    bool named = false;
    for (size_t i = 0; i < rig->n; i++)
        named |= rig->all[i].named && rig->all[i].header.place.number == rig->all[candidate].header.place.number;
    return !rig->by_name || !named || rig->all[candidate].named;
}

static bool is_right(const struct rig *rig, const size_t *choice)
{
    uint64_t tensors = 0;
    for (size_t i = 0; i < rig->n_files; i++) {
        tensors += rig->all[choice[i]].header.n_names;
        for (size_t k = 0; k < i; k++)
            if (!fit(&rig->all[choice[i]].header, &rig->all[choice[k]].header))
                return false;
    }
    return tensors == rig->all[choice[0]].header.place.tensors;
}

/* How many choices are right; *ret is the last of them. */
static unsigned try_all(const struct rig *rig, size_t ret[FILES])
{
    size_t choice[FILES] = {0}, combinations = 1;
    unsigned right = 0;
    for (size_t i = 0; i < rig->n_files; i++)
        combinations *= rig->n;
    for (size_t number = 0; number < combinations; number++) {
        bool possible = true;
        size_t rest = number;
        for (size_t i = 0; i < rig->n_files; i++, rest /= rig->n) {
            choice[i] = rest % rig->n;
            possible = possible && rig->all[choice[i]].header.place.number == i && counts(rig, choice[i]);
        }
        if (!possible || !is_right(rig, choice))
            continue;
        right++;
        memcpy(ret, choice, sizeof(choice));
    }
    return right;
}

static void as_trying_all(void **state)
{
    (void)state;
    struct rig rig;
    unsigned seen[3] = {0};
    srandom(1);
    for (unsigned round = 0; round < ROUNDS; round++) {
        size_t expected[FILES], choice[FILES], number = FILES;
        fill(&rig);
        const unsigned right = try_all(&rig, expected);
        const int r = shard_choose(rig.all, rig.n, rig.n_files, rig.by_name, choice, &number);
        assert_int_equal(r, right == 0 ? -ENOENT : right == 1 ? 0 : -ENOTUNIQ);
        if (r == 0)
            assert_memory_equal(choice, expected, rig.n_files * sizeof(choice[0]));
        if (r == -ENOTUNIQ)
            assert_true(number < rig.n_files);
        seen[right > 1 ? 2 : right]++;
    }
    for (size_t i = 0; i < 3; i++)
        assert_true(seen[i] > ROUNDS / 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(as_trying_all)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
