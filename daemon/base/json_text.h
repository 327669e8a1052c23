/* Puts text that came from elsewhere into JSON, which takes UTF-8 only. Any thread. */
#pragma once

#include <cjson/cJSON.h>

/* Adds a string to an object; what is not UTF-8 in it becomes U+FFFD. NULL adds null. Nothing is added if memory is
 * short. */
void json_add_text(cJSON *object, const char *key, const char *text);
