/* What a model and its user are called, as text to print. */
#pragma once

#include <cjson/cJSON.h>
#include <stdbool.h>

/* The user's name; its number if it has none here. The caller frees it. */
char *user_text(double uid);

/* The names that a model has beside the first one, with commas between; "" if it has none. The caller frees it. */
char *names_text(const cJSON *model);

/* The model has this name, as its first or as another. */
bool names_have(const cJSON *model, const char *name);
