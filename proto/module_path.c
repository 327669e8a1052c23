#include "proto/module_path.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int module_path_find(const char *folders, const char *prefix, const char *kind, char ret_path[static PATH_MAX])
{
    const char *set = secure_getenv("ROCMFORGE_MODULE_DIR");
    const char *at = set && set[0] ? set : folders;
    while (*at) {
        const size_t length = strcspn(at, ":");
        char path[PATH_MAX];
        int n = snprintf(path, sizeof(path), "%.*s/%s-%s.so", (int)length, at, prefix, kind);
        if (length > 0 && n > 0 && n < PATH_MAX && access(path, F_OK) == 0) {
            strcpy(ret_path, path);
            return 0;
        }
        at += length + (at[length] == ':');
    }
    return -ENOENT;
}
