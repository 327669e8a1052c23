/* Reads the parameters "form" and "forms" of Load and Plan.
 *
 * Loop thread only. */
#pragma once

#include "daemon/model/forms.h"
#include "daemon/wire/call.h"

/* form: the parameter "form", parsed. rules: the parameter "forms", or NULL. Returns true and sets *ret, which the
 * caller releases with forms_unref(); or false after the call was failed. */
bool forms_param_read(struct call *call, enum form form, const cJSON *rules, const struct forms **ret);
