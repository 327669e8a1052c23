/* What a transfer has the device do: copies from its slot, and kernels behind them.
 *
 * All copies go through the first stream, one after the other at the full rate of the bus: two at a time would be done
 * no sooner, but both late, and both their slots would come back at once. Kernels go over the other streams in turn,
 * each behind its copy. An event that takes the time holds up the copy behind it, by 2 us, and so does one that a
 * thread can sleep for: the copies' stream gets others only, but where it is the only one. */
#include "daemon/device/hip/work.h"

#include "daemon/device/hip/error.h"
#include "kernels/dequant_gpu.h"

#include <assert.h>
#include <errno.h>

/* Pieces to decode share a copy where no more than SCRATCH_GAP is between them: those that are aligned behind the
 * first, which is, as kernels like it, and those that are smaller than SCRATCH_RUN. A copy of its own costs 3 us. */
#define SCRATCH_RUN     (64u << 10)
#define SCRATCH_GAP     (64u << 10)
#define SCRATCH_ALIGNED 16u

/* Where a run begins in scratch memory: at a multiple of this, so that kernels find it aligned. */
#define SCRATCH_ALIGNMENT 256u

/* Every run starts at a multiple of the alignment. One begins with a piece of at least SCRATCH_RUN, behind such a run,
 * or behind a gap that it saves more than an alignment's worth of. */
size_t hip_scratch_bytes(size_t slot_bytes)
{
    return slot_bytes + (2 * (slot_bytes / SCRATCH_RUN) + 3) * SCRATCH_ALIGNMENT;
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
        .scratch_offset = (scratch_end + SCRATCH_ALIGNMENT - 1) / SCRATCH_ALIGNMENT * SCRATCH_ALIGNMENT,
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

/* The count stays in device memory and is asked for only when a kernel says that it changed, which is rare. */
int hip_overflows_take(struct hip_device *hip, struct slot_hip *slot, uint64_t *ret, struct device_fault *ret_fault)
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

int hip_submit(struct hip_device *hip, struct slot_hip *slot)
{
    struct transfer *transfer = slot->transfer;
    slot->kernels = run_next(transfer, &(struct run){0});
    transfer->stream = slot->kernels ? stream_choose(hip) : 0;
    slot->stream = hip->streams[transfer->stream];
    int r = hip_enter(hip, &transfer->fault);
    /* Of the slot's last transfer, if it could not be told of them: this one is not to be. */
    uint64_t others;
    if (r == 0)
        r = hip_overflows_take(hip, slot, &others, &transfer->fault);
    if (r == 0)
        r = slot->kernels ? submit_kernels(hip, slot) : submit_copies(hip, slot);
    return r;
}
