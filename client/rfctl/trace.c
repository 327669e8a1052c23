#include "client/rfctl/trace.h"

#include "client/rfctl/reply.h"

#include <errno.h>
#include <string.h>

/* The most rows. If there are more workers and streams, the rest share the last row. */
#define ROWS_MAX 1024

/* The number of a row. Rows are numbered in the order in which they first appear. */
static int row_number(const char **rows, int *n_rows, const char *row)
{
    for (int i = 0; i < *n_rows; i++)
        if (strcmp(rows[i], row) == 0)
            return i;
    if (*n_rows == ROWS_MAX)
        return ROWS_MAX - 1;
    rows[*n_rows] = row;
    return (*n_rows)++;
}

/* Writes an event after `before`, and deletes it. Returns 0 or a negative errno. */
static int write_event(FILE *file, cJSON *event, const char *before)
{
    char *text = cJSON_PrintUnformatted(event);
    int r = !text ? -ENOMEM : fprintf(file, "%s%s", before, text) < 0 ? -errno : 0;
    cJSON_free(text);
    cJSON_Delete(event);
    return r;
}

static cJSON *new_event(const char *phase, const char *name, int row)
{
    cJSON *event = cJSON_CreateObject();
    cJSON_AddStringToObject(event, "ph", phase);
    cJSON_AddStringToObject(event, "name", name);
    cJSON_AddNumberToObject(event, "pid", 1);
    cJSON_AddNumberToObject(event, "tid", row);
    return event;
}

int trace_write(FILE *file, const cJSON *spans)
{
    const char *rows[ROWS_MAX];
    int n_rows = 0;
    const char *before = "{\"traceEvents\":[\n";
    int r = 0;
    const cJSON *span;
    cJSON_ArrayForEach (span, spans) {
        cJSON *event = new_event("X", reply_text(span, "name"), row_number(rows, &n_rows, reply_text(span, "row")));
        cJSON_AddNumberToObject(event, "ts", reply_number(span, "begin", 0));
        cJSON_AddNumberToObject(event, "dur", reply_number(span, "length", 0));
        r = write_event(file, event, before);
        before = ",\n";
        if (r < 0)
            return r;
    }
    for (int i = 0; i < n_rows && r == 0; i++) {
        cJSON *event = new_event("M", "thread_name", i);
        cJSON_AddStringToObject(cJSON_AddObjectToObject(event, "args"), "name", rows[i]);
        r = write_event(file, event, before);
        before = ",\n";
    }
    if (r == 0 && fprintf(file, "%s]}\n", n_rows ? "\n" : "{\"traceEvents\":[") < 0)
        r = -errno;
    if (r == 0 && fflush(file) != 0)
        r = -errno;
    return r;
}
