#include "daemon/base/json_text.h"

#include "proto/utf8.h"

#include <string.h>

/* A copy in UTF-8, for cJSON_free(). NULL: no memory. */
static char *clean_text(const char *text)
{
    char *clean = cJSON_malloc(strlen(text) * 3 + 1); /* which json_memory.h watches */
    if (!clean)
        return NULL;
    size_t used = 0;
    for (const char *at = text, *end = text + strlen(text); at < end;) {
        size_t n = utf8_character(at, (size_t)(end - at));
        memcpy(clean + used, n > 0 ? at : "\xef\xbf\xbd", n > 0 ? n : 3);
        used += n > 0 ? n : 3;
        at += n > 0 ? n : 1;
    }
    clean[used] = '\0';
    return clean;
}

void json_add_text(cJSON *object, const char *key, const char *text)
{
    if (!text) {
        cJSON_AddNullToObject(object, key);
        return;
    }
    char *clean = clean_text(text);
    if (clean)
        cJSON_AddStringToObject(object, key, clean);
    cJSON_free(clean);
}

cJSON *json_object_with(const char *key, const char *text)
{
    cJSON *object = cJSON_CreateObject();
    json_add_text(object, key, text);
    return object;
}

void json_append_text(cJSON *array, const char *text)
{
    char *clean = clean_text(text);
    if (clean)
        json_append(array, cJSON_CreateString(clean));
    cJSON_free(clean);
}

void json_add_item(cJSON *object, const char *key, cJSON *item)
{
    if (!cJSON_AddItemToObject(object, key, item))
        cJSON_Delete(item);
}

void json_append(cJSON *array, cJSON *item)
{
    if (!cJSON_AddItemToArray(array, item))
        cJSON_Delete(item);
}
