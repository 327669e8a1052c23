/* Tells whether JSON is whole. cJSON leaves out what it has no memory for, and most of its functions do not say so; a
 * reply without a field that it must have would look like success. */
#pragma once

#include <stdbool.h>

/* From now on, what cJSON allocates in this process is watched. Before there are other threads. */
void json_memory_watch(void);

/* Whether an allocation of cJSON has failed in this thread since the last call. Any thread. */
bool json_memory_failed(void);
