/* Fields of what a daemon replied, to be printed: whatever is missing or of another kind has a value all the same. */
#pragma once

#include <cjson/cJSON.h>

/* The text of a field, "" if it has none. Lives as long as the object. */
const char *reply_text(const cJSON *object, const char *key);

/* The number of a field, `otherwise` if it has none. */
double reply_number(const cJSON *object, const char *key, double otherwise);

/* The array, or object, of a field; NULL if it is neither. */
const cJSON *reply_items(const cJSON *object, const char *key);
