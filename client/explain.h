/* Words the daemon's errors with what they carry: "the model is in use: 'llama' is held by process 123". */
#pragma once

#include "proto/errors.h"

#include <cjson/cJSON.h>
#include <stddef.h>

/* Writes at most `size` bytes, the NUL included. `parameters` come from the daemon and may be NULL or anything: what is
 * missing is left out. */
void explain(char *dst, size_t size, enum wire_error error, const cJSON *parameters);
