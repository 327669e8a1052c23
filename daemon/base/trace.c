#include "daemon/base/trace.h"

#include "daemon/base/json_text.h"
#include "proto/array.h"

#include <stdio.h>
#include <stdlib.h>

struct span {
    enum trace_row row;
    unsigned number;
    const char *name;
    uint64_t begin_ns;
    uint64_t end_ns;
};

struct trace {
    uint64_t began;
    size_t n_spans;
    size_t capacity;
    struct span *spans;
};

struct trace *trace_new(uint64_t began)
{
    struct trace *trace = calloc(1, sizeof(*trace));
    if (trace)
        trace->began = began;
    return trace;
}

void trace_free(struct trace *trace)
{
    if (!trace)
        return;
    free(trace->spans);
    free(trace);
}

void trace_add(struct trace *trace, enum trace_row row, unsigned number, const char *name, uint64_t begin_ns,
               uint64_t end_ns)
{
    if (!trace || trace->n_spans == TRACE_SPANS_MAX || end_ns < begin_ns || begin_ns < trace->began)
        return;
    if (array_reserve(&trace->spans, &trace->capacity, trace->n_spans, sizeof(*trace->spans), 256) < 0)
        return;
    trace->spans[trace->n_spans++] = (struct span){row, number, name, begin_ns, end_ns};
}

cJSON *trace_describe(const struct trace *trace)
{
    static const char *const rows[] = {[TRACE_LOAD] = "load", [TRACE_WORKER] = "worker", [TRACE_STREAM] = "stream"};
    cJSON *array = cJSON_CreateArray();
    for (size_t i = 0; i < trace->n_spans; i++) {
        const struct span *span = &trace->spans[i];
        cJSON *object = cJSON_CreateObject();
        char row[32];
        if (span->row == TRACE_LOAD)
            snprintf(row, sizeof(row), "%s", rows[span->row]);
        else
            snprintf(row, sizeof(row), "%s %u", rows[span->row], span->number);
        cJSON_AddStringToObject(object, "row", row);
        cJSON_AddStringToObject(object, "name", span->name);
        cJSON_AddNumberToObject(object, "begin", (double)((span->begin_ns - trace->began) / 1000));
        cJSON_AddNumberToObject(object, "length", (double)((span->end_ns - span->begin_ns) / 1000));
        json_append(array, object);
    }
    return array;
}
