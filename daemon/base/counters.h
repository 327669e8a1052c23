/* Counts what happens in the daemon, since it started. Each layer counts where the thing happens; `Metrics` tells the
 * counts.
 *
 * Loop thread only. */
#pragma once

#include "proto/errors.h"

#include <stddef.h>
#include <stdint.h>

/* How a load ended. */
enum load_outcome {
    OUTCOME_LOADED,    /* read from its files */
    OUTCOME_RESTORED,  /* copied back from host memory */
    OUTCOME_JOINED,    /* the model was there already, or another load of it was under way */
    OUTCOME_CANCELLED, /* by a client, or because all clients that waited have gone */
    OUTCOME_FAILED,
    OUTCOMES,
};

/* The upper bounds of the buckets of a histogram of seconds; one more bucket has what is longer. */
#define COUNTERS_SECONDS                                                                                               \
    {                                                                                                                  \
        0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300                                                                   \
    }
#define COUNTERS_BUCKETS 11

struct histogram {
    uint64_t buckets[COUNTERS_BUCKETS]; /* what fell into each bucket alone */
    uint64_t n;
    double sum;
};

/* More different limits than the daemon has. */
#define COUNTERS_LIMITS 32

/* Refusals because of one limit. */
struct refusals {
    char limit[32]; /* as LimitExceeded names it; "": this entry is free */
    uint64_t n;
};

struct counters {
    uint64_t loads[OUTCOMES];
    uint64_t load_bytes[OUTCOMES]; /* bytes that these loads have read, of files or of copies in host memory */
    struct histogram load_seconds[OUTCOMES];
    uint64_t evictions;
    uint64_t evicted_bytes;
    uint64_t errors[WIRE_ERROR_COUNT]; /* that calls ended with, or connections */
    struct refusals refusals[COUNTERS_LIMITS];
};

/* "loaded", "restored", ... Static. */
const char *load_outcome_name(enum load_outcome outcome);

/* The upper bound of a bucket in seconds; INFINITY for the last one. */
double histogram_bound(size_t bucket);

/* A load has ended. */
void counters_load(struct counters *counters, enum load_outcome outcome, uint64_t bytes, uint64_t elapsed_ns);

/* A model was evicted. */
void counters_eviction(struct counters *counters, uint64_t bytes);

/* A call, or a connection, ended with an error. limit: which limit it is, if the error is LimitExceeded; else NULL. */
void counters_error(struct counters *counters, enum wire_error error, const char *limit);
