/* Reads the parameter "fds" of Load and Plan: descriptors sent with the message, and those that AddFiles sent before.
 *
 * Loop thread only. */
#pragma once

#include "daemon/wire/call.h"

/* Gives the descriptors to the caller, who closes them. `fds` has room for SOURCE_FILES_MAX. added: the parameter
 * "added", the number of descriptors that the client says it sent with AddFiles; if it is 0, those descriptors are
 * closed and not used. Returns true; or false after the call was failed. In both cases the session keeps no
 * descriptors. */
bool files_param_take(struct call *call, const cJSON *indexes, int64_t added, int *fds, size_t *ret_n);
