/* Puts text that came from elsewhere into JSON, which takes UTF-8 only. Any thread. */
#pragma once

#include <cjson/cJSON.h>

/* Adds a string to an object. Bytes of it that are not UTF-8 become U+FFFD. NULL adds null. If memory is short, nothing
 * is added. */
void json_add_text(cJSON *object, const char *key, const char *text);

/* The same at the end of an array. The text is not NULL. */
void json_append_text(cJSON *array, const char *text);
