#include "daemon/fill.h"

#include "daemon/worker.h"
#include "kernels/dequant.h"

#include <assert.h>
#include <string.h>

/* Reads one piece and decodes it, a part at a time that the cache holds. */
static int piece_decode(const struct source *source, const struct plan *plan, size_t shard, size_t index, uint8_t *dst,
                        void *scratch, uint64_t *overflows, uint64_t *read_ns, uint64_t *decode_ns,
                        struct device_fault *ret_fault)
{
    const struct piece *piece = &plan->pieces[index];
    uint64_t offset = plan->piece_file_offsets[index];
    uint64_t blocks = plan_piece_file_bytes(plan, index) / piece->type->block_bytes;
    uint64_t blocks_at_once = SLOT_SCRATCH / piece->type->block_bytes;
    size_t block_out = piece->type->block_elements * form_element_bytes(piece->form);
    dequant_fn *decode = dequant_find(piece->type->id, piece->form);
    assert(decode); /* the plan asked */

    while (blocks > 0) {
        uint64_t n = blocks < blocks_at_once ? blocks : blocks_at_once;
        uint64_t begin = uv_hrtime();
        int r = source_read(source, shard, offset, scratch, n * piece->type->block_bytes, ret_fault);
        uint64_t middle = uv_hrtime();
        if (r < 0)
            return r;
        *overflows += decode(dst, scratch, n);
        *read_ns += middle - begin;
        *decode_ns += uv_hrtime() - middle;
        dst += n * block_out;
        offset += n * piece->type->block_bytes;
        blocks -= n;
    }
    return 0;
}

int fill_read(const struct source *source, const struct plan *plan, const struct chunk *chunk, void *dst, void *scratch,
              uint64_t *overflows, uint64_t *read_ns, uint64_t *decode_ns, struct device_fault *ret_fault)
{
    uint64_t begin = uv_hrtime();
    if (plan->verbatim) {
        int r = source_read(source, chunk->shard, chunk->file_offset, dst, chunk->file_bytes, ret_fault);
        *read_ns += uv_hrtime() - begin;
        return r;
    }
    for (size_t i = chunk->first_piece; i < chunk->first_piece + chunk->n_pieces; i++) {
        const struct piece *piece = &plan->pieces[i];
        uint8_t *at = (uint8_t *)dst + piece->slot_offset;
        int r;
        if (piece->form == FORM_NATIVE) {
            begin = uv_hrtime();
            r = source_read(source, chunk->shard, plan->piece_file_offsets[i], at, piece->slot_bytes, ret_fault);
            *read_ns += uv_hrtime() - begin;
        } else
            r = piece_decode(source, plan, chunk->shard, i, at, scratch, overflows, read_ns, decode_ns, ret_fault);
        if (r < 0)
            return r;
    }
    return 0;
}

/* One of the two has come back to the loop. */
static void fill_returned(struct fill *fill)
{
    assert(fill->under_way > 0);
    if (--fill->under_way > 0)
        return;
    if (fill->status == 0) {
        fill->status = fill->transfer.status;
        fill->fault = fill->transfer.fault;
        fill->overflows += fill->transfer.overflows;
    }
    fill->done(fill);
}

static void fill_deliver(struct letter *letter)
{
    fill_returned((struct fill *)((char *)letter - offsetof(struct fill, letter)));
}

static void fill_transferred(struct transfer *transfer)
{
    struct fill *fill = (struct fill *)((char *)transfer - offsetof(struct fill, transfer));
    mailbox_post(fill->mailbox, &fill->letter);
}

static void fill_work(uv_work_t *work)
{
    struct fill *fill = work->data;
    worker_step_back();
    fill->worker = worker_number();
    fill->begin_ns = uv_hrtime();
    if (fill->memory) {
        memcpy(fill->slot->data, (const uint8_t *)fill->memory + fill->chunk->file_offset, fill->chunk->file_bytes);
        fill->read_ns = uv_hrtime() - fill->begin_ns;
    } else
        fill->status = fill_read(fill->source, fill->plan, fill->chunk, fill->slot->data, fill->slot->scratch,
                                 &fill->overflows, &fill->read_ns, &fill->decode_ns, &fill->fault);
    fill->end_ns = uv_hrtime();
    if (fill->status < 0) {
        fill->of_file = true;
        fill->transfer.status = 0;
        mailbox_post(fill->mailbox, &fill->letter);
        return;
    }
    struct device *device = fill->slot->device;
    device->ops->put(device, &fill->transfer);
}

static void fill_worked(uv_work_t *work, int status)
{
    (void)status; /* never cancelled once queued: a load that ends waits for what it began */
    fill_returned(work->data);
}

void fill_queue(uv_loop_t *loop, struct fill *fill)
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
    fill->work.data = fill;
    fill->under_way = 2;
    int r = uv_queue_work(loop, &fill->work, fill_work, fill_worked);
    assert(r == 0); /* it only refuses a job without a function */
    (void)r;
}
