/* Reads fields of a reply for printing. A field that is missing, or has the wrong type, has a default value. */
#pragma once

#include <cjson/cJSON.h>
#include <stdbool.h>

/* The text of a field; "" if there is none. Borrowed from the object. */
const char *reply_text(const cJSON *object, const char *key);

/* The number of a field; `otherwise` if there is none. */
double reply_number(const cJSON *object, const char *key, double otherwise);

/* Whether a device, of which this is the id or the kind, is the host's memory. */
bool reply_is_host(const char *device);

/* A field that is an array or an object; NULL if there is none. Borrowed from the object. */
const cJSON *reply_items(const cJSON *object, const char *key);
