/* How far something is, on standard error: a line that is drawn over and over where that is a terminal, else a line at
 * most once a second. There is one at a time. */
#pragma once

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>

struct progress_values {
    const char *state;  /* "filling" */
    double done, total; /* bytes */
    double rate;        /* bytes per second */
    double left;        /* seconds; negative while unknown */
};

/* Writes what fits `width` columns to `text`, of `size` bytes, with a bar if there is room and `with_bar`. */
void progress_line(char *text, size_t size, size_t width, bool with_bar, const struct progress_values *values);

/* Shows an object Progress of the wire. */
void progress_show(const cJSON *progress);

/* Takes the line off the terminal, if one stands there. */
void progress_erase(void);

/* The same in a signal handler. */
void progress_erase_in_handler(void);
