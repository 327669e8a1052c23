/* Makes a sentence of an error of the daemon and its parameters: "the model is in use: 'llama' is resident, held by
 * process 123". */
#pragma once

#include "proto/errors.h"

#include <cjson/cJSON.h>
#include <stddef.h>

/* Writes the sentence to `dst`, at most `size` bytes with the NUL. `parameters` come from the daemon: they may be NULL,
 * and a parameter that is missing or of the wrong type is left out. */
void explain(char *dst, size_t size, enum wire_error error, const cJSON *parameters);
