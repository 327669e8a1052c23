#include "daemon/load/chunk_part.h"

#include "daemon/base/worker.h"
#include "kernels/dequant.h"
#include "proto/min.h"

#include <assert.h>
#include <string.h>
#include <uv.h>

int input_read(const struct input *input, uint64_t offset, void *dst, uint64_t bytes, struct fill_count *count,
               struct device_fault *ret_fault)
{
    uint64_t begin = uv_hrtime();
    int r = 0;
    if (input->memory)
        memcpy(dst, input->memory + (offset - input->begin), bytes);
    else
        r = source_read(input->source, input->shard, offset, dst, bytes, ret_fault);
    count->read_ns += uv_hrtime() - begin;
    return r;
}

/* Reads and decodes one piece, in steps of at most WORKER_SCRATCH bytes, which fit in a core's cache. */
static int piece_decode(const struct input *input, const struct plan *plan, size_t index, uint8_t *dst,
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
        int r = input_read(input, offset, scratch, n * piece->type->block_bytes, count, ret_fault);
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

int chunk_part_decode(const struct input *input, const struct plan *plan, const struct chunk *chunk,
                      const struct chunk_part *part, void *dst, struct fill_count *count,
                      struct device_fault *ret_fault)
{
    uint8_t *slot = dst;
    if (!plan->packed)
        return input_read(input, chunk->file_offset + part->offset, slot + part->offset, part->bytes, count, ret_fault);
    for (size_t i = part->first_piece; i < part->first_piece + part->n_pieces; i++) {
        const struct piece *piece = &plan->pieces[i];
        uint8_t *at = slot + piece->slot_offset;
        const bool as_it_is = plan->verbatim || piece->form == FORM_NATIVE;
        int r;
        if (plan_gather(plan, plan->piece_tensors[i])) {
            assert(!input->memory); /* who has read a part into memory leaves such a part out */
            r = gather_read(input->source, plan, input->shard, i, at, count, ret_fault);
        } else
            r = as_it_is ? input_read(input, plan->piece_file_offsets[i], at, piece->slot_bytes, count, ret_fault)
                         : piece_decode(input, plan, i, at, count, ret_fault);
        if (r < 0)
            return r;
    }
    return 0;
}
