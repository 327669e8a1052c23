#include "client/engines/llama/engine.h"

#include "client/engines/llama/say.h"

#include <dlfcn.h>
#include <errno.h>
#include <string.h>

static bool find(void *object, const char *name, void *ret)
{
    void *function = dlsym(object, name);
    if (!function)
        function = dlsym(RTLD_DEFAULT, name);
    if (!function) {
        say("the engine has no function %s: this plug-in does not know this version of it", name);
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

bool engine_check(const struct engine *engine, const char *release, int api_version)
{
    if (strncmp(engine->version(), release, strlen(release)) != 0)
        return false;
    if (engine->tensor_overhead() != GGML_OBJECT_BYTES + sizeof(struct ggml_tensor)) {
        say("tensors of this ggml %s are not laid out as those of %sx", engine->version(), release);
        return false;
    }
    for (size_t i = 0; i < engine->dev_count(); i++) {
        const struct ggml_backend_device *device = engine->dev_get(i);
        if (!device->reg || device->reg->api_version != api_version) {
            say("this ggml %s has another interface than version %d", engine->version(), api_version);
            return false;
        }
    }
    return true;
}
