#include "daemon/base/counters.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const double bounds[] = COUNTERS_SECONDS;

_Static_assert(sizeof(bounds) / sizeof(bounds[0]) + 1 == COUNTERS_BUCKETS, "one bucket has what is longer");

const char *load_outcome_name(enum load_outcome outcome)
{
    static const char *const names[] = {
        [OUTCOME_LOADED] = "loaded",       [OUTCOME_RESTORED] = "restored", [OUTCOME_JOINED] = "joined",
        [OUTCOME_CANCELLED] = "cancelled", [OUTCOME_FAILED] = "failed",
    };
    return names[outcome];
}

double histogram_bound(size_t bucket)
{
    return bucket + 1 < COUNTERS_BUCKETS ? bounds[bucket] : (double)INFINITY;
}

static void histogram_add(struct histogram *histogram, double value)
{
    size_t bucket = 0;
    while (value > histogram_bound(bucket))
        bucket++;
    histogram->buckets[bucket]++;
    histogram->n++;
    histogram->sum += value;
}

void counters_load(struct counters *counters, enum load_outcome outcome, uint64_t bytes, uint64_t elapsed_ns)
{
    counters->loads[outcome]++;
    counters->load_bytes[outcome] += bytes;
    histogram_add(&counters->load_seconds[outcome], (double)elapsed_ns / 1e9);
}

void counters_eviction(struct counters *counters, uint64_t bytes)
{
    counters->evictions++;
    counters->evicted_bytes += bytes;
}

/* The entry of this limit. NULL: there is none, and no room for one. */
static struct refusals *refusals_of(struct counters *counters, const char *limit)
{
    for (size_t i = 0; i < COUNTERS_LIMITS; i++) {
        struct refusals *refusals = &counters->refusals[i];
        if (!refusals->limit[0])
            snprintf(refusals->limit, sizeof(refusals->limit), "%s", limit);
        if (strncmp(refusals->limit, limit, sizeof(refusals->limit) - 1) == 0)
            return refusals;
    }
    return NULL;
}

void counters_error(struct counters *counters, enum wire_error error, const char *limit)
{
    counters->errors[error]++;
    struct refusals *refusals = limit && limit[0] ? refusals_of(counters, limit) : NULL;
    if (refusals)
        refusals->n++;
}
