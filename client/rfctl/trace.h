/* Writes what a load did when as a Chrome trace, which Perfetto (https://ui.perfetto.dev) opens. */
#pragma once

#include <cjson/cJSON.h>
#include <stdio.h>

/* Writes the spans of a Load's last reply, an array of `Span`, to `file`, a row for each worker and stream. Returns 0
 * or a negative errno. */
int trace_write(FILE *file, const cJSON *spans);
