#include "client/rfctl/duration.h"

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#define DURATION_MAX (36525ull * 86400)

static const struct {
    char name;
    unsigned seconds;
} units[] = {{'d', 86400}, {'h', 3600}, {'m', 60}, {'s', 1}};

int duration_parse(const char *text, uint64_t *ret_seconds)
{
    if (text[0] < '0' || text[0] > '9')
        return -EINVAL;
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    unsigned unit = *end ? 0 : 1;
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]) && unit == 0; i++)
        if (end[0] == units[i].name && !end[1])
            unit = units[i].seconds;
    if (errno || unit == 0 || number > DURATION_MAX / unit)
        return -EINVAL;
    *ret_seconds = number * unit;
    return 0;
}

const char *duration_format(char text[DURATION_SIZE], double seconds)
{
    seconds = seconds > 0 ? fmin(floor(seconds), 1e15) : 0;
    size_t unit = 0;
    while (unit < 3 && (seconds == 0 || fmod(seconds, units[unit].seconds) != 0))
        unit++;
    snprintf(text, DURATION_SIZE, "%.0f%c", seconds / units[unit].seconds, units[unit].name);
    return text;
}

const char *ttl_text(char text[TTL_SIZE], double seconds)
{
    char duration[DURATION_SIZE];
    if (seconds > 0)
        snprintf(text, TTL_SIZE, "when idle for %s", duration_format(duration, seconds));
    else
        snprintf(text, TTL_SIZE, "as soon as nobody uses it");
    return text;
}
