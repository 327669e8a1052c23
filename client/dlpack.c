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
    void (*deleter)(void *);
};

/* The beginning of DLManagedTensorVersioned, which is the same in all versions from 1.0 on. */
struct managed_versioned {
    uint32_t version[2];
    void *manager_ctx;
    void (*deleter)(void *);
};

static const char NAME[] = "dltensor", NAME_VERSIONED[] = "dltensor_versioned";

static _Atomic(const struct rf_python *) functions;

void rf_dlpack_python(const struct rf_python *python)
{
    atomic_store(&functions, python);
}

/* Giving up a reference is allowed while an exception is pending: Python puts it aside while it calls a finalizer. */
static void end(void *object)
{
    const struct rf_python *python = atomic_load(&functions);
    if (!python)
        return;
    int state = python->gil_ensure();
    python->dec_ref(object);
    python->gil_release(state);
}

static void delete_plain(void *tensor)
{
    if (tensor)
        end(((struct managed *)tensor)->manager_ctx);
}

static void delete_versioned(void *tensor)
{
    if (tensor)
        end(((struct managed_versioned *)tensor)->manager_ctx);
}

/* The destructor of a capsule. A consumer that takes the tensor renames the capsule, so this one was not taken. Whoever
 * frees a capsule has the lock. */
static void capsule_gone(void *capsule)
{
    const struct rf_python *python = atomic_load(&functions);
    if (!python)
        return;
    if (python->capsule_is_valid(capsule, NAME))
        delete_plain(python->capsule_get_pointer(capsule, NAME));
    else if (python->capsule_is_valid(capsule, NAME_VERSIONED))
        delete_versioned(python->capsule_get_pointer(capsule, NAME_VERSIONED));
}

void *rf_dlpack_capsule(void *object, void *tensor, int versioned)
{
    const struct rf_python *python = atomic_load(&functions);
    if (!python)
        return NULL;
    if (versioned) {
        ((struct managed_versioned *)tensor)->manager_ctx = object;
        ((struct managed_versioned *)tensor)->deleter = delete_versioned;
    } else {
        ((struct managed *)tensor)->manager_ctx = object;
        ((struct managed *)tensor)->deleter = delete_plain;
    }
    void *capsule = python->capsule_new(tensor, versioned ? NAME_VERSIONED : NAME, capsule_gone);
    if (capsule)
        python->inc_ref(object);
    return capsule;
}
