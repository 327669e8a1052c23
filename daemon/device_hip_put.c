/* The way of a filled slot through the device.
 *
 *   hip_put() ─▶ waiting ─▶ submitter: copies, kernels, events ─▶ running ─▶ finisher: waits for the last ─▶ done()
 *
 * Two threads for each device: one that gives work to it and one that waits for it, so that neither holds the other up.
 * All copies go through the first stream, one after the other at the full rate of the bus: two at a time would be done
 * no sooner, but both late, and both their slots would come back at once. Kernels go over the other streams in turn,
 * each behind its copy. An event that takes the time holds up the copy behind it, by 2 us, and so does one that a
 * thread can sleep for: the copies' stream gets others only. A slot, its scratch memory and its events belong to one
 * transfer from hip_put() to done(), and done() is called only when the device has let go of them, error or not. The
 * submitter, when it has had nothing to do for a while, has the driver reclaim what was freed. */
#include "daemon/device_hip.h"
#include "kernels/dequant_gpu.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

/* Pieces to decode share a copy where no more than SCRATCH_GAP is between them: those that are aligned behind the
 * first, which is, as kernels like it, and those that are smaller than SCRATCH_RUN. A copy of its own costs 3 us. */
#define SCRATCH_RUN     (64u << 10)
#define SCRATCH_GAP     (64u << 10)
#define SCRATCH_ALIGNED 16u

/* How often the device is asked whether it is done with a slot; and how often if it was not after so many times. */
#define POLL_NS      20000
#define POLLS        200u
#define POLL_SLOW_NS 1000000

/* A driver clears memory that is freed beside all that it does, which takes some 4 ns a KiB, and sees to what it
 * cleared when it is next asked for memory: that call then takes 0.2 ms a gigabyte longer. For it not to be the next
 * load's, one is made when that much was freed, and the device was left alone for a while. */
#define RECLAIM_BYTES ((uint64_t)256 << 20)
#define RECLAIM_NS    100000000u /* and 8 ns a KiB */

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

/* Every run starts at a multiple of the alignment. One begins with a piece of at least SCRATCH_RUN, behind such a run,
 * or behind a gap that it saves more than an alignment's worth of. */
size_t hip_scratch_bytes(size_t slot_bytes)
{
    return slot_bytes + (2 * (slot_bytes / SCRATCH_RUN) + 3) * HIP_SCRATCH_ALIGNMENT;
}

static uint8_t *arena_at(const struct arena *arena, uint64_t offset)
{
    return (uint8_t *)arena->base + offset;
}

static bool decoded(const struct transfer *transfer, const struct piece *piece)
{
    return transfer->decode && piece->form != FORM_NATIVE;
}

/* Copies pieces that are resident as they stand in the slot; neighbours in one go. */
static int copy_verbatim(struct hip_device *hip, struct transfer *transfer, hipStream_t stream)
{
    const uint8_t *data = transfer->slot->data;
    for (size_t i = 0; i < transfer->n_pieces;) {
        const struct piece *first = &transfer->pieces[i++];
        if (decoded(transfer, first))
            continue;
        assert(first->slot_bytes == first->arena_bytes);
        uint64_t bytes = first->slot_bytes;
        for (; i < transfer->n_pieces; i++) {
            const struct piece *next = &transfer->pieces[i];
            if (decoded(transfer, next) || next->slot_offset != first->slot_offset + bytes ||
                next->arena_offset != first->arena_offset + bytes)
                break;
            bytes += next->slot_bytes;
        }
        assert(first->slot_offset + bytes <= transfer->slot->size &&
               first->arena_offset + bytes <= transfer->arena->bytes);
        int r = HIP_CALL(hip, &transfer->fault, MemcpyAsync,
                         (arena_at(transfer->arena, first->arena_offset), data + first->slot_offset, bytes,
                          hipMemcpyHostToDevice, stream));
        if (r < 0)
            return r;
    }
    return 0;
}

/* A run of pieces that one copy takes to scratch: those from `first` up to `end`, less those that are not decoded. */
struct run {
    size_t first, end;
    uint64_t slot_offset, slot_end;
    uint64_t scratch_offset;
};

/* Finds the run behind this one, or the first behind {0}. Returns false if there is none. */
static bool run_next(const struct transfer *transfer, struct run *run)
{
    size_t i = run->end;
    while (i < transfer->n_pieces && !decoded(transfer, &transfer->pieces[i]))
        i++;
    if (i == transfer->n_pieces)
        return false;
    const struct piece *piece = &transfer->pieces[i];
    const uint64_t scratch_end = run->scratch_offset + (run->slot_end - run->slot_offset);
    *run = (struct run){
        .first = i,
        .end = i + 1,
        .slot_offset = piece->slot_offset,
        .slot_end = piece->slot_offset + piece->slot_bytes,
        .scratch_offset = (scratch_end + HIP_SCRATCH_ALIGNMENT - 1) / HIP_SCRATCH_ALIGNMENT * HIP_SCRATCH_ALIGNMENT,
    };
    while (++i < transfer->n_pieces) {
        piece = &transfer->pieces[i];
        if (!decoded(transfer, piece))
            continue;
        const bool aligned = (piece->slot_offset - run->slot_offset) % SCRATCH_ALIGNED == 0;
        const bool small = run->slot_end - run->slot_offset < SCRATCH_RUN && piece->slot_bytes < SCRATCH_RUN;
        if ((!aligned && !small) || piece->slot_offset < run->slot_end ||
            piece->slot_offset - run->slot_end > SCRATCH_GAP)
            break;
        run->end = i + 1;
        run->slot_end = piece->slot_offset + piece->slot_bytes;
    }
    return true;
}

static int launch(struct hip_device *hip, struct transfer *transfer, const struct piece *piece, const uint8_t *src,
                  hipStream_t stream)
{
    struct slot_hip *slot = transfer->slot->module;
    hipFunction_t kernel = piece->type->id < HIP_TYPES ? hip->kernels[piece->type->id][piece->form] : NULL;
    assert(kernel && "asked for before decodes() was");
    if (!kernel)
        return device_fault_set(&transfer->fault, -EINVAL, "kernel", 0, "no kernel for this type and form");
    uint64_t blocks = piece->slot_bytes / piece->type->block_bytes;
    const uint64_t elements = blocks * piece->type->block_elements;
    assert(blocks * piece->type->block_bytes == piece->slot_bytes);
    assert(piece->arena_offset + piece->arena_bytes <= transfer->arena->bytes);
    void *dst = arena_at(transfer->arena, piece->arena_offset);
    void *params[] = {&src, &dst, &blocks, &slot->overflows, &slot->seen, &slot->overflowed_device};
    const unsigned grid = (unsigned)((elements + DEQUANT_TILE - 1) / DEQUANT_TILE);
    return HIP_CALL(hip, &transfer->fault, ModuleLaunchKernel,
                    (kernel, grid, 1, 1, DEQUANT_THREADS, 1, 1, 0, stream, params, NULL));
}

/* Copies what is to be decoded to scratch. All of it is copied before any is decoded, so that the time of each shows.
 */
static int copy_runs(struct hip_device *hip, struct transfer *transfer, hipStream_t stream)
{
    const struct slot_hip *slot = transfer->slot->module;
    const uint8_t *data = transfer->slot->data;
    const size_t scratch_bytes = hip_scratch_bytes(transfer->slot->size);
    for (struct run run = {0}; run_next(transfer, &run);) {
        const uint64_t bytes = run.slot_end - run.slot_offset;
        if (run.slot_end > transfer->slot->size || run.scratch_offset + bytes > scratch_bytes)
            return device_fault_set(&transfer->fault, -EINVAL, "put", 0, "pieces overlap");
        int r = HIP_CALL(hip, &transfer->fault, MemcpyAsync,
                         ((uint8_t *)slot->scratch + run.scratch_offset, data + run.slot_offset, bytes,
                          hipMemcpyHostToDevice, stream));
        if (r < 0)
            return r;
    }
    return 0;
}

/* Decodes what copy_runs() copied. */
static int launch_runs(struct hip_device *hip, struct transfer *transfer, hipStream_t stream)
{
    const struct slot_hip *slot = transfer->slot->module;
    for (struct run run = {0}; run_next(transfer, &run);) {
        const uint8_t *scratch = (const uint8_t *)slot->scratch + run.scratch_offset;
        for (size_t i = run.first; i < run.end; i++) {
            const struct piece *piece = &transfer->pieces[i];
            if (!decoded(transfer, piece))
                continue;
            int r = launch(hip, transfer, piece, scratch + (piece->slot_offset - run.slot_offset), stream);
            if (r < 0)
                return r;
        }
    }
    return 0;
}

/* The first transfer into a fresh arena waits for it to be cleared, and with it whatever comes after it. */
static int order(struct hip_device *hip, struct transfer *transfer)
{
    struct arena *arena = transfer->arena;
    if (arena->ordered)
        return 0;
    int r = HIP_CALL(hip, &transfer->fault, StreamWaitEvent, (hip->streams[0], arena->cleared, 0));
    arena->ordered = r == 0;
    return r;
}

/* Which stream a transfer's kernels go to. */
static unsigned stream_choose(struct hip_device *hip)
{
    return hip->n_streams == 1 ? 0 : 1 + hip->next_stream++ % (hip->n_streams - 1);
}

/* What is resident as it stands in the slot. */
static int submit_verbatim(struct hip_device *hip, struct transfer *transfer)
{
    int r = order(hip, transfer);
    return r < 0 ? r : copy_verbatim(hip, transfer, hip->streams[0]);
}

static int submit_copies(struct hip_device *hip, struct slot_hip *slot)
{
    struct transfer *transfer = slot->transfer;
    int r = submit_verbatim(hip, transfer);
    return r < 0 ? r : HIP_CALL(hip, &transfer->fault, EventRecord, (slot->copied, hip->streams[0]));
}

/* Kernels wait for the copies of their slot; what is copied next does not wait for them. */
static int submit_kernels(struct hip_device *hip, struct slot_hip *slot)
{
    struct transfer *transfer = slot->transfer;
    struct device_fault *fault = &transfer->fault;
    hipStream_t copies = hip->streams[0];
    int r = submit_verbatim(hip, transfer);
    if (r == 0)
        r = copy_runs(hip, transfer, copies);
    if (r == 0)
        r = HIP_CALL(hip, fault, EventRecord, (slot->copied, copies));
    if (r == 0 && slot->stream != copies)
        r = HIP_CALL(hip, fault, StreamWaitEvent, (slot->stream, slot->copied, 0));
    if (r == 0)
        r = HIP_CALL(hip, fault, StreamWaitEvent, (hip->timing, slot->copied, 0));
    if (r == 0)
        r = HIP_CALL(hip, fault, EventRecord, (slot->copied_at, hip->timing));
    if (r == 0)
        r = launch_runs(hip, transfer, slot->stream);
    return r < 0 ? r : HIP_CALL(hip, fault, EventRecord, (slot->ended, slot->stream));
}

/* How many values overflowed since this was last asked. The count stays in device memory and is asked for only when a
 * kernel says that it changed, which is rare. */
static int overflows_take(struct hip_device *hip, struct slot_hip *slot, uint64_t *ret, struct device_fault *ret_fault)
{
    uint64_t counted = slot->seen;
    if (__atomic_load_n(slot->overflowed, __ATOMIC_ACQUIRE)) {
        int r = HIP_CALL(hip, ret_fault, Memcpy, (&counted, slot->overflows, sizeof(counted), hipMemcpyDeviceToHost));
        if (r < 0)
            return r;
        *slot->overflowed = 0;
    }
    *ret = counted - slot->seen;
    slot->seen = counted;
    return 0;
}

/* Gives a slot's work to the streams. Part of it may be under way when this fails. */
static int submit(struct hip_device *hip, struct slot_hip *slot)
{
    struct transfer *transfer = slot->transfer;
    slot->kernels = run_next(transfer, &(struct run){0});
    transfer->stream = slot->kernels ? stream_choose(hip) : 0;
    slot->stream = hip->streams[transfer->stream];
    int r = hip_enter(hip, &transfer->fault);
    /* Of the slot's last transfer, if it could not be told of them: this one is not to be. */
    uint64_t others;
    if (r == 0)
        r = overflows_take(hip, slot, &others, &transfer->fault);
    if (r == 0)
        r = slot->kernels ? submit_kernels(hip, slot) : submit_copies(hip, slot);
    return r;
}

/* The slot is the caller's again, and with it the transfer: neither is touched after this. */
static void report(struct slot_hip *slot)
{
    struct transfer *transfer = slot->transfer;
    slot->transfer = NULL;
    transfer->done(transfer);
}

/* The lock is held. */
static void reclaim_postpone(struct hip_device *hip)
{
    if (hip->freed >= RECLAIM_BYTES)
        hip->reclaim_ns = device_clock_ns() + RECLAIM_NS + hip->freed / 1024 * 8;
}

void hip_freed(struct hip_device *hip, uint64_t bytes)
{
    pthread_mutex_lock(&hip->lock);
    hip->freed += bytes;
    reclaim_postpone(hip);
    pthread_cond_signal(&hip->waiting_changed);
    pthread_mutex_unlock(&hip->lock);
}

void hip_taken(struct hip_device *hip)
{
    pthread_mutex_lock(&hip->lock);
    hip->freed = hip->reclaim_ns = 0;
    pthread_mutex_unlock(&hip->lock);
}

/* Waits for what may be a slot, or an end, or until it is time to reclaim. The lock is held. */
static void submitter_wait(struct hip_device *hip)
{
    if (hip->reclaim_ns == 0) {
        pthread_cond_wait(&hip->waiting_changed, &hip->lock);
        return;
    }
    const struct timespec until = {
        .tv_sec = (time_t)(hip->reclaim_ns / 1000000000),
        .tv_nsec = (long)(hip->reclaim_ns % 1000000000),
    };
    (void)pthread_cond_timedwait(&hip->waiting_changed, &hip->lock, &until);
}

/* If it is time to. The lock is held, but for as long as that takes. */
static void submitter_reclaim(struct hip_device *hip)
{
    if (hip->reclaim_ns == 0 || device_clock_ns() < hip->reclaim_ns)
        return;
    hip->freed = hip->reclaim_ns = 0;
    pthread_mutex_unlock(&hip->lock);
    hip_reclaim(hip);
    pthread_mutex_lock(&hip->lock);
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
            submitter_reclaim(hip);
            if (!hip->waiting.head && !hip->stop)
                submitter_wait(hip);
            continue;
        }
        reclaim_postpone(hip);
        pthread_mutex_unlock(&hip->lock);

        slot->transfer->begin_ns = device_clock_ns();
        slot->transfer->status = submit(hip, slot);

        pthread_mutex_lock(&hip->lock);
        queue_push(&hip->running, slot);
        pthread_cond_signal(&hip->running_changed);
    }
    hip->running_stop = true;
    pthread_cond_signal(&hip->running_changed);
    pthread_mutex_unlock(&hip->lock);
    return NULL;
}

/* A thread that the device wakes is told late, by more than a copy takes when no other is behind it. So this asks, as
 * often as costs little. */
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

/* The device has let go of the slot, and knows when. */
static int await_slot(struct hip_device *hip, struct slot_hip *slot)
{
    struct device_fault *fault = &slot->transfer->fault;
    if (!slot->kernels)
        return await(hip, slot->copied, fault);
    int r = await(hip, slot->copied_at, fault);
    return r < 0 ? r : await(hip, slot->ended, fault);
}

/* Waits until the device has let go of the slot. If even that cannot be known, the device is lost: a slot that it may
 * still read must not be filled again as if nothing were. */
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

/* A transfer ended when this thread was told. Of one with kernels the device says how long before that its copies were
 * done. Copies begin when those before them are done, and so do kernels, stream by stream. */
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
        transfer->status = overflows_take(hip, slot, &transfer->overflows, &transfer->fault);
    report(slot);
}

static void *finisher_main(void *argument)
{
    struct hip_device *hip = argument;
    (void)prctl(PR_SET_TIMERSLACK, 1); /* nanoseconds, of this thread's sleeps */
    /* If this fails, so will the first wait. */
    (void)!hipSetDevice(hip->index);
    pthread_mutex_lock(&hip->lock);
    for (;;) {
        struct slot_hip *slot = queue_pop(&hip->running);
        if (!slot) {
            if (hip->running_stop)
                break;
            pthread_cond_wait(&hip->running_changed, &hip->lock);
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
    pthread_cond_signal(&hip->waiting_changed);
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
    pthread_cond_signal(&hip->waiting_changed);
    pthread_mutex_unlock(&hip->lock);
}
