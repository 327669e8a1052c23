#include "daemon/device/hip/queue.h"

#include "daemon/device/hip/error.h"
#include "daemon/device/hip/reclaim.h"
#include "daemon/device/hip/work.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

/* The finisher asks the device every POLL_NS whether an event was reached, and every POLL_SLOW_NS after POLLS times. */
#define POLL_NS      20000
#define POLLS        200u
#define POLL_SLOW_NS 1000000

static void queue_push(struct slot_queue *queue, struct slot_hip *slot)
{
    slot->next = NULL;
    *queue->tail = slot;
    queue->tail = &slot->next;
}

static struct slot_hip *queue_pop(struct slot_queue *queue)
{
    struct slot_hip *slot = queue->head;
    if (slot) {
        queue->head = slot->next;
        if (!queue->head)
            queue->tail = &queue->head;
    }
    return slot;
}

/* Gives slot and transfer back to the caller. Neither is used after this. */
static void report(struct slot_hip *slot)
{
    struct transfer *transfer = slot->transfer;
    slot->transfer = NULL;
    transfer->done(transfer);
}

/* Waits until there may be a slot, an end, or something to reclaim. The lock is held. */
static void submitter_wait(struct hip_device *hip)
{
    if (hip->reclaim.due_ns == 0) {
        pthread_cond_wait(&hip->submitter_wake, &hip->lock);
        return;
    }
    const struct timespec until = {
        .tv_sec = (time_t)(hip->reclaim.due_ns / 1000000000),
        .tv_nsec = (long)(hip->reclaim.due_ns % 1000000000),
    };
    (void)pthread_cond_timedwait(&hip->submitter_wake, &hip->lock, &until);
}

static void *submitter_main(void *argument)
{
    struct hip_device *hip = argument;
    pthread_mutex_lock(&hip->lock);
    for (;;) {
        struct slot_hip *slot = queue_pop(&hip->waiting);
        if (!slot) {
            if (hip->stop)
                break;
            hip_reclaim_if_due(hip);
            if (!hip->waiting.head && !hip->stop)
                submitter_wait(hip);
            continue;
        }
        hip_reclaim_postpone(hip);
        pthread_mutex_unlock(&hip->lock);

        slot->transfer->begin_ns = device_clock_ns();
        slot->transfer->status = hip_submit(hip, slot);

        pthread_mutex_lock(&hip->lock);
        queue_push(&hip->running, slot);
        pthread_cond_signal(&hip->finisher_wake);
    }
    hip->running_stop = true;
    pthread_cond_signal(&hip->finisher_wake);
    pthread_mutex_unlock(&hip->lock);
    return NULL;
}

/* Polls. A thread that sleeps until the device wakes it up wakes late, by more than a short copy takes. */
static int await(struct hip_device *hip, hipEvent_t event, struct device_fault *ret_fault)
{
    for (unsigned i = 0;; i++) {
        hipError_t result = hipEventQuery(event);
        if (result != hipErrorNotReady)
            return hip_result(hip, result, HIP_NAME(EventQuery), ret_fault);
        const struct timespec pause = {.tv_nsec = i < POLLS ? POLL_NS : POLL_SLOW_NS};
        (void)nanosleep(&pause, NULL);
    }
}

/* Waits for the slot's last event. Returns 0 if all its work succeeded. */
static int await_slot(struct hip_device *hip, struct slot_hip *slot)
{
    struct device_fault *fault = &slot->transfer->fault;
    if (!slot->kernels)
        return await(hip, slot->copied, fault);
    int r = await(hip, slot->copied_at, fault);
    return r < 0 ? r : await(hip, slot->ended, fault);
}

/* Waits until the device no longer uses the slot. If that cannot be known, the device is lost: the slot must not be
 * filled again while the device may still read it. */
static void settle(struct hip_device *hip, struct slot_hip *slot)
{
    struct transfer *transfer = slot->transfer;
    if (transfer->status == 0) {
        transfer->status = await_slot(hip, slot);
        if (transfer->status == 0)
            return;
    }
    if (hipStreamSynchronize(hip->streams[0]) != hipSuccess || hipStreamSynchronize(slot->stream) != hipSuccess) {
        hip_lose(hip, &transfer->fault);
        transfer->status = -ENODEV;
    }
}

static uint64_t elapsed_ns(hipEvent_t from, hipEvent_t to)
{
    float ms = 0;
    return hipEventElapsedTime(&ms, from, to) == hipSuccess && ms > 0 ? (uint64_t)((double)ms * 1e6) : 0;
}

static uint64_t clamp(uint64_t value, uint64_t low, uint64_t high)
{
    return value < low ? low : value < high ? value : high;
}

/* Sets the transfer's times. Its end is when this thread learned of it. If it has kernels, its events tell how long
 * before the end its copies ended. Its copies began when they were submitted, or when the copies before them ended,
 * whichever is later; so did its kernels, on each stream. */
static void measure(struct hip_device *hip, struct slot_hip *slot)
{
    struct transfer *transfer = slot->transfer;
    const uint64_t since_copied = slot->kernels ? elapsed_ns(slot->copied_at, slot->ended) : 0;
    transfer->copied_ns = clamp(transfer->end_ns - since_copied, hip->copied_ns, transfer->end_ns);
    transfer->begin_ns = clamp(transfer->begin_ns, hip->copied_ns, transfer->copied_ns);
    transfer->copy_ns = transfer->copied_ns - transfer->begin_ns;
    hip->copied_ns = transfer->copied_ns;
    if (!slot->kernels)
        return;
    uint64_t *kernels_ns = &hip->kernels_ns[transfer->stream];
    transfer->kernel_ns = transfer->end_ns - clamp(*kernels_ns, transfer->copied_ns, transfer->end_ns);
    *kernels_ns = transfer->end_ns;
}

static void finish(struct hip_device *hip, struct slot_hip *slot)
{
    struct transfer *transfer = slot->transfer;
    settle(hip, slot);
    transfer->end_ns = device_clock_ns();
    if (transfer->status == 0)
        measure(hip, slot);
    if (transfer->status == 0)
        transfer->status = hip_overflows_take(hip, slot, &transfer->overflows, &transfer->fault);
    report(slot);
}

static void *finisher_main(void *argument)
{
    struct hip_device *hip = argument;
    (void)prctl(PR_SET_TIMERSLACK,
                1); /* the kernel may delay this thread's sleeps by 1 ns only, not by the usual 50 us */
    /* If this fails, the first wait fails too and reports it. */
    (void)!hipSetDevice(hip->index);
    pthread_mutex_lock(&hip->lock);
    for (;;) {
        struct slot_hip *slot = queue_pop(&hip->running);
        if (!slot) {
            if (hip->running_stop)
                break;
            pthread_cond_wait(&hip->finisher_wake, &hip->lock);
            continue;
        }
        pthread_mutex_unlock(&hip->lock);
        finish(hip, slot);
        pthread_mutex_lock(&hip->lock);
    }
    pthread_mutex_unlock(&hip->lock);
    return NULL;
}

int hip_queue_start(struct hip_device *hip, struct device_fault *ret_fault)
{
    hip->waiting.tail = &hip->waiting.head;
    hip->running.tail = &hip->running.head;
    int r = pthread_create(&hip->submitter, NULL, submitter_main, hip);
    if (r != 0)
        return device_fault_set(ret_fault, -r, "pthread_create", r, strerror(r));
    hip->submitter_runs = true;
    r = pthread_create(&hip->finisher, NULL, finisher_main, hip);
    if (r != 0)
        return device_fault_set(ret_fault, -r, "pthread_create", r, strerror(r));
    hip->finisher_runs = true;
    return 0;
}

void hip_queue_stop(struct hip_device *hip)
{
    pthread_mutex_lock(&hip->lock);
    assert(!hip->waiting.head && !hip->running.head);
    hip->stop = true;
    pthread_cond_signal(&hip->submitter_wake);
    pthread_mutex_unlock(&hip->lock);
    if (hip->submitter_runs)
        pthread_join(hip->submitter, NULL);
    if (hip->finisher_runs)
        pthread_join(hip->finisher, NULL);
}

void hip_put(struct device *device, struct transfer *transfer)
{
    struct hip_device *hip = hip_device(device);
    struct slot_hip *slot = transfer->slot->module;
    assert(!slot->transfer);
    transfer->status = 0;
    transfer->fault = (struct device_fault){0};
    transfer->overflows = 0;
    transfer->copy_ns = transfer->kernel_ns = 0;
    transfer->begin_ns = transfer->copied_ns = transfer->end_ns = 0;
    transfer->stream = 0;
    slot->transfer = transfer;
    pthread_mutex_lock(&hip->lock);
    queue_push(&hip->waiting, slot);
    pthread_cond_signal(&hip->submitter_wake);
    pthread_mutex_unlock(&hip->lock);
}
