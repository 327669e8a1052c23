/* Sizes in words. The one rule, for the daemon's log, for the library's messages and for what rfctl prints:
 *
 * kB, MB, GB, TB and PB are powers of 1000. A size is printed in the first of these units in which it is below 1000: as
 * a whole number of bytes, and otherwise with one decimal below 100 and none from there on. "999 B", "3.8 GB", "629
 * MB".
 *
 * KiB, MiB, GiB and TiB, powers of 1024, are only in what is typed and in documents, never in what is printed. */
#pragma once

#include <stdio.h>

/* Room for what the functions here write. */
#define BYTES_TEXT_SIZE 32

/* Writes `value` by the rule above, then its unit and `suffix`. `units` go up by 1000 each and end with NULL; the first
 * may be "". A negative value and NaN count as 0. Returns `text`. */
static inline const char *scaled_text(char text[BYTES_TEXT_SIZE], double value, const char *const *units,
                                      const char *suffix)
{
    if (!(value > 0))
        value = 0;
    size_t unit = 0;
    while (units[unit + 1] && value >= (unit == 0 ? 1000 : 999.5)) {
        value /= 1000;
        unit++;
    }
    if (value > 1e12)
        value = 1e12;
    snprintf(text, BYTES_TEXT_SIZE, "%.*f%s%s%s", unit > 0 && value < 99.95 ? 1 : 0, value, units[unit][0] ? " " : "",
             units[unit], suffix);
    return text;
}

/* `suffix`: "" for a size, "/s" for a rate. Returns `text`. */
static inline const char *bytes_text(char text[BYTES_TEXT_SIZE], double bytes, const char *suffix)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB", NULL};
    return scaled_text(text, bytes, units, suffix);
}
