/* Fields of what the daemon sent, each looked at before it is used. Names are case sensitive, which cJSON's shorter
 * getter is not. */
#pragma once

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The greatest integer on the wire, 2^53. */
#define FIELD_INTEGER_MAX (1ull << 53)

/* The field; NULL if there is none, or it is null. */
static inline const cJSON *field(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return item && !cJSON_IsNull(item) ? item : NULL;
}

/* A text; NULL if it is not there or none. The object's. */
static inline const char *field_text(const cJSON *object, const char *key)
{
    const cJSON *item = field(object, key);
    return cJSON_IsString(item) ? item->valuestring : NULL;
}

/* A whole number from 0 to FIELD_INTEGER_MAX. False if it is not there or none. */
static inline bool field_integer(const cJSON *object, const char *key, uint64_t *ret)
{
    const cJSON *item = field(object, key);
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble <= (double)FIELD_INTEGER_MAX))
        return false;
    uint64_t value = (uint64_t)item->valuedouble;
    if ((double)value != item->valuedouble)
        return false;
    *ret = value;
    return true;
}
