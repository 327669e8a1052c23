/* Declarations that the files of the fake runtime share. */
#pragma once

#include "tests/fake_hip/fake_hip.h"

#include <hip/hip_runtime_api.h>
#include <pthread.h>
#include <stdint.h>

#define FAKE_DEVICES_MAX 8
#define FAKE_EXPORT      __attribute__((visibility("default")))

/* fake_hip.c */

extern struct fake_hip_live fake_live; /* guarded by fake_lock */
extern pthread_mutex_t fake_lock;      /* guards all that does not belong to one stream */
extern pthread_cond_t fake_changed;    /* an event was reached, a stream made progress, a device was lost */
extern __thread int fake_current;      /* as set by hipSetDevice() */
extern __thread int
    fake_waited_for; /* the device that this thread's last call waited for; -1: the last call did something else */
extern __thread hipError_t fake_last; /* for hipGetLastError() */
extern uint64_t fake_memory;          /* bytes of memory of each device */
extern uint64_t fake_used[FAKE_DEVICES_MAX];
extern bool fake_no_binary;
extern bool fake_leak;
extern bool fake_own_only;
extern bool fake_no_share, fake_no_read_only;
extern size_t fake_granularity; /* 0: the default */
extern int fake_version;

/* Each call begins with this. Counts the call and returns the error that it is to fail with. `device`: the device
 * whose lost state applies; -1: only injected errors apply. */
hipError_t fake_enter(const char *call, int device);

/* Work on a stream begins with this. Returns false if the work must not be done. */
bool fake_work(const char *what, int device);

/* Records that the device is used. */
void fake_touch(int device);

/* Loses the device: all calls on it fail with `code` from now on. */
void fake_lose(int device, hipError_t code);
/* The code that the device was lost with, or 0. */
hipError_t fake_lost(int device);

/* Returns the error that a call gets because of a capture, and breaks that capture; hipSuccess if there is none.
 * `whole`: the call waits for the whole device. */
hipError_t fake_capture(int device, bool whole);

/* Sleeps for a random time, up to the one set for "copy", "kernel" or "clear". */
void fake_delay(const char *what);

/* Waits as long as hipMemGetInfo() takes. */
void fake_delay_info(void);

/* Waits while the file of FAKE_HIP_GATE exists. */
void fake_gate(void);

#define FAKE_ENTER(device)                                                                                             \
    do {                                                                                                               \
        hipError_t error_ = fake_enter(__func__, device);                                                              \
        if (error_ != hipSuccess)                                                                                      \
            return error_;                                                                                             \
    } while (0)

#define FAKE_ENTER_UNSAFE(device, whole)                                                                               \
    do {                                                                                                               \
        FAKE_ENTER(device);                                                                                            \
        hipError_t error_ = fake_capture(device, whole);                                                               \
        if (error_ != hipSuccess)                                                                                      \
            return error_;                                                                                             \
    } while (0)

/* memory.c */

/* BLOCK_OPENED: memory that another process exported by handle. BLOCK_SHARED, BLOCK_READ_ONLY: mappings of memory that
 * is shared by descriptors (share.c). */
enum block_kind { BLOCK_DEVICE, BLOCK_PINNED, BLOCK_OPENED, BLOCK_SHARED, BLOCK_READ_ONLY };

/* Records a mapping that share.c made, and forgets it. Returns false if there is none. */
void fake_block_add(enum block_kind kind, int device, void *base, size_t bytes);
bool fake_block_remove(const void *base, enum block_kind kind);

/* Takes so much of a device's memory; false: there is not so much. */
bool fake_reserve(int device, size_t bytes);

/* Fills new memory as if another program had used it. */
void fake_leave_over(void *base, size_t bytes);

/* Sets the kind and the device of the allocation that contains all these bytes. Returns false if there is none. */
bool fake_find(const void *pointer, size_t bytes, enum block_kind *ret_kind, int *ret_device);

/* Whether all of it is memory that this device may access. */
bool fake_on_device(const void *pointer, size_t bytes, int device);

/* Whether it may write to all of it, too. */
bool fake_writable(const void *pointer, size_t bytes, int device);

/* stream.c */

/* Waits until all streams of a device are idle. */
void fake_drain(int device);

/* One piece of work of a stream. Streams do them in order. */
struct op {
    void (*run)(struct op *op, int device);
    const char *what; /* "copy", "kernel", "clear"; NULL: bookkeeping, which is done on a lost device too */
    struct op *next;
    void *dst;
    const void *src;
    size_t bytes;
    int value;
    struct ihipEvent_t *event;
    uint64_t ticket;
    /* kernels */
    uint64_t (*decode)(void *restrict dst, const void *restrict src, size_t blocks);
    size_t blocks;
    size_t src_bytes;
    uint64_t *overflows, counted;
    uint32_t *overflowed;
};

/* Takes ownership of the op, which was allocated with malloc(). */
void fake_enqueue(hipStream_t stream, struct op *op);
