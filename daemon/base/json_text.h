/* Puts things into JSON: text that came from elsewhere, because JSON takes UTF-8 only; and values, of which nothing is
 * left if memory is short. Any thread. */
#pragma once

#include <cjson/cJSON.h>

/* Adds a string to an object. Bytes of it that are not UTF-8 become U+FFFD. NULL adds null. If memory is short, nothing
 * is added. */
void json_add_text(cJSON *object, const char *key, const char *text);

/* A new object with one string, added as json_add_text() does. The caller deletes it. NULL: no memory. */
cJSON *json_object_with(const char *key, const char *text);

/* Adds a string at the end of an array, as json_add_text() does. The text is not NULL. */
void json_append_text(cJSON *array, const char *text);

/* cJSON_AddItemToObject() and cJSON_AddItemToArray(), but the item is deleted if it cannot be added: cJSON leaves it to
 * the caller then. What it is added to, or the item, may be NULL. */
void json_add_item(cJSON *object, const char *key, cJSON *item);
void json_append(cJSON *array, cJSON *item);
