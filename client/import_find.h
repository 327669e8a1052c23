/* Finds the import module for a kind of device, and loads it if it is a shared object. */
#pragma once

#include "client/import.h"

/* The module for a kind of device, "host" or "hip". It is static: never freed. -ENOTSUP: this machine has no such
 * module, or the module cannot be used. Any thread may call it. */
int import_find(const char *kind, const struct import_module **ret, struct import_fault *ret_fault);
