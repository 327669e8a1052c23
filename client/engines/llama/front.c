/* The entry point that ggml calls. Finds out which version of the interface the engine has, and starts the plug-in for
 * this version. */
#include "client/engines/llama/engine.h"
#include "client/engines/llama/say.h"

__attribute__((visibility("default"))) struct ggml_backend_reg *ggml_backend_init(void);

struct ggml_backend_reg *ggml_backend_init(void)
{
    static struct engine engine;
    static struct ggml_backend_reg *reg;
    if (reg) /* ggml may call this more than once */
        return reg;
    if (engine_find(__builtin_return_address(0), &engine) < 0)
        return NULL;
    if (engine_check(&engine, "0.25.", 2))
        reg = backend_start_api2(&engine);
    else if (engine_check(&engine, "0.26.", 3))
        reg = backend_start_api3(&engine);
    else
        say("this engine has ggml %s; the plug-in knows 0.25 and 0.26. Weights are not shared", engine.version());
    return reg;
}
