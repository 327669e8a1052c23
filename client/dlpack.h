/* Ends a tensor that the Python package gave to another library by DLPack (dlpack.h, versions 0.x and 1). The library
 * exports these functions for that package, and for nobody else: they are no part of the interface.
 *
 * Such a struct is a Python object, and its `manager_ctx` is a reference to this object: to end the struct is to give
 * up the reference. A consumer may do that while an exception is pending, when no code written in Python may be called
 * directly. So it is done here. Nothing here refers to Python's symbols: the package gives their addresses.
 *
 * Threads: rf_dlpack_delete() and rf_dlpack_delete_versioned() may be called by any thread, with or without the
 * interpreter's lock. */
#pragma once

/* Functions of Python, by their names there, without "Py". An object is a void pointer. */
struct rf_python {
    int (*gil_ensure)(void);
    void (*gil_release)(int state);
    void (*dec_ref)(void *object);
    int (*capsule_is_valid)(void *capsule, const char *name);
    void *(*capsule_get_pointer)(void *capsule, const char *name);
};

/* From now on these functions are called. The struct must stay. NULL: the interpreter is ending, and from now on
 * nothing is done: what is still in use is never freed. */
void rf_dlpack_python(const struct rf_python *python);

/* The `deleter` of a DLManagedTensor, and of a DLManagedTensorVersioned. */
void rf_dlpack_delete(void *tensor);
void rf_dlpack_delete_versioned(void *tensor);

/* The destructor of a capsule of either. Ends the tensor if no consumer took it: one that does renames the capsule. */
void rf_dlpack_capsule_gone(void *capsule);
