/* Reads the headers of a model's files, without a daemon. */
#pragma once

#include "daemon/header/model_header.h"
#include "proto/shards.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct headers {
    struct model_header *file;
    uint64_t size;
    struct shard_place place;  /* of the file that was named first */
    bool whole;                /* all files of the model were there */
    struct shard_paths same;   /* if not: files of which each may be the same other one of the model; n 0: none */
    struct shard_paths absent; /* if not: those missing that a name is known of; n 0: none */
};

/* Reads them; of one file of several the others are found. Returns 0, and the caller ends *ret with
 * headers_clear(). -EBADMSG and the fault: a file is refused; -EINVAL: it is no regular file; -ENODATA: it was cut
 * short; or another negative errno. Then *ret_path is the path of that file, which the caller frees. */
int headers_read(char *const *paths, size_t n, struct headers *ret, struct header_fault *ret_fault, char **ret_path);

/* Zeros are fine. */
void headers_clear(struct headers *headers);
