/* Reads the headers of safetensors files into the struct of daemon/header/model_header.h.
 *
 * A file is: the length of its header (8 bytes, little-endian), the header in JSON, and the tensors' bytes. The file is
 * untrusted. A header has at most SAFETENSORS_HEADER_MAX bytes and lies inside the file; no tree is made of its JSON. A
 * model that is returned is valid: the size of each tensor follows from its shape and type, and the tensors' bytes lie
 * one behind the other from the header's end to the file's end, without holes or shared bytes.
 *
 * The package `safetensors` refuses what is refused here, except for these, which it takes: a key that stands twice
 * (the last one counts there), a tensor info or a dtype in another form than the format's description has, a header
 * that does not begin with '{', a name that is empty, a string that holds NUL, also in the metadata and in fields that
 * the format does not have, a number of more than JSON_NUMBER_MAX characters in such a field, and what is over a bound
 * of model_header.h: names, tensors, dimensions and their number, keys of the metadata.
 *
 * What the struct has: the entries of __metadata__ as strings; tensors in the order of their bytes, with ne[0] the last
 * dimension of the file's shape, because it changes fastest.
 *
 * Blocking; meant for a worker thread. */
#pragma once

#include "daemon/header/model_header.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SAFETENSORS_HEADER_MAX 100000000u

/* How many of a file's first bytes tell the format. */
#define SAFETENSORS_START 9u

/* Whether a file that begins so may be one. size: of `start`. */
bool safetensors_starts(const uint8_t *start, size_t size);

/* Reads the headers of all files of a model and joins them: tensors in the order of the files, metadata of the first
 * one. Errors as split_read(). A name may not stand in two files. Together the headers may take HEADER_BYTES_MAX. */
int safetensors_read(const struct header_file *files, size_t n, struct model_header **ret,
                     struct header_fault *ret_fault, size_t *ret_file);
