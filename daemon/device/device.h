/* The interface of a device: a memory that models are resident in. A device module implements device_ops; the daemon
 * calls them.
 *
 * The module `host` is part of the daemon (host.c). `hip` and `cuda` are compiled from one source (hip/) into two
 * shared objects, which are loaded at run time.
 *
 * Threads: each function says which thread calls it. "loop" is the one thread that holds the daemon's state; a function
 * called there does not block. "worker" is any thread of the work queue; a function called there may block, and several
 * workers may call it at the same time.
 *
 * Errors: functions return 0 or a negative errno, and describe the error in a device_fault. -ENODEV means that the
 * device is lost: it is gone, or it returned an error that it does not recover from. Then all its models are lost,
 * and the daemon calls only the functions that free something. */
#pragma once

#include "kernels/types.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Which call failed, and how. The texts are those of the runtime or of the system. */
struct device_fault {
    char call[48]; /* "hipMalloc" */
    int code;      /* what the call returned */
    char text[160];
};

/* How another process gets access to an arena. */
enum export_kind {
    EXPORT_MEMFD, /* a sealed memfd */
    EXPORT_IPC,   /* a HIP or CUDA IPC memory handle: 64 bytes, which any process can open */
    EXPORT_FD,    /* the descriptor of a GPU's allocation, which clients map read-only */
};

/* Which of them the administrator asks for, where a device has a choice. */
enum export_wish {
    EXPORT_WISH_AUTO, /* EXPORT_FD if it works, else EXPORT_IPC */
    EXPORT_WISH_FD,   /* a device on which EXPORT_FD does not work cannot be opened */
    EXPORT_WISH_IPC,
};

/* Made once for each arena. The arena owns the descriptor and closes it when the arena is freed. */
struct device_export {
    int fd; /* -1 with EXPORT_IPC */
    uint8_t handle[64];
    size_t handle_size; /* 0 unless EXPORT_IPC */
};

/* A piece of staging memory. It is made once and used for many chunks, one after another. */
struct slot {
    struct device *device;
    unsigned index; /* among the device's slots */
    void *data;     /* aligned to 4096 bytes; pinned, if the device is a GPU */
    size_t size;    /* device->slot_bytes */
    void *module;   /* the module's own data */
};

/* A run of whole blocks of one tensor: where it is in a filled slot, and where it goes in the arena. */
struct piece {
    uint64_t slot_offset;
    uint64_t slot_bytes;
    uint64_t arena_offset;
    uint64_t arena_bytes;
    const struct tensor_type *type; /* in the file */
    enum form form;                 /* in the arena; FORM_NATIVE: the blocks as they are in the file */
};

struct arena;

/* A range of bytes in an arena. */
struct extent {
    uint64_t offset;
    uint64_t bytes;
};

/* A filled slot that is being put into an arena. The caller owns the transfer and all that it points to, and changes
 * none of it until `done` is called. */
struct transfer {
    struct arena *arena;
    struct slot *slot;
    /* Memory of host_register() whose bytes are put instead of the slot's, none of which is decoded; slot_offset counts
     * from here. NULL: the slot's data. */
    const void *source;
    const struct piece *pieces;
    size_t n_pieces;
    /* true: the slot holds blocks as they are in the file, and the device decodes the pieces whose form is not
     * FORM_NATIVE. false: the slot holds the bytes that go into the arena, and slot_bytes equals arena_bytes in each
     * piece. */
    bool decode;

    /* Called exactly once, on any thread, possibly before put() returns. The results below are set by then. */
    void (*done)(struct transfer *transfer);

    int status; /* 0 or a negative errno */
    struct device_fault fault;
    uint64_t overflows; /* number of finite values that became infinite; 0 unless `decode` */
    uint64_t copy_ns;   /* how long the device spent on its copies, without waiting */
    uint64_t kernel_ns; /* the same for its kernels; 0: it had none */
    uint64_t begin_ns;  /* when its copies began, on CLOCK_MONOTONIC */
    uint64_t copied_ns; /* when its copies ended */
    uint64_t end_ns;    /* when its kernels ended too */
    unsigned stream;    /* index of the stream that its kernels ran on; copies run on stream 0 */
};

struct device_ops {
    /* loop, once, at the end. All slots and arenas are freed already. */
    void (*close)(struct device *device);

    /* loop, at the start; later a worker, one at a time. slot->size is set. Allocates slot->data, and sets slot->module
     * if the module needs it. */
    int (*slot_init)(struct device *device, struct slot *slot, struct device_fault *ret_fault);
    void (*slot_fini)(struct device *device, struct slot *slot);

    /* worker. Allocates an arena of `bytes` bytes (more than 0), aligned to at least 256 bytes. The memory may hold
     * another user's old data. So `gaps` are cleared before anything is put, and the caller puts data everywhere
     * else. -ENOMEM if there is not enough memory. */
    int (*arena_new)(struct device *device, uint64_t bytes, const struct extent *gaps, size_t n_gaps,
                     struct arena **ret, struct device_fault *ret_fault);

    /* worker. As arena_new(), with the memory of an arena that nobody uses any more: of the same size when both are
     * rounded up to granules, and exported to no other process. It may then be exported and sealed again. The old bytes
     * are treated as arena_new() treats another user's. After an error it can only be freed. NULL: the device cannot do
     * this. */
    int (*arena_reuse)(struct arena *arena, uint64_t bytes, const struct extent *gaps, size_t n_gaps,
                       struct device_fault *ret_fault);

    /* worker. No transfer into the arena is running. Waits until the device no longer uses it. */
    void (*arena_free)(struct arena *arena);

    /* worker; also loop, if `copies_async`. Puts a filled slot into an arena. If `copies_async` it returns at once and
     * the copies run asynchronously; otherwise it copies before it returns. The result comes with transfer->done. */
    void (*put)(struct device *device, struct transfer *transfer);

    /* worker, once, or once more after arena_reuse(); transfers may be running. Makes the export, which the arena owns.
     * No client gets it before the arena is sealed. */
    int (*arena_export)(struct arena *arena, struct device_export *ret, struct device_fault *ret_fault);

    /* worker, once, instead of arena_export() and transfers. A client will write to the arena: waits until it was
     * cleared, and makes the export, by which the client can write to it, but not change its size. */
    int (*arena_lend)(struct arena *arena, struct device_export *ret, struct device_fault *ret_fault);

    /* worker, once, after all transfers. Makes the arena read-only where the system can do that. Returns when the
     * device has finished all work on the arena. -EBUSY, of an arena that was lent: a process still has it mapped for
     * writing; nothing has changed, and it can be called again. */
    int (*arena_seal)(struct arena *arena, struct device_fault *ret_fault);

    /* worker. Makes an arena of the descriptor that a sealed arena was exported as, by a process that may have ended.
     * `bytes`: what arena_new() was asked for then. What is put into such an arena fails; all else is as with others,
     * but that it is exported and sealed already: *ret_export is its export. Takes the descriptor; after an error it
     * stays the caller's. -ENOTSUP: the device exports no descriptors. -EPERM: the memory is not sealed, where that is
     * possible. -EMSGSIZE: it is not so large, where the device can tell. Other errors: it is no such memory, or
     * what arena_new() returns. */
    int (*arena_adopt)(struct device *device, int fd, uint64_t bytes, struct arena **ret,
                       struct device_export *ret_export, struct device_fault *ret_fault);

    /* worker. Copies bytes of the arena to `dst`. */
    int (*arena_read)(struct arena *arena, uint64_t offset, void *dst, size_t size, struct device_fault *ret_fault);

    /* worker. Registers this process's memory, so that all devices of the kind copy to and from it by themselves.
     * `memory` and `bytes` are multiples of a page. NULL: the device has no such memory. */
    int (*host_register)(struct device *device, void *memory, size_t bytes, struct device_fault *ret_fault);

    /* loop, at the end. No transfer uses it. NULL: as above. */
    void (*host_unregister)(struct device *device, void *memory);

    /* worker. As arena_read(), to memory of host_register(): the device copies without a processor's help. NULL: as
     * above. */
    int (*arena_save)(struct arena *arena, uint64_t offset, void *dst, size_t size, struct device_fault *ret_fault);

    /* worker, and any other thread that may block. How many bytes are free, as the driver or the system reports it. */
    int (*memory_free)(struct device *device, uint64_t *ret, struct device_fault *ret_fault);

    /* Any thread. Whether the device has a kernel that decodes this type into this form. */
    bool (*decodes)(struct device *device, const struct tensor_type *type, enum form form);
};

struct spare;

/* Arenas whose models are gone; see spare.h. All zero: there are none. */
struct spares {
    pthread_mutex_t
        lock;            /* guards the list; held while arenas are freed, so who waits for it finds their memory free */
    struct spare *first; /* the newest */
    atomic_uint_least64_t bytes; /* of all; changes with the lock held */
};

/* How many devices a daemon can have. */
#define DEVICES_MAX 32u

/* The module allocates it, as the first member of a larger struct of its own, and sets all members of the first
 * part. */
struct device {
    const struct device_ops *ops;
    char id[32]; /* "host", "hip:0" */
    const char *kind;
    char name[128];
    char uuid[64]; /* empty: none */
    char pci[24];  /* empty: none */
    enum export_kind export_kind;
    uint64_t total;    /* size of the memory in bytes */
    uint64_t granule;  /* sizes of arenas are rounded up to a multiple of this */
    unsigned n_slots;  /* how many staging slots it needs */
    unsigned n_cached; /* how many of them a load uses that reads cached files: more would only leave the processors'
                          caches; 0: all */
    size_t slot_bytes; /* size of each slot */
    size_t part_bytes; /* how much of a slot one worker fills at a time; if less than slot_bytes, several workers fill
                          one slot */
    bool copies_async; /* put() returns at once, and the device copies from the slot asynchronously */
    uint64_t link;     /* measured rate of copies to the device, in bytes per second; 0: unknown */
    bool exports_leak; /* exported memory is not released when it is freed, only when the process ends */
    char no_descriptors[160]; /* why it exports IPC handles although EXPORT_FD was tried; empty: it was not, or works */
    char no_kernels[160];     /* why it has no kernels although it could; empty: it has, or it never has any */

    /* The daemon's part. Loop only, but for `budget`. */
    uint64_t budget; /* bytes that models may use; after the start any thread may read it */
    uint64_t rate;   /* rate of the last load, in bytes of the file per second; 0: no load yet */
    uint64_t used;   /* bytes that models use or have reserved */
    uint64_t queued; /* bytes that queued loads wait for; loads that come later do not get these */
    uint64_t cached; /* of the host: bytes of copies of models that a GPU has no room for. Not in `used` */
    uint64_t reach;  /* bytes that models could use in all, as device_survey() found last; 0: it never ran */
    bool failed;
    atomic_bool hung; /* a call of its driver does not return: no further one is made. Set by the loop */
    bool grows;       /* a staging slot is being made */

    /* Any thread: calls of its driver, for device_hangs(). */
    struct device_call *calls;
    atomic_flag calls_lock;

    /* Any thread. */
    atomic_uint_least64_t taken;  /* bytes that models have of what the driver had: not more than `used`, in the end */
    atomic_uint moving;           /* arenas that are being made, or freed, now */
    atomic_uint_least64_t making; /* bytes of the arenas that are being made now */
    atomic_uint moves;            /* and how many were */
    struct spares spares;         /* arenas whose models are gone */

    struct staging *staging; /* loop */
};

/* How many streams one device can use, and how many it uses by default. */
#define DEVICE_STREAMS_MAX     16u
#define DEVICE_STREAMS_DEFAULT 2

/* Default size of all slots of a GPU together. It is small, so that what was read into a slot is still in the CPU's
 * cache when the GPU copies it. All workers fill the same slot together. bench_put shows what more memory would cost.
 */
#define DEVICE_STAGING_DEFAULT_MIB 48

/* How the host's arenas are filled. */
enum host_fill {
    HOST_FILL_AUTO, /* in the way that a trial finds quicker, when the first large arena is made */
    HOST_FILL_WRITE,
    HOST_FILL_MAP,
};

/* Settings for a module, given when it opens its devices. */
struct device_config {
    unsigned workers; /* number of threads that fill slots */
    uint64_t staging; /* bytes for all slots of one device; 0: the default */
    unsigned streams; /* number of streams, at most DEVICE_STREAMS_MAX; 0: the default */
    /* How many copies are timed to measure the link; this is done twice. 0: the module chooses, and repeats for a
     * certain time. */
    unsigned link_copies;
    uint64_t link_bytes;  /* bytes of each of these copies; 0: the module chooses */
    uint64_t trial_bytes; /* bytes of the trial allocation for exports, at least two granules; 0: the module chooses */
    enum export_wish export_wish;
    enum host_fill host_fill;
    bool lock_memory; /* of the host: arenas are locked into memory when they are sealed */
};

/* A shared object exports one of these, with the name `rocmforge_device_module`. */
struct device_module {
    unsigned abi; /* DEVICE_ABI */
    const char *kind;

    /* loop, once, at the start; may block. Opens all devices of the kind. Returns their number and sets *ret to an
     * array; the caller closes each device and then frees the array with free(). -ENODEV if there is no device or no
     * driver, and the fault says which. -EIO if there are devices and none can be used. If only some can be used,
     * the fault describes the last one that cannot; if all can, it is not changed. */
    int (*open)(const struct device_config *config, struct device ***ret, struct device_fault *ret_fault);
};

#define DEVICE_ABI           13u
#define DEVICE_MODULE_SYMBOL "rocmforge_device_module"

extern const struct device_module device_host_module;

/* The kind of the host's memory. */
#define DEVICE_HOST "host"

bool device_is_host(const struct device *device);
bool device_kind_is_host(const char *kind);

/* Bytes that models may take in all: of the budget, and of what the driver had for them when it was asked last. The
 * driver's answer may lag behind, so the ledger holds beside it. 0 if the device is lost. loop. */
uint64_t device_limit(const struct device *device);

/* Bytes that a load could get now, without an eviction. loop. */
uint64_t device_available(const struct device *device);

/* Bytes that others than the daemon have of the device, when it was asked last. 0: it never was. loop. */
uint64_t device_others(const struct device *device);

/* Asks the driver. *ret is for `reach`: what is free, and what models have, counted at the same moment. May block;
 * worker, or another thread that may. Fails as memory_free() does. */
int device_survey(struct device *device, uint64_t *ret, struct device_fault *ret_fault);

/* An arena begins to be made or freed, and is. Meanwhile the driver's answer and the ledger may not be of the same
 * moment. Any thread. */
static inline void device_move_begin(struct device *device)
{
    atomic_fetch_add(&device->moving, 1);
}

static inline void device_move_end(struct device *device)
{
    atomic_fetch_add(&device->moves, 1);
    atomic_fetch_sub(&device->moving, 1);
}

/* Functions of device_ops that call its driver, and may not return. While they are under way device_hangs() knows of
 * them; once the device counts as hung they return -ENODEV, and nothing is freed: the driver would be called for it.
 *
 * bytes: as arena_new() was asked for. device_survey() is told of what is made and freed. device_arena_new() may return
 * an arena that was kept (spare.h), and gives up what is kept if memory is short. worker. */
int device_arena_new(struct device *device, uint64_t bytes, const struct extent *gaps, size_t n_gaps,
                     struct arena **ret, struct device_fault *ret_fault);
int device_arena_adopt(struct device *device, int fd, uint64_t bytes, struct arena **ret,
                       struct device_export *ret_export, struct device_fault *ret_fault);
void device_arena_free(struct device *device, struct arena *arena, uint64_t bytes);
int device_arena_export(struct device *device, struct arena *arena, struct device_export *ret,
                        struct device_fault *ret_fault);
int device_arena_seal(struct device *device, struct arena *arena, struct device_fault *ret_fault);
int device_arena_read(struct device *device, struct arena *arena, uint64_t offset, void *dst, size_t size,
                      struct device_fault *ret_fault);
int device_arena_lend(struct device *device, struct arena *arena, struct device_export *ret,
                      struct device_fault *ret_fault);
int device_arena_save(struct device *device, struct arena *arena, uint64_t offset, void *dst, size_t size,
                      struct device_fault *ret_fault);
int device_memory_free(struct device *device, uint64_t *ret, struct device_fault *ret_fault);

/* Any thread. Whether one of these has not returned since before that time, by uv_hrtime(). */
bool device_hangs(struct device *device, uint64_t begun_before);

/* "memfd", "ipc", "fd". Static. */
const char *export_kind_name(enum export_kind kind);

/* The clock that transfers are timed with: CLOCK_MONOTONIC, in nanoseconds. Any thread. */
uint64_t device_clock_ns(void);

/* Fills `fault`, which may be NULL. `call` is the name of the function that failed. Text that is too long is cut.
 * Returns `error`, a negative errno. Any thread. */
int device_fault_set(struct device_fault *fault, int error, const char *call, int code, const char *text);
