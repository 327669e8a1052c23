/* How this process gets at the memory of a device: what an import module fills in, and what attaching calls.
 *
 * `host` is built in (import_host.h). Other kinds are shared objects, import-<kind>.so, loaded when a model on such a
 * device is first attached to, and never unloaded: GPU runtimes do not survive that.
 *
 * Threads: several clients may be in use on several threads, so a module's functions are called on several threads at
 * once. What a module has in common between its mappings it guards by itself. One mapping is used by one thread at a
 * time.
 *
 * Errors: functions return 0 or a negative errno, and word it. A module is linked with nothing of the library: all that
 * it needs stands in this file. */
#pragma once

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* What failed, as a sentence: "hipIpcOpenMemHandle: invalid argument (1)". */
struct import_fault {
    char text[256];
};

/* What the daemon tells of a model's memory. Borrowed for the call. Everything comes from another process: the module
 * checks what it can. */
struct import_source {
    const char *device;    /* Device.id: "hip:0". The daemon's count, which need not be this process's. */
    const char *uuid;      /* identity that holds between processes; NULL: none */
    const char *pci;       /* "0000:c1:00.0"; NULL: none */
    int fd;                /* -1: none. A module that keeps it duplicates it. */
    const uint8_t *handle; /* NULL: none */
    size_t handle_size;
    uint64_t bytes; /* of the memory that is wanted, from its start. Never 0. */
};

/* The memory, mapped. The module allocates it, inside a larger struct of its own, and sets the first part. */
struct import_mapping {
    const void *data; /* where it is in this process: readable, or a device pointer */
};

/* A shared object exports one of these as `rocmforge_import_module`. */
struct import_module {
    unsigned abi; /* IMPORT_ABI */
    const char *kind;

    /* Maps the memory, read-only where that can be, and reads none of it. Two sources with one handle give mappings
     * that each work until they are closed: if the device's runtime opens a handle once a process, the module counts.
     * -ENODEV: this process does not see the device. -EPROTO: what the source has is none of this kind. -EBUSY: what is
     * left mapped of it, see close(), still cannot be unmapped. */
    int (*open)(const struct import_source *source, struct import_mapping **ret, struct import_fault *ret_fault);

    /* Unmaps it, once work of the device that reads it has ended; NULL is fine. Where the device's runtime does not let
     * that be waited for, since the program is capturing a graph, it stays mapped until another mapping of the device
     * is closed or the same memory is opened, or the process ends; and the capture is broken by that. In a process that
     * was forked from the one that opened it, where the device's runtime is not to be asked any more, it only frees,
     * and the others are -ENOTSUP. */
    void (*close)(struct import_mapping *mapping);

    /* Copies bytes, all of them inside the memory, to the host. */
    int (*read)(struct import_mapping *mapping, uint64_t offset, void *dst, size_t size,
                struct import_fault *ret_fault);
};

#define IMPORT_ABI           1u
#define IMPORT_MODULE_SYMBOL "rocmforge_import_module"

/* Words a fault, and returns `error`, a negative errno. */
__attribute__((format(printf, 3, 4))) static inline int import_fail(struct import_fault *fault, int error,
                                                                    const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(fault->text, sizeof(fault->text), format, arguments);
    va_end(arguments);
    return error;
}
