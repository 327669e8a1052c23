#include "client/import_find.h"

#include "client/import_host.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The daemon sends the kind, and it becomes part of a path: so only letters and digits are allowed. */
static bool kind_is_name(const char *kind)
{
    size_t n = strspn(kind, "abcdefghijklmnopqrstuvwxyz0123456789");
    return n > 0 && n <= 16 && !kind[n];
}

/* Writes the path of the module in the first folder that has it. `folders` are separated by colons. False: none has it.
 */
static bool find_file(const char *folders, const char *kind, char path[static PATH_MAX])
{
    while (*folders) {
        size_t length = strcspn(folders, ":");
        int n = snprintf(path, PATH_MAX, "%.*s/import-%s.so", (int)length, folders, kind);
        if (length > 0 && n > 0 && n < PATH_MAX && access(path, F_OK) == 0)
            return true;
        folders += length + (folders[length] == ':');
    }
    return false;
}

int import_find(const char *kind, const struct import_module **ret, struct import_fault *ret_fault)
{
    if (strcmp(kind, import_host_module.kind) == 0) {
        *ret = &import_host_module;
        return 0;
    }
    const char *folders = secure_getenv("ROCMFORGE_MODULE_DIR");
    char path[PATH_MAX];
    if (!kind_is_name(kind) || !find_file(folders && folders[0] ? folders : ROCMFORGE_MODULE_DIR, kind, path))
        return import_fail(ret_fault, -ENOTSUP, "this machine has no module for '%s' devices", kind);

    /* dlopen() returns the same object each time. It is never closed, because GPU runtimes cannot be unloaded. */
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const struct import_module *module = object ? dlsym(object, IMPORT_MODULE_SYMBOL) : NULL;
    if (!module)
        return import_fail(ret_fault, -ENOTSUP, "the module for '%s' devices cannot be loaded: %s", kind, dlerror());
    if (module->abi != IMPORT_ABI || strcmp(module->kind, kind) != 0)
        return import_fail(ret_fault, -ENOTSUP, "the module for '%s' devices is of another version", kind);
    *ret = module;
    return 0;
}
