/* The interface of import modules. An import module makes the memory of one kind of device accessible in this process.
 * The library calls it when a model is attached.
 *
 * `host` is built in (import_host.h). Other kinds are shared objects, import-<kind>.so, loaded when a model on such a
 * device is attached for the first time. They are never unloaded, because GPU runtimes cannot be.
 *
 * Threads: several threads may call a module's functions at the same time. The module locks the state that its mappings
 * share. One mapping is used by one thread at a time.
 *
 * Errors: functions return 0 or a negative errno, and write a sentence to *ret_fault. A module links no part of the
 * library: all that it needs is in this file. */
#pragma once

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* A failure as a sentence: "hipIpcOpenMemHandle: invalid argument (1)". */
struct import_fault {
    char text[256];
};

/* What the daemon tells about a model's memory. Borrowed during the call. All of it comes from another process, so the
 * module checks it as far as it can. */
struct import_source {
    const char *device;    /* Device.id: "hip:0". In this process the device may have another number. */
    const char *uuid;      /* the same in every process; NULL: none */
    const char *pci;       /* "0000:c1:00.0"; NULL: none */
    int fd;                /* -1: none. To keep it, the module duplicates it. */
    const uint8_t *handle; /* NULL: none */
    size_t handle_size;
    int writable;   /* not 0: to be written to, because this process makes the model; so it is not sealed yet */
    uint64_t bytes; /* how many bytes to map, from the start of the memory. Never 0. */
};

/* A mapping. The module allocates it as the first member of a larger struct of its own, and sets `data`. */
struct import_mapping {
    const void *data; /* the memory in this process: readable if it is on the host, else a device pointer */
};

/* A module. A shared object exports it as `rocmforge_import_module`. */
struct import_module {
    unsigned abi; /* IMPORT_ABI */
    const char *kind;

    /* Maps the memory, read-only if the device can do that, unless `writable`. Reads none of it. The same handle may be
     * opened several times, and each mapping is valid until it is closed. If the device's runtime opens a handle only
     * once in a process, the module counts its mappings.
     *
     * -ENODEV: this process does not see the device. -EPROTO: the source has no descriptor or handle of this kind.
     * -EBUSY: the memory is still mapped from before, see close(), and still cannot be unmapped. */
    int (*open)(const struct import_source *source, struct import_mapping **ret, struct import_fault *ret_fault);

    /* Waits until the device has finished all work that may read the memory, and unmaps it. The mapping may be NULL.
     *
     * While the program captures a graph, a GPU's runtime refuses to wait, and the capture is broken by the attempt.
     * Then the memory stays mapped until another mapping of the device is closed, the same memory is opened again, or
     * the process ends.
     *
     * In a process that was forked from the one that opened the mapping, a GPU's runtime must not be called. There
     * close() only frees the struct, and open() and read() return -ENOTSUP. */
    void (*close)(struct import_mapping *mapping);

    /* Copies bytes to the host. The caller has checked that all of them are inside the memory. */
    int (*read)(struct import_mapping *mapping, uint64_t offset, void *dst, size_t size,
                struct import_fault *ret_fault);
};

#define IMPORT_ABI           2u
#define IMPORT_MODULE_SYMBOL "rocmforge_import_module"

/* Writes the sentence of a fault, and returns `error`, a negative errno. */
__attribute__((format(printf, 3, 4))) static inline int import_fail(struct import_fault *fault, int error,
                                                                    const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(fault->text, sizeof(fault->text), format, arguments);
    va_end(arguments);
    return error;
}
