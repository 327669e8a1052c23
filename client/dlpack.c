#include "client/dlpack.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* DLManagedTensor, and its DLTensor. */
struct managed {
    struct {
        void *data;
        int32_t device[2];
        int32_t ndim;
        uint32_t dtype;
        int64_t *shape, *strides;
        uint64_t byte_offset;
    } tensor;
    void *manager_ctx;
};

/* The beginning of DLManagedTensorVersioned, which is the same in all versions from 1.0 on. */
struct managed_versioned {
    uint32_t version[2];
    void *manager_ctx;
};

static _Atomic(const struct rf_python *) functions;

void rf_dlpack_python(const struct rf_python *python)
{
    atomic_store(&functions, python);
}

/* Giving up a reference is allowed while an exception is pending: Python puts it aside while it calls a __del__(). */
static void end(void *object)
{
    const struct rf_python *python = atomic_load(&functions);
    if (!python)
        return;
    int state = python->gil_ensure();
    python->dec_ref(object);
    python->gil_release(state);
}

void rf_dlpack_delete(void *tensor)
{
    if (tensor)
        end(((struct managed *)tensor)->manager_ctx);
}

void rf_dlpack_delete_versioned(void *tensor)
{
    if (tensor)
        end(((struct managed_versioned *)tensor)->manager_ctx);
}

/* Whoever frees a capsule has the lock. */
void rf_dlpack_capsule_gone(void *capsule)
{
    const struct rf_python *python = atomic_load(&functions);
    if (!python)
        return;
    if (python->capsule_is_valid(capsule, "dltensor"))
        rf_dlpack_delete(python->capsule_get_pointer(capsule, "dltensor"));
    else if (python->capsule_is_valid(capsule, "dltensor_versioned"))
        rf_dlpack_delete_versioned(python->capsule_get_pointer(capsule, "dltensor_versioned"));
}
