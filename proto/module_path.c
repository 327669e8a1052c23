#include "proto/module_path.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int path_list_find(const char *folders, const char *file, int mode, char ret_path[static PATH_MAX])
{
    while (*folders) {
        const size_t length = strcspn(folders, ":");
        char path[PATH_MAX];
        int n = snprintf(path, sizeof(path), "%.*s/%s", (int)length, folders, file);
        if (length > 0 && n > 0 && n < PATH_MAX && access(path, mode) == 0) {
            strcpy(ret_path, path);
            return 0;
        }
        folders += length + (folders[length] == ':');
    }
    return -ENOENT;
}

int module_file_find(const char *folders, const char *file, char ret_path[static PATH_MAX])
{
    const char *set = secure_getenv("ROCMFORGE_MODULE_DIR");
    return path_list_find(set && set[0] ? set : folders, file, F_OK, ret_path);
}

int module_path_find(const char *folders, const char *prefix, const char *kind, char ret_path[static PATH_MAX])
{
    char file[NAME_MAX + 1];
    int n = snprintf(file, sizeof(file), "%s-%s.so", prefix, kind);
    return n > 0 && n <= NAME_MAX ? module_file_find(folders, file, ret_path) : -ENOENT;
}
