/* Copies use the first stream only, one after another: each gets the full rate of the bus. Two copies at a time would
 * end no sooner, but both would end late, and both slots would come back at the same time. Kernels use the other
 * streams in turn; each waits for the copies of its slot.
 *
 * An event with a time, or one that a thread can sleep on, delays the next copy on its stream. So the copies' stream
 * gets only events without either, unless it is the only stream. */
#include "daemon/device/hip/work.h"

#include "daemon/device/hip/error.h"
#include "kernels/dequant_gpu.h"

#include <assert.h>
#include <errno.h>

/* Pieces to decode share one copy if at most SCRATCH_GAP bytes are between them, and if the later piece has the same
 * alignment to SCRATCH_ALIGNED as the first, or both are small (less than SCRATCH_RUN). Kernels are much faster on
 * aligned pieces, and each separate copy takes some time to start. */
#define SCRATCH_RUN     (64u << 10)
#define SCRATCH_GAP     (64u << 10)
#define SCRATCH_ALIGNED 16u

/* Runs begin at a multiple of this in scratch memory. */
#define SCRATCH_ALIGNMENT 256u

/* An upper bound. Aligning a run adds less than SCRATCH_ALIGNMENT bytes. A new run begins with a piece of at least
 * SCRATCH_RUN bytes, or after a run of at least SCRATCH_RUN bytes, or after a gap. A gap is not copied, and it is
 * longer than what the alignment adds. */
size_t hip_scratch_bytes(size_t slot_bytes)
{
    return slot_bytes + (2 * (slot_bytes / SCRATCH_RUN) + 3) * SCRATCH_ALIGNMENT;
}

static uint8_t *arena_at(const struct arena *arena, uint64_t offset)
{
    return (uint8_t *)arena->memory.base + offset;
}

static bool decoded(const struct transfer *transfer, const struct piece *piece)
{
    return transfer->decode && piece->form != FORM_NATIVE;
}

/* Copies the pieces that are not decoded. Neighbours share one copy. */
static int copy_verbatim(struct hip_device *hip, struct transfer *transfer, hipStream_t stream)
{
    const uint8_t *data = transfer->source ? transfer->source : transfer->slot->data;
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
        assert(transfer->source || first->slot_offset + bytes <= transfer->slot->size);
        assert(first->arena_offset + bytes <= transfer->arena->memory.bytes);
        int r = HIP_CALL(hip, &transfer->fault, MemcpyAsync,
                         (arena_at(transfer->arena, first->arena_offset), data + first->slot_offset, bytes,
                          hipMemcpyHostToDevice, stream));
        if (r < 0)
            return r;
    }
    return 0;
}

/* Pieces that one copy brings to scratch memory: those from `first` to before `end` that are decoded. */
struct run {
    size_t first, end;
    uint64_t slot_offset, slot_end;
    uint64_t scratch_offset;
};

/* Changes *run to the next run; {0} is before the first. Returns false if there is none. */
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
    assert(piece->arena_offset + piece->arena_bytes <= transfer->arena->memory.bytes);
    void *dst = arena_at(transfer->arena, piece->arena_offset);
    void *params[] = {&src, &dst, &blocks, &slot->overflows, &slot->seen, &slot->overflowed_device};
    const unsigned grid = (unsigned)((elements + DEQUANT_TILE - 1) / DEQUANT_TILE);
    return HIP_CALL(hip, &transfer->fault, ModuleLaunchKernel,
                    (kernel, grid, 1, 1, DEQUANT_THREADS, 1, 1, 0, stream, params, NULL));
}

/* Copies all runs to scratch memory. All copies come before all kernels, so that each can be timed. */
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

/* Launches the kernels for what copy_runs() copied. */
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

/* The first transfer into a new arena makes the copies' stream wait until the arena is cleared. All later copies
 * then come after that too. */
static int order(struct hip_device *hip, struct transfer *transfer)
{
    struct arena *arena = transfer->arena;
    if (arena->ordered)
        return 0;
    int r = HIP_CALL(hip, &transfer->fault, StreamWaitEvent, (hip->streams[0], arena->cleared, 0));
    arena->ordered = r == 0;
    return r;
}

/* The stream for the next transfer's kernels. */
static unsigned stream_choose(struct hip_device *hip)
{
    return hip->n_streams == 1 ? 0 : 1 + hip->next_stream++ % (hip->n_streams - 1);
}

/* The copies of pieces that are not decoded. */
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

/* Kernels wait for the copies of their slot. Later copies do not wait for these kernels. */
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

/* The count is in device memory. It is read only if a kernel has set the flag in pinned memory, which is rare. */
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
    /* Discards what the slot's previous transfer counted, if that transfer failed before it could report it. */
    uint64_t others;
    if (r == 0)
        r = hip_overflows_take(hip, slot, &others, &transfer->fault);
    if (r == 0)
        r = slot->kernels ? submit_kernels(hip, slot) : submit_copies(hip, slot);
    return r;
}
