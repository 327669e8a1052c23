#include "client/import_find.h"

#include "client/import_host.h"
#include "proto/module_path.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>

/* The daemon sends the kind, and it becomes part of a path: so only letters and digits are allowed. */
static bool kind_is_name(const char *kind)
{
    size_t n = strspn(kind, "abcdefghijklmnopqrstuvwxyz0123456789");
    return n > 0 && n <= 16 && !kind[n];
}

int import_find(const char *kind, const struct import_module **ret, struct import_fault *ret_fault)
{
    if (strcmp(kind, import_host_module.kind) == 0) {
        *ret = &import_host_module;
        return 0;
    }
    char path[PATH_MAX];
    if (!kind_is_name(kind) || module_path_find(ROCMFORGE_MODULE_DIR, "import", kind, path) < 0)
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
