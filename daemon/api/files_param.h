/* Reads the parameter "fds" of Load and Plan: descriptors beside the message, and those that AddFiles brought before.
 *
 * Loop thread only. */
#pragma once

#include "daemon/wire/call.h"

/* Gives the descriptors to the caller, who closes them; `fds` has room for SOURCE_FILES_MAX. added: the parameter of
 * that name: how many the client means that it brought before; if 0, what it brought is closed, and no part of this.
 * Returns true; or false after the call was failed. In both cases nothing is left of what AddFiles brought. */
bool files_param_take(struct call *call, const cJSON *indexes, int64_t added, int *fds, size_t *ret_n);
