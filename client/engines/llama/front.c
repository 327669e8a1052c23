/* The entry point that ggml calls. Finds out which version of the interface the engine has, and starts the plug-in for
 * this version. */
#include "client/engines/llama/engine.h"

/* All that is supported. The declarations of each version are in ggml_api2.h and ggml_api3.h. */
static const struct engine_version versions[] = {
    {"0.25.", 2, backend_start_api2},
    {"0.26.", 3, backend_start_api3},
};

__attribute__((visibility("default"))) struct ggml_backend_reg *ggml_backend_init(void);

struct ggml_backend_reg *ggml_backend_init(void)
{
    static struct engine engine;
    static struct ggml_backend_reg *reg;
    if (reg) /* ggml may call this more than once */
        return reg;
    if (engine_find(__builtin_return_address(0), &engine) < 0)
        return NULL;
    const struct engine_version *version =
        engine_version_find(&engine, versions, sizeof(versions) / sizeof(versions[0]));
    if (version)
        reg = version->start(&engine);
    return reg;
}
