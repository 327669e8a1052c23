/* The structs that the files of the GPU module share. It declares no functions of other files: it is below them all.
 *
 * The same source is compiled into two modules: `hip` against ROCm's headers, `cuda` against CUDA's, through
 * kernels/hip_cuda.h. Only calls that ROCm 5, 6 and 7 share, with the same arguments and structs, are used;
 * hip_architecture() says what is done about the one whose struct differs, and trial.h about memory that is shared by
 * descriptors. Nothing outside this folder includes this header.
 *
 * Who uses whom, lowest first: hip.h; error; kernels, reader, share, work; reclaim, trial; arena, queue; device. */
#pragma once

#include "daemon/device/device.h"
#include "kernels/hip_share.h"

#include <pthread.h>
#include <stdatomic.h>

/* Ids of types that have kernels are less than this; see kernels/types.def. */
#define HIP_TYPES 64

/* What a slot has beside its pinned memory. One transfer owns it from put() until done(). */
struct slot_hip {
    void *scratch;        /* device memory: blocks that kernels decode are copied here */
    uint64_t *overflows;  /* device memory: how many values overflowed since the slot was made */
    uint64_t seen;        /* how many of them were reported */
    uint32_t *overflowed; /* pinned: kernels set it when they count an overflow */
    void *overflowed_device;
    hipEvent_t copied;    /* recorded after the slot's copies; without a time */
    hipEvent_t copied_at; /* the same with a time; recorded only if `kernels`, like `ended` */
    hipEvent_t ended;     /* recorded after the slot's kernels, with a time */
    struct transfer *transfer;
    struct slot_hip *next; /* in the queue that the slot is in */
    hipStream_t stream;    /* while it is under way: its kernels' stream, or the copies' stream if it has no kernels */
    bool kernels;          /* at least one piece is decoded on the device */
};

/* Slots, first in first out. */
struct slot_queue {
    struct slot_hip *head, **tail;
};

/* How many threads can read arenas at a time. bench_save shows what fewer and more would do. */
#define HIP_READERS 4u

/* A reader's part (reader.c). The first is made at the start, the others when they are first needed. */
struct hip_reader {
    pthread_mutex_t lock; /* guards the rest, and what is on the stream */
    bool unusable;        /* it could not be made */
    hipStream_t stream;
    uint8_t *pinned;      /* two halves: the device fills one while the CPU empties the other */
    hipEvent_t filled[2]; /* one for each half */
};

/* What was freed and not yet reclaimed (reclaim.c). */
struct hip_reclaim {
    /* Allocations are made one at a time. Otherwise another thread's allocation could fail because a reclaim holds the
     * memory that it lacks for a moment. */
    pthread_mutex_t taking;
    /* Guarded by hip_device.lock: */
    uint64_t freed;  /* bytes freed since the last allocation */
    uint64_t due_ns; /* when to reclaim, on CLOCK_MONOTONIC; 0: nothing to reclaim */
};

struct hip_device {
    struct device device; /* first, so that one can be cast to the other */
    int index;            /* argument of hipSetDevice() */

    /* The first error that the device does not recover from (error.c). */
    atomic_bool lost;
    pthread_mutex_t lost_lock; /* guards lost_by */
    struct device_fault lost_by;
    void *word; /* 8 bytes of device memory, read to test whether the device works; NULL: not allocated yet */

    unsigned n_streams;
    hipStream_t streams[DEVICE_STREAMS_MAX]; /* copies use the first, kernels the others, or the first if it is alone */
    hipStream_t clearing;                    /* new arenas are cleared on it, while others copy */
    hipStream_t timing;                      /* records `copied_at` and nothing else */

    struct hip_reader readers[HIP_READERS];

    hipModule_t module; /* NULL: no kernels for this device */
    hipFunction_t kernels[HIP_TYPES][FORM_COUNT];

    /* The queue's part (queue.c). `waiting`: slots that the submitter has not taken yet. `running`: slots that it gave
     * to the device, in that order. */
    pthread_mutex_t lock;          /* guards the two queues, stop, running_stop and part of `reclaim` */
    pthread_cond_t submitter_wake; /* on CLOCK_MONOTONIC: waiting, stop or reclaim changed */
    pthread_cond_t finisher_wake;  /* running or running_stop changed */
    struct slot_queue waiting, running;
    bool stop, running_stop;
    pthread_t submitter, finisher;
    bool submitter_runs, finisher_runs;

    struct hip_reclaim reclaim;

    unsigned next_stream; /* submitter only (work.c): for the next transfer with kernels */

    /* Finisher only: when the last slot's copies ended, and the last kernels on each stream. */
    uint64_t copied_ns;
    uint64_t kernels_ns[DEVICE_STREAMS_MAX];
};

struct arena {
    struct hip_device *hip;
    struct hip_share memory; /* its handle is set only if the device exports descriptors */
    hipEvent_t cleared;      /* recorded after its gaps were cleared */
    bool ordered;            /* submitter only: the copies' stream waits for `cleared` already */
    bool adopted;            /* another process allocated it */
    int fd;                  /* the descriptor that was exported; -1: none */
};

static inline struct hip_device *hip_device(struct device *device)
{
    return (struct hip_device *)device;
}
