/* Reads the parameters "form" and "forms" of Load and Plan.
 *
 * Loop thread only. */
#pragma once

#include "daemon/model/forms.h"
#include "daemon/wire/call.h"

/* `form` was read already; rules: the parameter "forms", or NULL. Returns true, and what the caller ends with
 * forms_unref(); or false after the call was failed. */
bool forms_param_read(struct call *call, enum form form, const cJSON *rules, const struct forms **ret);
