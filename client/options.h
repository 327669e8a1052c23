/* Reads the options that a caller of the library gives. */
#pragma once

#include "client/rocmforge.h"

#include <stddef.h>

/* Copies a struct of options into `ret`, which has `size` bytes. The first member of the struct is a size_t: the bytes
 * that the struct has at the caller. A caller that was compiled with an older header has fewer; the options that it
 * does not have become 0. NULL: all are 0. Returns 0, or records that the size is not set and returns -EINVAL. */
int client_options(rf_client *client, const void *options, void *ret, size_t size);
