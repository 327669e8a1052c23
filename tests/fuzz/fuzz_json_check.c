/* Fuzzes the check of messages: what it takes, the JSON parser takes too, and means the same by it. */
#include "proto/json_check.h"

#include <assert.h>
#include <cjson/cJSON.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_values(const cJSON *value, unsigned depth, unsigned *count)
{
    (*count)++;
    assert(*count <= JSON_VALUES_MAX);
    if (!cJSON_IsObject(value) && !cJSON_IsArray(value))
        return;
    assert(depth < JSON_DEPTH_MAX);
    unsigned n_keys = 0;
    for (const cJSON *child = value->child; child; child = child->next) {
        if (cJSON_IsObject(value)) {
            n_keys++;
            assert(cJSON_GetObjectItemCaseSensitive(value, child->string) == child); /* none twice */
        }
        check_values(child, depth + 1, count);
    }
    assert(n_keys <= JSON_KEYS_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *reason = NULL;
    size_t offset = SIZE_MAX;
    int r = json_check((const char *)data, size, &reason, &offset);
    if (r < 0) {
        assert(r == -EPROTO || r == -E2BIG);
        assert(reason && offset <= size);
        return 0;
    }
    assert(!memchr(data, '\0', size));
    cJSON *message = cJSON_ParseWithLength((const char *)data, size);
    if (!message)
        return 0; /* numbers of more than 63 characters: cJSON refuses what RFC 8259 has no bound for */
    assert(cJSON_IsObject(message));
    unsigned count = 0;
    check_values(message, 0, &count);

    /* Written out again, it is the same to both. */
    char *text = cJSON_PrintUnformatted(message);
    assert(text);
    assert(json_check(text, strlen(text), NULL, NULL) == 0);
    free(text);
    cJSON_Delete(message);
    return 0;
}
