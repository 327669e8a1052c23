#include "client/rfctl/reply.h"

#include <string.h>

const char *reply_text(const cJSON *object, const char *key)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, key));
    return text ? text : "";
}

double reply_number(const cJSON *object, const char *key, double otherwise)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsNumber(item) ? item->valuedouble : otherwise;
}

bool reply_is_host(const char *device)
{
    return strcmp(device, "host") == 0;
}

const cJSON *reply_items(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsArray(item) || cJSON_IsObject(item) ? item : NULL;
}
