#include "proto/shard_names.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *number_read(const char *at, uint64_t *ret, int *ret_width)
{
    uint64_t n = 0;
    int width = 0;
    for (; isdigit((unsigned char)*at) && width < 10; at++, width++)
        n = 10 * n + (uint64_t)(*at - '0');
    *ret = n;
    *ret_width = width;
    return at;
}

bool shard_numbers_read(const char *path, struct shard_numbers *ret)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path, *of = NULL;
    for (const char *next = base; (next = strstr(next, "-of-")); next++)
        of = next;
    if (!of)
        return false;
    const char *digits = of;
    while (digits > base && isdigit((unsigned char)digits[-1]))
        digits--;
    int unused;
    struct shard_numbers numbered = {.digits = (size_t)(digits - path)};
    if (digits == base || digits[-1] != '-' || number_read(digits, &numbered.number, &numbered.width) != of)
        return false;
    (void)number_read(of + 4, &numbered.total, &unused);
    *ret = numbered;
    return numbered.width > 0 && unused > 0 && numbered.number >= 1 && numbered.number <= numbered.total;
}

char *shard_numbers_path(const char *path, const struct shard_numbers *numbered, size_t number)
{
    char *other;
    const int digits = (int)numbered->digits;
    return asprintf(&other, "%.*s%0*zu%s", digits, path, numbered->width, number + 1, path + digits + numbered->width) <
                   0
               ? NULL
               : other;
}

uint64_t shard_number_beside(const char *name, const char *other)
{
    struct shard_numbers its, own;
    if (!shard_numbers_read(name, &own) || !shard_numbers_read(other, &its) || its.total != own.total)
        return 0;
    char *expected = shard_numbers_path(name, &own, (size_t)its.number - 1);
    const bool same = expected && strcmp(expected, other) == 0;
    free(expected);
    return same ? its.number : 0;
}
