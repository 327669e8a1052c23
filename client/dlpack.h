/* Makes and ends a tensor that the Python package gives to another library by DLPack (dlpack.h, versions 0.x and 1).
 * The library exports these functions for that package, and for nobody else: they are no part of the interface.
 *
 * Such a struct is a Python object, and its `manager_ctx` is a reference to this object: to end the struct is to give
 * up the reference. A consumer may do that while an exception is pending, when no code written in Python may be called
 * directly. So it is done here. Nothing here refers to Python's symbols: the package gives their addresses.
 *
 * Threads: the deleters may be called by any thread, with or without the interpreter's lock. */
#pragma once

/* Functions of Python, by their names there, without "Py". An object is a void pointer. */
struct rf_python {
    int (*gil_ensure)(void);
    void (*gil_release)(int state);
    void (*inc_ref)(void *object);
    void (*dec_ref)(void *object);
    void *(*capsule_new)(void *pointer, const char *name, void (*destructor)(void *capsule));
    int (*capsule_is_valid)(void *capsule, const char *name);
    void *(*capsule_get_pointer)(void *capsule, const char *name);
};

/* From now on these functions are called. The struct must stay. NULL: the interpreter is ending, and from now on
 * nothing is done: what is still in use is never freed. */
void rf_dlpack_python(const struct rf_python *python);

/* Sets `manager_ctx` and `deleter` of a DLManagedTensor, or of a DLManagedTensorVersioned, which lies in the memory of
 * this object. Returns a new capsule of it, which has a reference to the object. NULL: Python has an exception; or the
 * interpreter is ending. To be called with the interpreter's lock. One call does all this, so that no signal comes in
 * between. */
void *rf_dlpack_capsule(void *object, void *tensor, int versioned);
