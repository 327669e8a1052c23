/* The formats of models' files, behind one function. To add one, write its reader in a folder of its own and add a row
 * to the table in format.c.
 *
 * Blocking; meant for a worker thread. */
#pragma once

#include "daemon/gguf/split.h"

#include <stddef.h>

/* Reads the headers of a model's files, whose format the first bytes of the first file tell, and joins them. What no
 * reader claims is refused as GGUF's reader refuses it. Returns what split_read() returns; the model says its format.
 */
int format_read(const struct header_file *files, size_t n, struct model_header **ret, struct header_fault *ret_fault,
                size_t *ret_file);
