/* The numbers in the names of a split model's files: "...-00001-of-00003...".
 *
 * Any thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The numbers of a path's last part, "...-00001-of-00003...". */
struct shard_numbers {
    size_t digits; /* where the first number begins in the path */
    int width;     /* its digits */
    uint64_t number, total;
};

/* Reads the numbers of a path's last part. False: it has none, or the number is not among those from 1 to the total. */
bool shard_numbers_read(const char *path, struct shard_numbers *ret);

/* The path of the file with this number (from 0 on), which the caller frees. NULL: no memory. */
char *shard_numbers_path(const char *path, const struct shard_numbers *numbered, size_t number);

/* The number, from 1 on, of a file beside the one of this name, if both names tell that they are of one model; else
 * 0. */
uint64_t shard_number_beside(const char *name, const char *other);
