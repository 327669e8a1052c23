/* Reads fields of JSON objects that the daemon sent, and checks their types. Names are compared with their case, which
 * cJSON_GetObjectItem() would not do. */
#pragma once

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The largest integer in the protocol, 2^53. */
#define FIELD_INTEGER_MAX (1ull << 53)

/* The field; NULL: there is none, or it is null. Borrowed from the object. */
static inline const cJSON *field(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return item && !cJSON_IsNull(item) ? item : NULL;
}

/* The text of a field; NULL: there is no such field, or it is no string. Borrowed from the object. */
static inline const char *field_text(const cJSON *object, const char *key)
{
    const cJSON *item = field(object, key);
    return cJSON_IsString(item) ? item->valuestring : NULL;
}

/* A whole number from 0 to FIELD_INTEGER_MAX. False: there is no such field, or it is no such number. */
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
