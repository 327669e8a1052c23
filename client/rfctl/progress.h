/* Shows the progress of a load or a verification on standard error. On a terminal one line is drawn again and again;
 * elsewhere a line is printed at most once a second. There is only one progress at a time. */
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

/* Writes a line of at most `width` columns to `text`, which has `size` bytes. The least important figures are left out
 * if there is no room. The line has a bar if `with_bar` is true and there is room. */
void progress_line(char *text, size_t size, size_t width, bool with_bar, const struct progress_values *values);

/* Shows an object Progress of the interface. */
void progress_show(const cJSON *progress);

/* Erases the line from the terminal, if there is one. */
void progress_erase(void);

/* The same in a signal handler. */
void progress_erase_in_handler(void);
