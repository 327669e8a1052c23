#include "daemon/load/fill.h"

#include "daemon/base/cpu_cache.h"
#include "daemon/base/worker.h"
#include "kernels/dequant.h"
#include "proto/min.h"

#include <assert.h>
#include <string.h>

/* A part that took longer was not read from the page cache. */
#define SLOW_NS 1000000u

/* Reads, and adds the time that it took to the count. */
static int read_timed(const struct source *source, size_t shard, uint64_t offset, void *dst, uint64_t bytes,
                      struct fill_count *count, struct device_fault *ret_fault)
{
    uint64_t begin = uv_hrtime();
    int r = source_read(source, shard, offset, dst, bytes, ret_fault);
    count->read_ns += uv_hrtime() - begin;
    return r;
}

/* Reads and decodes one piece, in steps of at most WORKER_SCRATCH bytes, which fit in a core's cache. */
static int piece_decode(const struct source *source, const struct plan *plan, size_t shard, size_t index, uint8_t *dst,
                        struct fill_count *count, struct device_fault *ret_fault)
{
    const struct piece *piece = &plan->pieces[index];
    void *scratch = worker_scratch();
    uint64_t offset = plan->piece_file_offsets[index];
    uint64_t blocks = plan_piece_file_bytes(plan, index) / piece->type->block_bytes;
    uint64_t blocks_at_once = WORKER_SCRATCH / piece->type->block_bytes;
    size_t block_out = piece->type->block_elements * form_element_bytes(piece->form);
    dequant_fn *decode = dequant_find(piece->type->id, piece->form);
    assert(decode); /* plan_new() checked that there is one */

    while (blocks > 0) {
        uint64_t n = min_u64(blocks, blocks_at_once);
        int r = read_timed(source, shard, offset, scratch, n * piece->type->block_bytes, count, ret_fault);
        if (r < 0)
            return r;
        uint64_t begin = uv_hrtime();
        count->overflows += decode(dst, scratch, n);
        count->decode_ns += uv_hrtime() - begin;
        dst += n * block_out;
        offset += n * piece->type->block_bytes;
        blocks -= n;
    }
    return 0;
}

int fill_read(const struct source *source, const struct plan *plan, const struct chunk *chunk, const struct part *part,
              void *dst, struct fill_count *count, struct device_fault *ret_fault)
{
    uint8_t *slot = dst;
    if (!plan->packed)
        return read_timed(source, chunk->shard, chunk->file_offset + part->offset, slot + part->offset, part->bytes,
                          count, ret_fault);
    for (size_t i = part->first_piece; i < part->first_piece + part->n_pieces; i++) {
        const struct piece *piece = &plan->pieces[i];
        uint8_t *at = slot + piece->slot_offset;
        const bool as_it_is = plan->verbatim || piece->form == FORM_NATIVE;
        int r =
            plan_gather(plan, plan->piece_tensors[i]) ? gather_read(source, plan, chunk->shard, i, at, count, ret_fault)
            : as_it_is
                ? read_timed(source, chunk->shard, plan->piece_file_offsets[i], at, piece->slot_bytes, count, ret_fault)
                : piece_decode(source, plan, chunk->shard, i, at, count, ret_fault);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Sets the outcome of the fill: the error of the first share that failed, or else the outcome of the transfer. */
static void fill_conclude(struct fill *fill)
{
    fill->overflows = 0;
    for (size_t i = 0; i < fill->n_shares && fill->status == 0; i++) {
        const struct fill_share *share = &fill->shares[i];
        fill->overflows += share->count.overflows;
        fill->status = share->status;
        fill->fault = share->fault;
        fill->of_file = share->status < 0;
    }
    fill->held = fill->status == 0 && !fill->arena;
    if (fill->status < 0 || fill->held)
        return;
    fill->status = fill->transfer.status;
    fill->fault = fill->transfer.fault;
    fill->overflows += fill->transfer.overflows;
}

/* A share, or the transfer, has come back to the loop. */
static void fill_returned(struct fill *fill)
{
    assert(fill->under_way > 0);
    if (--fill->under_way > 0)
        return;
    fill_conclude(fill);
    fill->done(fill);
}

static void fill_deliver(struct letter *letter)
{
    fill_returned((struct fill *)((char *)letter - offsetof(struct fill, letter)));
}

static void fill_transferred(struct transfer *transfer)
{
    struct fill *fill = (struct fill *)((char *)transfer - offsetof(struct fill, transfer));
    atomic_store(&fill->handed_over, 0);
    mailbox_post(fill->mailbox, &fill->letter);
}

/* Starts to write a filled part from the caches back to memory: the device reads it faster from there. */
static void part_write_back(const struct fill *fill, const struct part *part)
{
    const uint8_t *slot = fill->slot->data;
    if (!fill->plan->packed)
        cpu_cache_write_back(slot + part->offset, part->bytes);
    for (size_t i = part->first_piece; i < part->first_piece + part->n_pieces; i++)
        cpu_cache_write_back(slot + fill->plan->pieces[i].slot_offset, fill->plan->pieces[i].slot_bytes);
}

static void part_copy(const struct fill *fill, const struct part *part, struct fill_count *count)
{
    const uint64_t begin = uv_hrtime();
    memcpy((uint8_t *)fill->slot->data + part->offset,
           (const uint8_t *)fill->memory + fill->chunk->file_offset + part->offset, part->bytes);
    count->read_ns += uv_hrtime() - begin;
}

static int part_fill(const struct fill *fill, const struct part *part, struct fill_share *share)
{
    int r = 0;
    if (fill->memory)
        part_copy(fill, part, &share->count);
    else
        r = fill_read(fill->source, fill->plan, fill->chunk, part, fill->slot->data, &share->count, &share->fault);
    if (r == 0 && fill->last && fill->slot->device->copies_async)
        part_write_back(fill, part);
    return r;
}

/* All parts are done: hands the slot to the device. If a part failed, nothing is copied, and the fill goes back to the
 * loop. */
static void fill_hand_over(struct fill *fill)
{
    if (atomic_load(&fill->failed)) {
        mailbox_post(fill->mailbox, &fill->letter);
        return;
    }
    struct device *device = fill->slot->device;
    atomic_store(&fill->handed_over, uv_hrtime());
    device->ops->put(device, &fill->transfer);
}

/* Joins `n` consecutive parts into one. */
static struct part parts_join(const struct part *parts, size_t n)
{
    struct part joined = parts[0];
    for (size_t i = 1; i < n; i++) {
        joined.bytes += parts[i].bytes;
        joined.n_pieces += parts[i].n_pieces;
    }
    return joined;
}

/* Takes parts until none is left. Usually one at a time, so that all workers finish at about the same time. If reading
 * is slow, a worker takes its whole share at once: perhaps each read call takes long, whatever its size. After a
 * failure, parts are still taken, but not filled. */
static void share_work(struct work *work)
{
    struct fill_share *share = work->data;
    struct fill *fill = share->fill;
    size_t i, at_once = 1;
    worker_step_back();
    share->worker = worker_number();
    share->begin_ns = share->end_ns = uv_hrtime();
    while ((i = atomic_fetch_add(&fill->taken, (unsigned)at_once)) < fill->n_parts) {
        const size_t n = min_u64(at_once, fill->n_parts - i);
        const struct part part = parts_join(&fill->parts[i], n);
        const uint64_t begin = share->end_ns;
        if (!atomic_load(&fill->failed))
            share->status = part_fill(fill, &part, share);
        share->end_ns = uv_hrtime();
        if (share->end_ns - begin > SLOW_NS)
            at_once = fill->n_parts / fill->n_shares;
        if (share->status < 0)
            atomic_store(&fill->failed, true);
        if (atomic_fetch_sub(&fill->unfilled, (unsigned)n) == n && fill->arena)
            fill_hand_over(fill);
    }
}

static void share_worked(struct work *work)
{
    struct fill_share *share = work->data;
    fill_returned(share->fill);
}

void fill_queue(struct workers *workers, struct fill *fill)
{
    fill->transfer = (struct transfer){
        .arena = fill->arena,
        .slot = fill->slot,
        .pieces = &fill->plan->pieces[fill->chunk->first_piece],
        .n_pieces = fill->chunk->n_pieces,
        .decode = fill->plan->verbatim,
        .done = fill_transferred,
    };
    fill->letter.deliver = fill_deliver;
    fill->n_parts = plan_divide(fill->plan, fill->chunk, fill->slot->device->part_bytes, fill->parts);
    atomic_store(&fill->unfilled, (unsigned)fill->n_parts);
    fill->n_shares = min_u64(fill->n_parts, min_u64(fill->workers, FILL_SHARES_MAX));
    fill->under_way = fill->n_shares + (fill->arena ? 1 : 0);
    for (size_t i = 0; i < fill->n_shares; i++) {
        struct fill_share *share = &fill->shares[i];
        share->fill = fill;
        worker_queue(workers, &share->work, share, share_work, share_worked);
    }
}

static void held_work(struct work *work)
{
    worker_step_back();
    fill_hand_over(work->data);
}

static void held_worked(struct work *work)
{
    fill_returned(work->data);
}

void fill_continue(struct workers *workers, struct fill *fill, struct arena *arena)
{
    assert(fill->held && arena);
    fill->held = false;
    fill->arena = fill->transfer.arena = arena;
    if (fill->slot->device->copies_async) { /* not on a worker: it would first do the reads that are queued */
        fill->under_way = 1;
        fill_hand_over(fill);
        return;
    }
    fill->under_way = 2;
    worker_queue(workers, &fill->work, fill, held_work, held_worked);
}
