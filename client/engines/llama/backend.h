/* What the files of the plug-in for one version of ggml's interface share. They are compiled once for each version. */
#pragma once

#if RF_GGML_API == 2
#include "client/engines/llama/ggml_api2.h"
#else
#include "client/engines/llama/ggml_api3.h"
#endif
#include "client/engines/llama/engine.h"

/* Names of what is not static, so that both versions fit in one library. */
#define VERSIONED_(name, version)  name##_api##version
#define VERSIONED__(name, version) VERSIONED_(name, version)
#define VERSIONED(name)            VERSIONED__(name, RF_GGML_API)
#define backend_start              VERSIONED(backend_start)
#define gpu_wrap                   VERSIONED(gpu_wrap)
#define buffer_alloc               VERSIONED(buffer_alloc)

/* A buffer type of ours, and the device of type CPU that makes it known: one supports no operation, so that nothing is
 * computed on it. */
struct place {
    struct ggml_backend_device device;
    struct ggml_backend_buffer_type buft;
    struct ggml_backend_buffer_type *real; /* what it stands for: the CPU's, or a GPU's */
    const struct engine *engine;
    char name[32];
    char pci[32]; /* of the GPU; empty: host memory */
    /* What a GPU's backend takes for its own: the device's index and a std::string, as it was checked to have them. The
     * room behind is zeros. */
    struct {
        int index;
        const char *text;
        size_t length;
        char rest[96];
    } likeness;
};

/* Makes place->buft what the GPU's backend computes on, by the name in place->name. False after it said why that cannot
 * be. */
bool gpu_wrap(struct place *place, struct ggml_backend_device *gpu);

/* An alloc_buffer() of ggml's interface; the buffer type is one of a place's. */
struct ggml_backend_buffer *buffer_alloc(struct ggml_backend_buffer_type *buft, size_t size);
