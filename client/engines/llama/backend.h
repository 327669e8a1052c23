/* Declarations for the files of the plug-in that depend on the version of ggml's interface. These files are compiled
 * once for each version. */
#pragma once

#if RF_GGML_API == 2
#include "client/engines/llama/ggml_api2.h"
#else
#include "client/engines/llama/ggml_api3.h"
#endif
#include "client/engines/llama/engine.h"

/* Functions that are not static get the version in their name, so that both versions can be in one library. */
#define VERSIONED_(name, version)  name##_api##version
#define VERSIONED__(name, version) VERSIONED_(name, version)
#define VERSIONED(name)            VERSIONED__(name, RF_GGML_API)
#define backend_start              VERSIONED(backend_start)
#define gpu_wrap                   VERSIONED(gpu_wrap)
#define buffer_alloc               VERSIONED(buffer_alloc)

/* One of our buffer types, and the device that offers it to the engine. The device has the type CPU and supports no
 * operation, so the engine computes nothing on it. */
struct place {
    struct ggml_backend_device device;
    struct ggml_backend_buffer_type buft;
    struct ggml_backend_buffer_type *real; /* the buffer type that it replaces: of the CPU or of a GPU */
    const struct engine *engine;
    char name[32];
    char pci[32]; /* of the GPU; empty: host memory */
    /* A copy of the start of a GPU buffer type's context, so that the GPU's backend takes ours for its own: the
     * device's index and a std::string. gpu_wrap() checks this layout. The bytes after it are 0. */
    struct {
        int index;
        const char *text;
        size_t length;
        char rest[96];
    } likeness;
};

/* Makes place->buft a buffer type that the GPU's backend can compute on, with the name place->name. If this is not
 * possible, tells the user why and returns false. */
bool gpu_wrap(struct place *place, struct ggml_backend_device *gpu);

/* alloc_buffer() of ggml's interface. The buffer type must belong to a struct place. */
struct ggml_backend_buffer *buffer_alloc(struct ggml_backend_buffer_type *buft, size_t size);
