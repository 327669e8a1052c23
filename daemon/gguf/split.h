/* Joins the headers of a split model's files into one: the first file's metadata, all files' tensors.
 *
 * Blocking; meant for a worker thread. */
#pragma once

#include "daemon/gguf/gguf.h"

/* Reads the header of each file and joins the headers. A model that is not split has one file. Of a split model all
 * files must be given, in any order. Each file must say its number, and the first file also how many there are. Tensor
 * names must be unique over all files, and the number of all tensors must be the one that the first file says. All
 * headers stay in memory. Together they may take HEADER_BYTES_MAX bytes.
 *
 * Returns 0 and a model that the caller frees; or the errors of gguf_read(), and then *ret_file is the index of the
 * file that the fault is of, and that its offset belongs to; n: of all together. Tensors come in the order of the
 * files' numbers; `shard` is the index in `files`. A joined model has the data_start and file_size of the first file.
 */
int split_read(const struct header_file *files, size_t n, struct model_header **ret, struct header_fault *ret_fault,
               size_t *ret_file);
