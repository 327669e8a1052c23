/* Reads the strings of __metadata__ in the header of a safetensors file that stands in memory. Trusts nothing in it.
 * One thread at a time. */
#pragma once

#include "client/rocmforge.h"

#include <stdbool.h>

/* Whether a header is of safetensors. */
bool metadata_is_json(const void *header, size_t size);

/* Reads the entries: strings, in the order of the file. The caller frees both; *ret_text is what they point into, and
 * stands in the form of GGUF: a value's length is in the 8 bytes before it. -EBADMSG: the header is not sound; -ENOMEM.
 */
int metadata_json_read(const void *header, size_t size, rf_value **ret, size_t *ret_n, char **ret_text);
