#include "client/engines/llama/engine.h"

#include "client/engines/llama/say.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

static bool find(void *object, const char *name, void *ret)
{
    void *function = dlsym(object, name);
    if (!function) {
        say("the engine has no function %s, so its version of ggml is not known: its weights are not shared", name);
        return false;
    }
    memcpy(ret, &function, sizeof(function));
    return true;
}

int engine_find(const void *caller, struct engine *ret)
{
    Dl_info info;
    void *object = NULL;
    if (dladdr(caller, &info) != 0 && info.dli_fname)
        object = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    if (!object) /* ggml is in the program itself, whose name may not be a path */
        object = dlopen(NULL, RTLD_LAZY);
    struct engine engine;
    if (!find(object, "ggml_version", &engine.version) ||
        !find(object, "ggml_tensor_overhead", &engine.tensor_overhead) ||
        !find(object, "ggml_nbytes", &engine.nbytes) || !find(object, "ggml_backend_dev_count", &engine.dev_count) ||
        !find(object, "ggml_backend_dev_get", &engine.dev_get) ||
        !find(object, "ggml_backend_buffer_init", &engine.buffer_init) ||
        !find(object, "ggml_backend_buffer_free", &engine.buffer_free))
        return -ENOENT;
    *ret = engine; /* the object is never closed, because its functions stay in use */
    return 0;
}

/* Whether the engine has this version of the interface, and tensors as they are declared here. */
static bool is_of(const struct engine *engine, const struct engine_version *version)
{
    bool same = strncmp(engine->version(), version->release, strlen(version->release)) == 0 &&
                engine->tensor_overhead() == GGML_OBJECT_BYTES + sizeof(struct ggml_tensor);
    for (size_t i = 0; same && i < engine->dev_count(); i++) {
        const struct ggml_backend_device *device = engine->dev_get(i);
        same = device->reg && device->reg->api_version == version->api;
    }
    return same;
}

const struct engine_version *engine_version_find(const struct engine *engine, const struct engine_version *versions,
                                                 size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (is_of(engine, &versions[i]))
            return &versions[i];
    char text[256] = "";
    size_t used = 0;
    for (size_t i = 0; i < n && used < sizeof(text); i++)
        used += (size_t)snprintf(text + used, sizeof(text) - used, "%sggml %sx with interface %d",
                                 i == 0 ? "" : " and ", versions[i].release, versions[i].api);
    const struct ggml_backend_device *device = engine->dev_count() > 0 ? engine->dev_get(0) : NULL;
    say("this engine has ggml %s with interface %d; weights can be shared with %s. Its weights are not shared",
        engine->version(), device && device->reg ? device->reg->api_version : 0, text);
    return NULL;
}
