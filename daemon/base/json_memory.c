#include "daemon/base/json_memory.h"

#include <cjson/cJSON.h>
#include <stdlib.h>

static _Thread_local bool failed;

static void *allocate(size_t size)
{
    void *memory = malloc(size);
    failed |= !memory;
    return memory;
}

void json_memory_watch(void)
{
    cJSON_InitHooks(&(cJSON_Hooks){.malloc_fn = allocate, .free_fn = free});
}

bool json_memory_failed(void)
{
    const bool result = failed;
    failed = false;
    return result;
}
