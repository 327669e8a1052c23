/* Decides which of many files are those of one split model, by what their headers say.
 *
 * Any thread. */
#pragma once

#include "proto/shard_header.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A file that may be one of the model's. It says its number, which is less than that of the files. */
struct shard_candidate {
    char *path;
    uint64_t dev, ino;
    bool named; /* its name also says that it is this one */
    struct shard_header header;
};

/* Chooses one candidate for each of n_files numbers. Those of one model have no tensor's name in common; where two have
 * the same key of the metadata, it has the same value; and together they have as many tensors as the first file says.
 * by_name: where a candidate has the right name, no other one counts for its number.
 *
 * Returns 0 and the index of a candidate for each number. -ENOENT: none fit together. -ENOTUNIQ: more than one choice
 * does, or there are too many to try; *ret_number is a number for which several come into question. -ENOMEM. */
int shard_choose(const struct shard_candidate *candidates, size_t n, size_t n_files, bool by_name, size_t *ret_choice,
                 size_t *ret_number);
