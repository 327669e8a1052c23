/* The functions of ggml that the plug-in calls, found in the process that loaded it. */
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

/* Finds the functions in the object that contains `caller`, an address of ggml's code, and in what that object needs:
 * a process may have several ggml, and its symbols need not be global. 0; or -ENOENT after it said what is missing. */
int engine_find(const void *caller, struct engine *ret);

/* The engine is of this version of the interface, "0.26.", 3, and lays out tensors as declared here. False after it
 * said why not, or without a word if it is only of another release. */
bool engine_check(const struct engine *engine, const char *release, int api_version);

/* A plug-in for one version. Both return NULL after they said why. Called once. */
struct ggml_backend_reg *backend_start_api2(const struct engine *engine);
struct ggml_backend_reg *backend_start_api3(const struct engine *engine);
