/* Finds the modules for devices, and other files that are installed beside them: shared objects that the daemon, the
 * client library and engines load at run time. */
#pragma once

#include <limits.h>

/* Finds `file` in the first folder that has it and allows `mode` (F_OK, R_OK, X_OK: see access()). Folders are
 * separated by colons; an empty one is none. Returns 0 or -ENOENT. */
int path_list_find(const char *folders, const char *file, int mode, char ret_path[static PATH_MAX]);

/* Finds `file` in the first folder that has it. The folders are listed in the environment variable
 * ROCMFORGE_MODULE_DIR. If it is not set, or if the process runs with other rights than its caller (set-user-ID), they
 * are listed in `folders`. Returns 0 or -ENOENT. */
int module_file_find(const char *folders, const char *file, char ret_path[static PATH_MAX]);

/* The same for the module "PREFIX-KIND.so". `kind` becomes part of a path, so the caller has checked it. */
int module_path_find(const char *folders, const char *prefix, const char *kind, char ret_path[static PATH_MAX]);
