/* Finds the modules for devices: shared objects that the daemon and the client library load at run time. */
#pragma once

#include <limits.h>

/* Finds the file "PREFIX-KIND.so" in the first folder that has it. The folders are listed in the environment variable
 * ROCMFORGE_MODULE_DIR, separated by colons. If it is not set, or if the process runs with other rights than its caller
 * (set-user-ID), they are listed in `folders`. `kind` becomes part of a path, so the caller has checked it. Returns 0
 * or -ENOENT. */
int module_path_find(const char *folders, const char *prefix, const char *kind, char ret_path[static PATH_MAX]);
