/* What the files of the fake share. */
#pragma once

#include "tests/fake_hip/fake_hip.h"

#include <hip/hip_runtime_api.h>
#include <pthread.h>
#include <stdint.h>

#define FAKE_DEVICES_MAX 8
#define FAKE_EXPORT      __attribute__((visibility("default")))

/* fake_hip.c */

extern struct fake_hip_live fake_live; /* with fake_lock held */
extern pthread_mutex_t fake_lock;      /* of all that is not one stream's */
extern pthread_cond_t fake_changed;    /* an event was reached, a stream went on, a device was lost */
extern __thread int fake_current;      /* hipSetDevice() */
extern __thread int fake_waited_for; /* the device that this thread's last call waited for; -1: it did something else */
extern __thread hipError_t fake_last; /* hipGetLastError() */
extern uint64_t fake_memory;          /* bytes of each device */
extern uint64_t fake_used[FAKE_DEVICES_MAX];
extern bool fake_no_binary;
extern bool fake_leak;
extern bool fake_own_only;

/* What every call does first: counts it, and returns what it is to fail with. `device`: whose error it shares; -1: none
 * but injected ones. */
hipError_t fake_enter(const char *call, int device);

/* The work of a stream does this first. Returns false if it is not to be done. */
bool fake_work(const char *what, int device);

/* The device is used. */
void fake_touch(int device);

/* From now on everything on the device fails with this. */
void fake_lose(int device, hipError_t code);
/* 0, or what it was lost with. */
hipError_t fake_lost(int device);

/* What a call is refused with because of a capture, which it breaks; hipSuccess: it is not. `whole`: it waits for the
 * device as a whole. */
hipError_t fake_capture(int device, bool whole);

/* Sleeps a random part of the time set for "copy", "kernel" or "clear". */
void fake_delay(const char *what);

/* Waits while the gate for copies is closed. */
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

enum block_kind { BLOCK_DEVICE, BLOCK_PINNED, BLOCK_OPENED };

/* The kind and device of the memory that holds all these bytes. Returns false if none does. */
bool fake_find(const void *pointer, size_t bytes, enum block_kind *ret_kind, int *ret_device);

/* All of it is memory that this device may touch. */
bool fake_on_device(const void *pointer, size_t bytes, int device);

/* stream.c */

/* Waits for all streams of a device. */
void fake_drain(int device);

/* What a stream does, in order. */
struct op {
    void (*run)(struct op *op, int device);
    const char *what; /* "copy", "kernel", "clear"; NULL: bookkeeping, done on a lost device too */
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

/* Takes the op, which was malloc()ed. */
void fake_enqueue(hipStream_t stream, struct op *op);
