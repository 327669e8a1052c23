/* Joins the headers of a split model's files into one: the first file's metadata, all files' tensors.
 *
 * Blocking; meant for a worker thread. */
#pragma once

#include "daemon/gguf/gguf.h"

struct split_file {
    int fd;
    uint64_t size;
};

/* Reads the header of each file and joins them. Of a split model the files are checked against each other: each says
 * which one it is, in whatever order they are given, the first of how many; names are unique over all, and the number
 * of tensors is what the first one says. A model that is not split has one file; one that is, all of them. All of them
 * stay in memory, so what the headers of the files before it take, GGUF_HEADER_MAX is less by for a file.
 *
 * Returns 0 and a model that the caller frees; or the errors of gguf_read(): the fault's offset is in the file that
 * `*ret_file` tells. Tensors come in the order of the files' numbers; `shard` is the index in `files`. A joined model's
 * data_start and file_size are the first file's. */
int split_read(const struct split_file *files, size_t n, struct gguf **ret, struct gguf_fault *ret_fault,
               size_t *ret_file);
