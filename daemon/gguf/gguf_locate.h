/* The second pass over a GGUF file's header (gguf.c): it runs when the whole header is read and valid, so that the
 * buffer does not move any more.
 *
 * Blocking; meant for a worker thread. */
#pragma once

#include "daemon/header/header_reader.h"
#include "daemon/header/model_header.h"

/* Bytes before the first key: magic, version, two counts. */
#define GGUF_FIXED_BYTES 24

/* Sets the pointers of keys, values and names into the buffer, and the tensors' offsets from the start of the file.
 * Checks what needs the whole header: names that occur twice, and tensors outside the file. Errors are those of
 * header_reader.h. */
int gguf_locate(struct header_reader *r, struct model_header *model);
