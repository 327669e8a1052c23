#include "daemon/load/fill.h"

#include "daemon/base/cpu_cache.h"
#include "daemon/base/worker.h"
#include "daemon/load/chunk_part.h"
#include "proto/min.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* A part that took longer was not read from the page cache. */
#define SLOW_NS 1000000u

/* The most bytes between the pieces of a part with which it is still read as one range. */
#define RANGE_EXTRA ((uint64_t)64 << 10)

static bool fill_reads_over(struct fill *fill);

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
    fill->waits = fill->status == 0 && !fill->arena;
    if (fill->status < 0 || fill->waits)
        return;
    fill->status = fill->transfer.status;
    fill->fault = fill->transfer.fault;
    fill->overflows += fill->transfer.overflows;
}

/* A share, or the letter, has come back to the loop. */
static void fill_returned(struct fill *fill)
{
    assert(fill->under_way > 0);
    if (--fill->under_way > 0)
        return;
    if (atomic_load(&fill->n_reads) > 0 && !fill->reads_over && fill_reads_over(fill))
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
static void part_write_back(const struct fill *fill, const struct chunk_part *part)
{
    const uint8_t *slot = fill->slot->data;
    if (!fill->plan->packed)
        cpu_cache_write_back(slot + part->offset, part->bytes);
    for (size_t i = part->first_piece; i < part->first_piece + part->n_pieces; i++)
        cpu_cache_write_back(slot + fill->plan->pieces[i].slot_offset, fill->plan->pieces[i].slot_bytes);
}

static void part_copy(const struct fill *fill, const struct chunk_part *part, struct fill_count *count)
{
    const uint64_t begin = uv_hrtime();
    memcpy((uint8_t *)fill->slot->data + part->offset,
           (const uint8_t *)fill->memory + fill->chunk->file_offset + part->offset, part->bytes);
    count->read_ns += uv_hrtime() - begin;
}

static int part_fill(const struct fill *fill, const struct chunk_part *part, struct fill_share *share)
{
    int r = 0;
    if (fill->memory)
        part_copy(fill, part, &share->count);
    else
        r = chunk_part_decode(&(const struct input){.source = fill->source, .shard = fill->chunk->shard}, fill->plan,
                              fill->chunk, part, fill->slot->data, &share->count, &share->fault);
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
static struct chunk_part parts_join(const struct chunk_part *parts, size_t n)
{
    struct chunk_part joined = parts[0];
    for (size_t i = 1; i < n; i++) {
        joined.bytes += parts[i].bytes;
        joined.n_pieces += parts[i].n_pieces;
    }
    return joined;
}

/* `n` parts are filled, or given up. Whoever did the last one hands the slot over. With `cold`, the fill always returns
 * to the loop through the mailbox; if parts were read past the page cache, before the slot is handed over. */
static void parts_filled(struct fill *fill, unsigned n)
{
    if (atomic_fetch_sub(&fill->unfilled, n) != n)
        return;
    if (fill->arena && (fill->reads_over || atomic_load(&fill->n_reads) == 0))
        fill_hand_over(fill);
    else if (fill->cold && !fill->reads_over)
        mailbox_post(fill->mailbox, &fill->letter);
}

/* --- past the page cache --- */

static uint64_t align_down(uint64_t value)
{
    return value & ~(uint64_t)(DIRECT_ALIGNMENT - 1);
}

static uint64_t align_up(uint64_t value)
{
    return align_down(value + DIRECT_ALIGNMENT - 1);
}

/* The range of the file that has all pieces of a part. Empty if there is much between them that is not needed, or one
 * of them is gathered from several places. */
static struct span_bytes part_range(const struct plan *plan, const struct chunk *chunk, const struct chunk_part *part)
{
    if (!plan->packed)
        return (struct span_bytes){chunk->file_offset + part->offset, chunk->file_offset + part->offset + part->bytes};
    struct span_bytes range = {.begin = plan->piece_file_offsets[part->first_piece]};
    uint64_t needed = 0;
    for (size_t i = part->first_piece; i < part->first_piece + part->n_pieces; i++) {
        const uint64_t bytes = plan_piece_file_bytes(plan, i), end = plan->piece_file_offsets[i] + bytes;
        if (plan_gather(plan, plan->piece_tensors[i]))
            return (struct span_bytes){range.begin, range.begin};
        needed += bytes;
        range.end = max_u64(end, range.end);
    }
    if (range.end - range.begin > needed + RANGE_EXTRA)
        range.end = range.begin;
    return range;
}

/* On the thread that reads. */
static void part_read_done(struct direct_read *read)
{
    struct part_read *part = (struct part_read *)((char *)read - offsetof(struct part_read, read));
    struct fill *fill = part->fill;
    if (read->error < 0)
        cold_refuse(fill->cold, fill->chunk->shard);
    parts_filled(fill, part->n_parts);
}

/* Chooses where the bytes go. Returns false if the part is not to be read past the page cache after all. */
static bool part_read_place(struct fill *fill, struct part_read *read)
{
    const uint64_t begin = align_down(read->whole.begin);
    if (!fill->plan->packed) { /* then all begins at a page */
        read->into = (uint8_t *)fill->slot->data + read->part.offset;
        while (read->missing.end > read->missing.begin &&
               read->part.offset + (read->missing.end - begin) > fill->slot->size)
            read->missing.end -= DIRECT_ALIGNMENT;
        return read->missing.end > read->missing.begin;
    }
    read->raw = aligned_alloc(DIRECT_ALIGNMENT, align_up(read->whole.end) - begin);
    if (read->raw)
        read->into = (uint8_t *)read->raw + (read->whole.begin - begin);
    return read->raw;
}

/* Reads the bytes of a part in this range of the file, as far as the part has them. */
static int part_read_rest(const struct part_read *read, uint64_t begin, uint64_t end, struct fill_share *share)
{
    const struct fill *fill = read->fill;
    const struct input input = {.source = fill->source, .shard = fill->chunk->shard};
    begin = max_u64(begin, read->whole.begin);
    end = min_u64(end, read->whole.end);
    return begin < end ? input_read(&input, begin, read->into + (begin - read->whole.begin), end - begin, &share->count,
                                    &share->fault)
                       : 0;
}

/* Begins to read what is missing, and reads the rest from the page cache. Returns false, and has done nothing, if
 * nothing is missing. */
static bool part_read_begin(struct fill *fill, size_t index, size_t n, const struct chunk_part *part,
                            struct fill_share *share)
{
    struct part_read *read = &fill->reads[index];
    read->part = *part;
    read->n_parts = (unsigned)n;
    read->whole = part_range(fill->plan, fill->chunk, part);
    read->missing = cold_missing(fill->cold, fill->chunk->shard, read->whole);
    if (read->missing.begin == read->missing.end || !part_read_place(fill, read))
        return false;
    const struct span_bytes missing = read->missing;
    read->fill = fill;
    read->read = (struct direct_read){
        .dst = read->into + missing.begin - read->whole.begin,
        .offset = missing.begin,
        .size = missing.end - missing.begin,
        .done = part_read_done,
    };
    atomic_fetch_add(&fill->n_reads, 1);
    cold_read(fill->cold, fill->chunk->shard, &read->read);
    int r = part_read_rest(read, read->whole.begin, missing.begin, share);
    if (r == 0)
        r = part_read_rest(read, missing.end, read->whole.end, share);
    if (r < 0) {
        share->status = r;
        atomic_store(&fill->failed, true);
    }
    return true;
}

/* Where the last byte is that was read past the page cache. */
static uint64_t part_read_end(const struct part_read *read)
{
    return read->missing.begin + read->read.got;
}

/* Whether a worker has something left to do for the part. */
static bool part_read_needs_work(const struct part_read *read)
{
    return read->fill && (read->raw || part_read_end(read) < min_u64(read->missing.end, read->whole.end));
}

/* Reads what was not delivered, and decodes. */
static int part_read_finish(struct part_read *read, struct fill_share *share)
{
    const struct fill *fill = read->fill;
    int r = part_read_rest(read, part_read_end(read), read->missing.end, share);
    if (r == 0 && read->raw) {
        const struct input input = {.memory = read->into, .begin = read->whole.begin};
        r = chunk_part_decode(&input, fill->plan, fill->chunk, &read->part, fill->slot->data, &share->count,
                              &share->fault);
    }
    if (r == 0 && fill->last && fill->slot->device->copies_async)
        part_write_back(fill, &read->part);
    return r;
}

static void reads_work(struct work *work)
{
    struct fill_share *share = work->data;
    struct fill *fill = share->fill;
    size_t i;
    worker_step_back();
    share->worker = worker_number();
    share->begin_ns = share->end_ns = uv_hrtime();
    while ((i = atomic_fetch_add(&fill->taken, 1)) < fill->n_parts) {
        struct part_read *read = &fill->reads[i];
        if (!read->fill)
            continue;
        if (!atomic_load(&fill->failed))
            share->status = part_read_finish(read, share);
        free(read->raw);
        read->raw = NULL;
        share->end_ns = uv_hrtime();
        if (share->status < 0)
            atomic_store(&fill->failed, true);
        parts_filled(fill, 1);
    }
}

/* --- through the page cache --- */

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
        const struct chunk_part part = parts_join(&fill->parts[i], n);
        const uint64_t begin = share->end_ns;
        const bool failed = atomic_load(&fill->failed);
        if (!failed && fill->cold && part_read_begin(fill, i, n, &part, share)) {
            share->end_ns = uv_hrtime();
            continue;
        }
        if (!failed)
            share->status = part_fill(fill, &part, share);
        share->end_ns = uv_hrtime();
        if (share->end_ns - begin > SLOW_NS)
            at_once = fill->n_parts / fill->n_shares;
        if (share->status < 0)
            atomic_store(&fill->failed, true);
        parts_filled(fill, (unsigned)n);
    }
}

static void share_worked(struct work *work)
{
    struct fill_share *share = work->data;
    fill_returned(share->fill);
}

/* Lets as many workers as are useful do `n` things. */
static void fill_share_out(struct fill *fill, size_t n, void (*run)(struct work *work))
{
    n = min_u64(n, min_u64(fill->workers, FILL_SHARES_MAX));
    fill->n_shares = max_u64(n, fill->n_shares);
    fill->under_way += n;
    struct work_reads reads = {0};
    if (!fill->memory)
        reads = source_reads(fill->source, fill->uid);
    for (size_t i = 0; i < n; i++) {
        struct fill_share *share = &fill->shares[i];
        share->fill = fill;
        if (fill->memory)
            worker_queue(fill->queue, &share->work, share, run, share_worked);
        else
            worker_queue_reading(fill->queue, &share->work, &reads, share, run, share_worked);
    }
}

void fill_queue(struct workers *workers, struct fill *fill)
{
    fill->queue = workers;
    fill->transfer = (struct transfer){
        .arena = fill->arena,
        .slot = fill->slot,
        .pieces = &fill->plan->pieces[fill->chunk->first_piece],
        .n_pieces = fill->chunk->n_pieces,
        .decode = fill->plan->verbatim,
        .done = fill_transferred,
    };
    fill->letter.deliver = fill_deliver;
    if (fill->pinned) {
        assert(fill->arena && fill->slot->device->copies_async);
        fill->transfer.source = (const uint8_t *)fill->memory + fill->chunk->file_offset;
        fill->n_shares = 0;
        fill->under_way = 1;
        fill_hand_over(fill);
        return;
    }
    fill->n_parts = plan_divide(fill->plan, fill->chunk, fill->slot->device->part_bytes, fill->parts);
    fill->direct_begin_ns = fill->cold ? uv_hrtime() : 0;
    atomic_store(&fill->unfilled, (unsigned)fill->n_parts);
    fill->under_way = fill->arena || fill->cold ? 1 : 0;
    fill_share_out(fill, fill->n_parts, share_work);
}

static void put_work(struct work *work)
{
    worker_step_back();
    fill_hand_over(work->data);
}

static void put_worked(struct work *work)
{
    fill_returned(work->data);
}

/* Loop. Hands a full slot to the device. */
static void fill_put(struct fill *fill)
{
    if (fill->slot->device->copies_async) { /* not on a worker: it would first do the reads that are queued */
        fill->under_way = 1;
        fill_hand_over(fill);
        return;
    }
    fill->under_way = 2;
    worker_queue(fill->queue, &fill->work, fill, put_work, put_worked);
}

/* All direct reads have ended, and no worker works on the fill. Returns false if there is nothing left to do. */
static bool fill_reads_over(struct fill *fill)
{
    size_t n = 0;
    bool needs_work = false;
    fill->reads_over = true;
    fill->direct_end_ns = uv_hrtime();
    for (size_t i = 0; i < fill->n_parts; i++) {
        n += fill->reads[i].fill != NULL;
        needs_work = needs_work || part_read_needs_work(&fill->reads[i]);
    }
    if (atomic_load(&fill->failed)) {
        for (size_t i = 0; i < fill->n_parts; i++)
            free(fill->reads[i].raw);
        return false;
    }
    if (!needs_work && !fill->arena)
        return false;
    if (!needs_work) {
        fill_put(fill);
        return true;
    }
    atomic_store(&fill->taken, 0);
    atomic_store(&fill->unfilled, (unsigned)n);
    fill->under_way = fill->arena ? 1 : 0;
    fill_share_out(fill, n, reads_work);
    return true;
}

void fill_continue(struct workers *workers, struct fill *fill, struct arena *arena)
{
    assert(fill->waits && arena);
    fill->waits = false;
    fill->queue = workers;
    fill->arena = fill->transfer.arena = arena;
    fill_put(fill);
}
