#include "proto/shard_choice.h"

#include "proto/min.h"

#include <errno.h>
#include <stdlib.h>

/* The most work of one search: names and keys that are compared. A folder that somebody has made to be hard to search
 * takes no longer. */
#define STEPS_MAX ((uint64_t)1 << 24)

#define NOBODY    SIZE_MAX

struct slot {
    uint64_t hash, value;
    size_t owner; /* the candidate that has put it in; NOBODY: the slot is free */
};

/* A hash table with open addressing. What was put in last is taken out first, so that no slot needs a mark that it was
 * used. */
struct table {
    struct slot *slots;
    size_t mask;
};

struct search {
    const struct shard_candidate *all;
    size_t n_files;
    size_t *begins;  /* n_files + 1: where the candidates of a number begin in `sorted` */
    size_t *sorted;  /* candidates by number */
    size_t *order;   /* numbers, as they are decided */
    uint64_t *most;  /* n_files + 1: the most tensors that all numbers from this place of the order on can have */
    size_t *chosen;  /* by number */
    size_t *found;   /* the first choice that fits */
    size_t differs;  /* a number for which a second choice has another candidate; NOBODY: there is no second choice */
    bool any;        /* `found` is set */
    uint64_t told;   /* tensors, as the first file says; UINT64_MAX: it does not */
    uint64_t summed; /* tensors of those that are chosen */
    uint64_t steps;
    struct table names, keys;
};

static int table_new(size_t n, struct table *ret)
{
    size_t size = 16;
    while (size < 2 * n)
        size *= 2;
    ret->slots = reallocarray(NULL, size, sizeof(*ret->slots));
    ret->mask = size - 1;
    for (size_t i = 0; ret->slots && i < size; i++)
        ret->slots[i].owner = NOBODY;
    return ret->slots ? 0 : -ENOMEM;
}

/* The slot that has the hash, or the free one where it would be put. */
static struct slot *table_find(const struct table *table, uint64_t hash)
{
    size_t at = (size_t)(hash ^ hash >> 32) & table->mask;
    while (table->slots[at].owner != NOBODY && table->slots[at].hash != hash)
        at = (at + 1) & table->mask;
    return &table->slots[at];
}

/* Takes out what the candidate has put in: its first n_names names and n_keys keys. */
static void leave(struct search *search, size_t candidate, size_t n_names, size_t n_keys)
{
    const struct shard_header *header = &search->all[candidate].header;
    search->steps += n_names + n_keys;
    while (n_keys-- > 0) {
        struct slot *slot = table_find(&search->keys, header->keys[n_keys].key);
        if (slot->owner == candidate)
            slot->owner = NOBODY;
    }
    while (n_names-- > 0)
        table_find(&search->names, header->names[n_names])->owner = NOBODY;
    search->summed -= header->n_names;
}

/* Adds a candidate to those that are chosen. False: it does not fit to them, and was not added. */
static bool enter(struct search *search, size_t candidate)
{
    const struct shard_header *header = &search->all[candidate].header;
    size_t names = 0, keys = 0;
    bool fits = true;
    search->summed += header->n_names;
    for (; fits && names < header->n_names; names += fits) {
        struct slot *slot = table_find(&search->names, header->names[names]);
        fits = slot->owner == NOBODY;
        if (fits)
            *slot = (struct slot){.hash = header->names[names], .owner = candidate};
    }
    for (; fits && keys < header->n_keys; keys += fits) {
        struct slot *slot = table_find(&search->keys, header->keys[keys].key);
        const bool is_new = slot->owner == NOBODY;
        /* No file has the same key twice. If it had, it could not be taken out again in the right order. */
        fits = is_new || (slot->owner != candidate && slot->value == header->keys[keys].value);
        if (is_new)
            *slot =
                (struct slot){.hash = header->keys[keys].key, .value = header->keys[keys].value, .owner = candidate};
    }
    search->steps += names + keys + 1;
    if (!fits)
        leave(search, candidate, names, keys);
    return fits;
}

static bool is_over(const struct search *search)
{
    return search->differs != NOBODY || search->steps > STEPS_MAX;
}

static void note(struct search *search)
{
    if (search->told != UINT64_MAX && search->summed != search->told)
        return;
    for (size_t i = 0; i < search->n_files; i++) {
        if (search->any && search->found[i] != search->chosen[i])
            search->differs = i;
        else if (!search->any)
            search->found[i] = search->chosen[i];
    }
    search->any = true;
}

/* Tries all candidates for the number at this place of the order, and for each of them all for the numbers behind it.
 * The depth is at most the number of files. */
static void try_from(struct search *search, size_t place)
{
    if (search->told != UINT64_MAX &&
        (search->summed > search->told || search->summed + search->most[place] < search->told))
        return;
    if (place == search->n_files) {
        note(search);
        return;
    }
    const size_t number = search->order[place];
    for (size_t i = search->begins[number]; i < search->begins[number + 1] && !is_over(search); i++) {
        const size_t candidate = search->sorted[i];
        const struct shard_header *header = &search->all[candidate].header;
        if (!enter(search, candidate))
            continue;
        if (number == 0)
            search->told = header->place.tensors;
        search->chosen[number] = candidate;
        try_from(search, place + 1);
        leave(search, candidate, header->n_names, header->n_keys);
        if (number == 0)
            search->told = UINT64_MAX;
    }
}

static size_t candidates_of(const struct search *search, size_t number)
{
    return search->begins[number + 1] - search->begins[number];
}

/* Sorts the candidates by number; of those with the same number the order stays. Returns -ENOENT if a number has none.
 */
static int sort_candidates(struct search *search, size_t n, bool by_name)
{
    const struct shard_candidate *all = search->all;
    size_t *next = search->order; /* not used for anything else yet */
    int r = 0;
    bool *named = calloc(search->n_files, sizeof(*named));
    if (!named)
        return -ENOMEM;
    for (size_t i = 0; i < n && by_name; i++)
        named[all[i].header.place.number] |= all[i].named;
    for (size_t i = 0; i < n; i++)
        if (!named[all[i].header.place.number] || all[i].named)
            search->begins[all[i].header.place.number + 1]++;
    for (size_t i = 0; i < search->n_files; i++) {
        r = search->begins[i + 1] == 0 ? -ENOENT : r;
        next[i] = search->begins[i];
        search->begins[i + 1] += search->begins[i];
    }
    for (size_t i = 0; i < n; i++)
        if (!named[all[i].header.place.number] || all[i].named)
            search->sorted[next[all[i].header.place.number]++] = i;
    free(named);
    return r;
}

/* Numbers with one candidate come first: they rule out most of the others'. The first file comes before all. */
static void set_order(struct search *search)
{
    size_t used = 0;
    search->order[used++] = 0;
    for (size_t several = 0; several < 2; several++)
        for (size_t i = 1; i < search->n_files; i++)
            if ((candidates_of(search, i) > 1) == several)
                search->order[used++] = i;
    search->most[search->n_files] = 0;
    for (size_t place = search->n_files; place-- > 0;) {
        const size_t number = search->order[place];
        size_t most = 0;
        for (size_t i = search->begins[number]; i < search->begins[number + 1]; i++) {
            const size_t n = search->all[search->sorted[i]].header.n_names;
            most = max_u64(n, most);
        }
        search->most[place] = search->most[place + 1] + most;
    }
}

/* Room for the names and keys of one candidate for each number. */
static int make_tables(struct search *search)
{
    size_t keys = 0;
    for (size_t number = 0; number < search->n_files; number++) {
        size_t most = 0;
        for (size_t i = search->begins[number]; i < search->begins[number + 1]; i++) {
            const size_t n = search->all[search->sorted[i]].header.n_keys;
            most = max_u64(n, most);
        }
        keys += most;
    }
    const int r = table_new((size_t)search->most[0], &search->names);
    return r < 0 ? r : table_new(keys, &search->keys);
}

static size_t first_with_several(const struct search *search)
{
    size_t number = 0;
    while (number + 1 < search->n_files && candidates_of(search, number) < 2)
        number++;
    return number;
}

int shard_choose(const struct shard_candidate *candidates, size_t n, size_t n_files, bool by_name, size_t *ret_choice,
                 size_t *ret_number)
{
    struct search search = {
        .all = candidates,
        .n_files = n_files,
        .begins = calloc(n_files + 1, sizeof(size_t)),
        .sorted = calloc(n ? n : 1, sizeof(size_t)),
        .order = calloc(n_files, sizeof(size_t)),
        .most = calloc(n_files + 1, sizeof(uint64_t)),
        .chosen = calloc(n_files, sizeof(size_t)),
        .found = calloc(n_files, sizeof(size_t)),
        .differs = NOBODY,
        .told = UINT64_MAX,
    };
    int r =
        search.begins && search.sorted && search.order && search.most && search.chosen && search.found ? 0 : -ENOMEM;
    if (r == 0)
        r = sort_candidates(&search, n, by_name);
    if (r == 0) {
        set_order(&search);
        r = make_tables(&search);
    }
    if (r == 0) {
        try_from(&search, 0);
        r = is_over(&search) ? -ENOTUNIQ : search.any ? 0 : -ENOENT;
    }
    for (size_t i = 0; i < n_files && r == 0; i++)
        ret_choice[i] = search.found[i];
    if (r == -ENOTUNIQ)
        *ret_number = search.differs != NOBODY ? search.differs : first_with_several(&search);
    free(search.begins);
    free(search.sorted);
    free(search.order);
    free(search.most);
    free(search.chosen);
    free(search.found);
    free(search.names.slots);
    free(search.keys.slots);
    return r;
}
