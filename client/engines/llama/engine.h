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

/* A version of ggml's interface. */
struct engine_version {
    const char *release; /* the start of ggml's version, "0.26." */
    int api;             /* of the interface, as a registry tells it */
    /* Starts the plug-in for this version. Returns NULL on failure, and the user is told why. Called once. */
    struct ggml_backend_reg *(*start)(const struct engine *engine);
};

/* Finds the version that the engine has. All must be equal: release, interface, and the layout of tensors. NULL: it has
 * none of them, and the user is told so. */
const struct engine_version *engine_version_find(const struct engine *engine, const struct engine_version *versions,
                                                 size_t n);

/* See engine_version.start. */
struct ggml_backend_reg *backend_start_api2(const struct engine *engine);
struct ggml_backend_reg *backend_start_api3(const struct engine *engine);
