/* The functions of ggml that the plug-in calls. They are looked up in the process that loaded the plug-in. */
#pragma once

#include "client/engines/llama/ggml_api.h"

struct engine {
    const char *(*version)(void);
    size_t (*tensor_overhead)(void);
    size_t (*nbytes)(const struct ggml_tensor *tensor);
    size_t (*dev_count)(void);
    struct ggml_backend_device *(*dev_get)(size_t index);
    struct ggml_backend_buffer *(*buffer_init)(struct ggml_backend_buffer_type *buft,
                                               struct ggml_backend_buffer_i iface, void *context, size_t size);
    void (*buffer_free)(struct ggml_backend_buffer *buffer);
};

/* Looks up the functions in the library that contains `caller`, an address in ggml's code, and in the libraries that it
 * needs. A process may have several copies of ggml, and their symbols may not be global. 0; or -ENOENT, and the user is
 * told which function is missing. */
int engine_find(const void *caller, struct engine *ret);

/* Whether the engine has this release and version of the interface, for example "0.26." and 3, and the tensor layout
 * that is declared here. If only the release differs, returns false without a message; else the user is told why. */
bool engine_check(const struct engine *engine, const char *release, int api_version);

/* Start the plug-in for one version of the interface. Return NULL on failure, and the user is told why. Called once. */
struct ggml_backend_reg *backend_start_api2(const struct engine *engine);
struct ggml_backend_reg *backend_start_api3(const struct engine *engine);
