/* Where the modules for devices are: shared objects that the daemon and the client library load at run time. */
#pragma once

#include <limits.h>

/* Finds the file "PREFIX-KIND.so" in the first folder that has it. The folders are those that ROCMFORGE_MODULE_DIR
 * names, separated by colons; `folders` if it is not set, or the process has other rights than its caller. Returns 0,
 * or -ENOENT. `kind` was checked: it becomes part of a path. */
int module_path_find(const char *folders, const char *prefix, const char *kind, char ret_path[static PATH_MAX]);
