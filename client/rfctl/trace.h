/* Writes what every worker and stream did during a load, and when, as a Chrome trace. Perfetto
 * (https://ui.perfetto.dev) can show it. */
#pragma once

#include <cjson/cJSON.h>
#include <stdio.h>

/* Writes `spans` to `file`, with a row for each worker and stream. `spans` is the array `trace` of the last reply to
 * Load; NULL: a trace without spans. Returns 0 or a negative errno. */
int trace_write(FILE *file, const cJSON *spans);
