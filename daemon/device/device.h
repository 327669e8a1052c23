/* A memory that models are resident in, and the way into it: what a device module fills in, and what the daemon calls.
 *
 * `host` is built in (host.c). `hip` and `cuda` are the same source (hip/), compiled twice into modules that are loaded
 * at run time.
 *
 * Threads: every function says where it is called from. "loop" is the daemon's one thread that holds state; a function
 * called there does not block. "worker" is any thread of the work queue; a function called there may block, and several
 * workers may be in it at once.
 *
 * Errors: functions return 0 or a negative errno, and say more in a device_fault. -ENODEV says that the device is lost,
 * or returned an error that it does not recover from: all its models are gone, nothing more is asked of it but to free
 * what it gave. */
#pragma once

#include "kernels/types.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What failed, in the words of who failed. */
struct device_fault {
    char call[48]; /* "hipMalloc" */
    int code;      /* as the call returned it */
    char text[160];
};

/* How other processes get at an arena. */
enum export_kind {
    EXPORT_MEMFD, /* a sealed memfd */
    EXPORT_IPC,   /* a HIP IPC memory handle: 64 bytes that any process may open */
    EXPORT_FD,    /* a shareable allocation's descriptor */
};

/* Made once for an arena. The arena keeps the descriptor and closes it when it is freed. */
struct device_export {
    int fd; /* -1 with EXPORT_IPC */
    uint8_t handle[64];
    size_t handle_size; /* 0 but with EXPORT_IPC */
};

/* A piece of staging memory, made once, used for one chunk after another. */
struct slot {
    struct device *device;
    unsigned index; /* among the device's slots */
    void *data;     /* pinned where that helps; aligned to 4096 */
    size_t size;    /* device->slot_bytes */
    void *module;   /* the device's own: an event, say */
};

/* A run of whole blocks of one tensor: where it stands in a filled slot, and where it goes. */
struct piece {
    uint64_t slot_offset;
    uint64_t slot_bytes;
    uint64_t arena_offset;
    uint64_t arena_bytes;
    const struct tensor_type *type; /* in the file */
    enum form form;                 /* in the arena; FORM_NATIVE: the file's own blocks */
};

struct arena;

/* Bytes of an arena. */
struct extent {
    uint64_t offset;
    uint64_t bytes;
};

/* A filled slot on its way into an arena. The caller owns it, and everything that it points to, until `done`. */
struct transfer {
    struct arena *arena;
    struct slot *slot;
    const struct piece *pieces;
    size_t n_pieces;
    /* The slot holds the file's blocks, and the device decodes those pieces whose form is not FORM_NATIVE.
     * Otherwise the slot holds what the arena gets, and slot_bytes equals arena_bytes. */
    bool decode;

    /* Called exactly once, on any thread, perhaps before put() returns. The results are set by then. */
    void (*done)(struct transfer *transfer);

    int status; /* 0 or a negative errno */
    struct device_fault fault;
    uint64_t overflows; /* finite values that became infinite; 0 unless `decode` */
    uint64_t copy_ns;   /* how long the device was busy with its copies, and with its kernels; waiting does not count */
    uint64_t kernel_ns; /* 0: there were none */
    uint64_t begin_ns;  /* on CLOCK_MONOTONIC: when its copies began, */
    uint64_t copied_ns; /* were done, */
    uint64_t end_ns;    /* and the kernels as well */
    unsigned stream;    /* that the kernels were on; copies are on stream 0 */
};

struct device_ops {
    /* loop, once, at the end. Every slot and arena was freed. */
    void (*close)(struct device *device);

    /* loop, at start. Sets data, and module if it likes; size is set. */
    int (*slot_init)(struct device *device, struct slot *slot, struct device_fault *ret_fault);
    void (*slot_fini)(struct device *device, struct slot *slot);

    /* worker. Takes `bytes` (more than 0) of memory, at least 256-byte aligned. What was in it may be another user's:
     * the caller puts something everywhere but in `gaps`, which are cleared before anything is put. -ENOMEM if there
     * is not so much. */
    int (*arena_new)(struct device *device, uint64_t bytes, const struct extent *gaps, size_t n_gaps,
                     struct arena **ret, struct device_fault *ret_fault);

    /* worker. No transfer is under way. Waits for the device to be done with it. */
    void (*arena_free)(struct arena *arena);

    /* worker; also loop, if the device fetches. Hands a filled slot over: returns at once if the device fetches, else
     * copies. The result comes through transfer->done. */
    void (*put)(struct device *device, struct transfer *transfer);

    /* worker, once, while transfers may be under way: makes the export, which is the arena's. Nobody is given it before
     * the arena is sealed. */
    int (*arena_export)(struct arena *arena, struct device_export *ret, struct device_fault *ret_fault);

    /* worker, once, when all transfers are done: closes the arena for writing where that can be, and returns when all
     * that the device does with it is done. */
    int (*arena_seal)(struct arena *arena, struct device_fault *ret_fault);

    /* worker. Reads the arena back. */
    int (*arena_read)(struct arena *arena, uint64_t offset, void *dst, size_t size, struct device_fault *ret_fault);

    /* worker, and any other thread that may block. Free bytes as the driver, or the system, reports them: what could
     * be taken now, by whomever. */
    int (*memory_free)(struct device *device, uint64_t *ret, struct device_fault *ret_fault);

    /* Any thread. Has a kernel for this type into this form. */
    bool (*decodes)(struct device *device, const struct tensor_type *type, enum form form);
};

/* That a daemon may have. */
#define DEVICES_MAX 32u

/* The module allocates it, inside a larger struct of its own, and sets the first part. */
struct device {
    const struct device_ops *ops;
    char id[32]; /* "host", "hip:0" */
    const char *kind;
    char name[128];
    char uuid[64]; /* empty: none */
    char pci[24];  /* empty: none */
    enum export_kind export_kind;
    uint64_t total;       /* bytes of memory */
    uint64_t granule;     /* arenas are rounded up to this */
    unsigned n_slots;     /* staging slots that it wants */
    size_t slot_bytes;    /* size of one */
    size_t part_bytes;    /* what one worker fills of it at a time; several fill a slot together where this is less */
    bool fetches;         /* it reads slots by itself, while the processors that filled them do something else */
    uint64_t link;        /* measured rate of copies to it, bytes per second; 0: not known */
    bool exports_leak;    /* memory that was exported does not come back when it is freed, but when the process ends */
    char no_kernels[160]; /* why it has none, where it could have; empty: it has, or is none to have any */

    /* The daemon's part; loop only. */
    uint64_t budget; /* bytes that models may take; any thread may read it, once the daemon listens */
    uint64_t rate;   /* of the last load, in bytes of the file per second; 0: none yet */
    uint64_t used;   /* the ledger: bytes that models take, or have been promised */
    uint64_t queued; /* bytes that loads wait for, which nobody who comes later is promised */
    uint64_t
        reach; /* bytes that models could take in all, by device_survey() when it was asked last; 0: it never was */
    bool failed;

    /* Any thread. */
    atomic_uint_least64_t taken; /* bytes that models have of what the driver had: not more than `used`, in the end */
    atomic_uint moving;          /* arenas that are being made, or freed, now */
    atomic_uint moves;           /* and how many were */

    struct staging *staging; /* loop */
};

/* Of one device. */
#define DEVICE_STREAMS_MAX 16u

/* What a module is told when it opens its devices. */
struct device_config {
    unsigned workers; /* threads that fill slots */
    uint64_t staging; /* bytes for all slots of a device together; 0: the module's choice */
    unsigned streams; /* to use, at most DEVICE_STREAMS_MAX; 0: the module's choice */
    /* How many copies in a row measure the link, twice; 0: the module's choice, which the clock has a say in. */
    unsigned link_copies;
    uint64_t link_bytes;  /* of each of these copies; 0: the module's choice */
    uint64_t trial_bytes; /* what exports are tried with, at least two granules; 0: the module's choice */
};

/* A shared object exports one of these as `rocmforge_device_module`. */
struct device_module {
    unsigned abi; /* DEVICE_ABI */
    const char *kind;

    /* loop, once, at start; may block. Opens every device of the kind. Returns their number and sets *ret, an array
     * that the caller frees with free() after it has closed each; -ENODEV if there is none, or no driver, which the
     * fault words; -EIO if there are some and none can be used. Where some devices answer and others do not, the fault
     * words the last that does not; it is empty if all do. */
    int (*open)(const struct device_config *config, struct device ***ret, struct device_fault *ret_fault);
};

#define DEVICE_ABI           8u
#define DEVICE_MODULE_SYMBOL "rocmforge_device_module"

extern const struct device_module device_host_module;

/* The kind of the host's memory. */
#define DEVICE_HOST "host"

bool device_is_host(const struct device *device);

/* Bytes that models may take in all: of the budget, and of what the driver had for them when it was asked last. The
 * driver's answer may lag behind, so the ledger holds beside it. 0 if the device is lost. loop. */
uint64_t device_limit(const struct device *device);

/* Bytes that a load could get now, without an eviction. loop. */
uint64_t device_available(const struct device *device);

/* Bytes that others than models have of the device, when it was asked last. 0: it never was. loop. */
uint64_t device_others(const struct device *device);

/* Asks the driver. *ret is for `reach`: what is free, and what models have, counted at the same moment. May block;
 * worker, or another thread that may. Fails as memory_free() does. */
int device_survey(struct device *device, uint64_t *ret, struct device_fault *ret_fault);

/* arena_new() and arena_free(), for device_survey() to know of. bytes: as arena_new() was asked for. worker. */
int device_arena_new(struct device *device, uint64_t bytes, const struct extent *gaps, size_t n_gaps,
                     struct arena **ret, struct device_fault *ret_fault);
void device_arena_free(struct device *device, struct arena *arena, uint64_t bytes);

/* "memfd", "ipc", "fd". Static. */
const char *export_kind_name(enum export_kind kind);

/* What transfers are timed with: CLOCK_MONOTONIC, in nanoseconds. Any thread. */
uint64_t device_clock_ns(void);

/* Fills a fault; call is the function's name. Truncates. NULL fault is fine. Returns `error`, a negative errno. */
int device_fault_set(struct device_fault *fault, int error, const char *call, int code, const char *text);
