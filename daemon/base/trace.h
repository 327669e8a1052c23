/* A record of what happened when during a load: spans of time, in a row for each worker and each stream.
 *
 * Loop thread only. */
#pragma once

#include <cjson/cJSON.h>
#include <stddef.h>
#include <stdint.h>

/* Further spans are left out. */
#define TRACE_SPANS_MAX (1u << 17)

enum trace_row {
    TRACE_LOAD, /* steps of the load as a whole */
    TRACE_WORKER,
    TRACE_STREAM,
};

struct trace;

/* Times are counted from `began`, on CLOCK_MONOTONIC in nanoseconds. NULL if memory is short. */
struct trace *trace_new(uint64_t began);

/* NULL is fine. */
void trace_free(struct trace *trace);

/* `number` of the worker or stream; `name` is static. A NULL trace takes nothing. */
void trace_add(struct trace *trace, enum trace_row row, unsigned number, const char *name, uint64_t begin_ns,
               uint64_t end_ns);

/* An array of `Span`. */
cJSON *trace_describe(const struct trace *trace);
