/* What the files of the GPU module share. One source for two modules: compiled against ROCm's headers it is `hip`,
 * against CUDA's, through kernels/hip_cuda.h, it is `cuda`. Nothing outside daemon/device_hip*.c includes this.
 *
 * Only calls that ROCm 5, 6 and 7 share, with the same arguments and structs: no hipGetDeviceProperties. */
#pragma once

#include "daemon/device.h"
#include "kernels/hip.h"

#include <pthread.h>
#include <stdatomic.h>

#define HIP_STREAMS_DEFAULT 2u

/* Ids of types with kernels run below this; see kernels/types.def. */
#define HIP_TYPES 64

/* A run of pieces to decode is copied to scratch at a multiple of this, so that kernels find it aligned. */
#define HIP_SCRATCH_ALIGNMENT 256u

/* What a slot has besides its pinned memory. */
struct slot_hip {
    void *scratch;        /* device memory for raw blocks */
    uint64_t *overflows;  /* device memory: what the kernels counted since the slot was made */
    uint64_t seen;        /* how much of that has been told */
    uint32_t *overflowed; /* pinned: set by kernels that counted something */
    void *overflowed_device;
    hipEvent_t copied;    /* untimed: its copies are over */
    hipEvent_t copied_at; /* when that was; this one and the next are recorded if it has pieces to decode */
    hipEvent_t ended;     /* so are its kernels, and when */
    struct transfer *transfer;
    struct slot_hip *next; /* in the queue that it waits in */
    hipStream_t stream;    /* of its kernels, if it has any, else of the copies; while it is under way */
    bool kernels;          /* it has pieces to decode */
};

/* Slots in the order that they came. */
struct slot_queue {
    struct slot_hip *head, **tail;
};

struct hip_device {
    struct device device;
    int index; /* of hipSetDevice() */

    /* An error that the device does not recover from was seen; any thread. */
    atomic_bool lost;
    pthread_mutex_t lost_lock; /* of what follows */
    struct device_fault lost_by;

    unsigned n_streams;
    hipStream_t streams[DEVICE_STREAMS_MAX]; /* copies go to the first, kernels to the others if there are any */
    hipStream_t clearing;                    /* new arenas are cleared here, beside the copies */
    hipStream_t timing;                      /* nothing but `copied_at` */

    void *word; /* device memory, 8 bytes that mean nothing: to see whether the device answers; NULL: not made yet */

    /* What is read back comes through pinned memory: one piece is emptied while the other is filled. */
    pthread_mutex_t reading_lock; /* of what follows */
    hipStream_t reading;
    uint8_t *pinned; /* both */
    hipEvent_t filled[2];

    hipModule_t module; /* NULL: no kernels for this device */
    hipFunction_t kernels[HIP_TYPES][FORM_COUNT];

    /* `waiting` are handed over and not yet given to the device, `running` given to it and not yet done. */
    pthread_mutex_t lock;           /* the queues, stop and running_stop */
    pthread_cond_t waiting_changed; /* on CLOCK_MONOTONIC; also for freed */
    pthread_cond_t running_changed;
    struct slot_queue waiting, running;
    bool stop, running_stop;
    pthread_t submitter, finisher;
    bool submitter_runs, finisher_runs;
    unsigned next_stream; /* submitter only */

    /* Memory that was freed since some was taken last, and when the driver is to reclaim it; 0: it need not. Under
     * `lock`. */
    uint64_t freed;
    uint64_t reclaim_ns; /* on CLOCK_MONOTONIC */

    /* Memory is taken by one at a time: what the driver is asked for to have it reclaim is not what an arena lacks. */
    pthread_mutex_t taking_lock;

    /* Finisher only: when the last slot's copies were over, and the last kernels of each stream. */
    uint64_t copied_ns;
    uint64_t kernels_ns[DEVICE_STREAMS_MAX];
};

struct arena {
    struct hip_device *hip;
    void *base;
    uint64_t bytes;
    hipEvent_t cleared;
    bool ordered; /* submitter only: what is copied waits for `cleared` */
    bool exported;
};

static inline struct hip_device *hip_device(struct device *device)
{
    return (struct hip_device *)device;
}

/* Turns what a call returned into 0 or a negative errno, and words it: -ENOMEM, -ENODEV for an error that the device
 * does not recover from (and marks `hip`, which may be NULL, as lost), -EIO for others. An error that may be either is
 * followed by a question to the device. Any thread that may block. */
int hip_result(struct hip_device *hip, hipError_t result, const char *call, struct device_fault *ret_fault);

/* Marks the device as lost by this fault. Whoever asks something of it from now on is told of the first. Any thread. */
void hip_lose(struct hip_device *hip, const struct device_fault *fault);

/* hip_result() of a call, under its own name. The arguments come in parentheses. */
#define HIP_CALL(device, fault, call, args) hip_result(device, hip##call args, HIP_NAME(call), fault)

/* Makes the device the calling thread's. -ENODEV at once if it is lost, with the fault that it was lost by. */
int hip_enter(struct hip_device *hip, struct device_fault *ret_fault);

/* device_hip_arena.c: the functions of device_ops with these names. */
int hip_arena_new(struct device *device, uint64_t bytes, const struct extent *gaps, size_t n_gaps, struct arena **ret,
                  struct device_fault *ret_fault);
void hip_arena_free(struct arena *arena);
int hip_arena_export(struct arena *arena, struct device_export *ret, struct device_fault *ret_fault);
int hip_arena_seal(struct arena *arena, struct device_fault *ret_fault);
/* Has the driver see to memory that was freed, as it does when it is asked for some. What fails is for whoever next
 * needs the device to find. */
void hip_reclaim(struct hip_device *hip);
/* Whether memory can be exported, which some drivers cannot do, and comes back then: sets device.exports_leak. Tried
 * with `wanted` bytes; 0: with as many as tell for certain. */
int hip_export_try(struct hip_device *hip, uint64_t wanted, struct device_fault *ret_fault);

/* device_hip_read.c: the same; and what it needs, made once. What was not made is not dropped. */
int hip_arena_read(struct arena *arena, uint64_t offset, void *dst, size_t size, struct device_fault *ret_fault);
int hip_reader_make(struct hip_device *hip, struct device_fault *ret_fault);
void hip_reader_drop(struct hip_device *hip);

/* device_hip_put.c: the way of slots through the device, on two threads. */
int hip_queue_start(struct hip_device *hip, struct device_fault *ret_fault);
/* All transfers are done. What was not started is not stopped. */
void hip_queue_stop(struct hip_device *hip);
void hip_put(struct device *device, struct transfer *transfer);
/* Memory was freed: hip_reclaim() is called when the device has been left alone for a while, unless some is taken
 * before. */
void hip_freed(struct hip_device *hip, uint64_t bytes);
void hip_taken(struct hip_device *hip);

/* device_hip_work.c: gives a slot's copies and kernels to the streams. Part of it may be under way when this fails.
 * Submitter only. */
int hip_submit(struct hip_device *hip, struct slot_hip *slot);
/* How many values overflowed in the slot's kernels since this was last asked. None of them is under way. */
int hip_overflows_take(struct hip_device *hip, struct slot_hip *slot, uint64_t *ret, struct device_fault *ret_fault);

/* Bytes of scratch that a slot of this size needs, whatever its pieces. */
size_t hip_scratch_bytes(size_t slot_bytes);

/* device_hip_kernels.c: loads the embedded kernels for the current device, and tries one. A device that they were not
 * built for has none, which is no error: device.no_kernels says why. */
int hip_kernels_load(struct hip_device *hip, struct device_fault *ret_fault);
void hip_kernels_unload(struct hip_device *hip);
