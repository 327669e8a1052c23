#include "daemon/load/gather.h"

#include "daemon/base/worker.h"
#include "kernels/dequant.h"
#include "proto/min.h"

#include <assert.h>
#include <string.h>

/* A run of at least this many bytes is read by a call of its own, to where it belongs. Shorter runs are copied out of a
 * range that one call reads, since a call takes as long as copying about this many bytes. */
#define RUN_READ 2048u

/* A piece that is being read. */
struct gathering {
    const struct source *source;
    const struct gather *gather;
    const struct tensor_type *type;
    size_t shard;
    uint64_t tensor_offset; /* in the file */
    uint64_t end;           /* the last byte of the file that the piece needs is before this */
    dequant_fn *decode;     /* NULL: blocks stay as they are */
    uint64_t window;        /* where the range of the file begins that is in the scratch memory */
    uint64_t window_bytes;
    struct fill_count *count;
    struct device_fault *fault;
};

static int read_timed(struct gathering *g, uint64_t offset, void *dst, uint64_t bytes)
{
    const uint64_t begin = uv_hrtime();
    int r = source_read(g->source, g->shard, offset, dst, bytes, g->fault);
    g->count->read_ns += uv_hrtime() - begin;
    return r;
}

/* Where in memory a range of the file is. Reads it, with the bytes after it, if it was not read yet. */
static int window_take(struct gathering *g, uint64_t offset, uint64_t bytes, const uint8_t **ret)
{
    if (offset < g->window || offset + bytes > g->window + g->window_bytes) {
        const uint64_t size = min_u64(WORKER_SCRATCH, g->end > offset + bytes ? g->end - offset : bytes);
        g->window_bytes = 0;
        int r = read_timed(g, offset, worker_scratch(), size);
        if (r < 0)
            return r;
        g->window = offset;
        g->window_bytes = size;
    }
    *ret = (const uint8_t *)worker_scratch() + (offset - g->window);
    return 0;
}

static void put(struct gathering *g, uint8_t *dst, const uint8_t *src, uint64_t blocks)
{
    const uint64_t begin = g->decode ? uv_hrtime() : 0;
    if (g->decode)
        g->count->overflows += g->decode(dst, src, blocks);
    else
        memcpy(dst, src, blocks * g->type->block_bytes);
    if (g->decode)
        g->count->decode_ns += uv_hrtime() - begin;
}

/* Brings a run of blocks to its place. block_out: bytes of a block there. */
static int run_read(struct gathering *g, uint64_t offset, uint64_t blocks, uint8_t *dst, size_t block_out)
{
    const size_t block = g->type->block_bytes;
    const uint64_t bytes = blocks * block;
    const uint8_t *src;
    if (bytes >= RUN_READ && !g->decode)
        return read_timed(g, offset, dst, bytes);
    const uint64_t at_once = WORKER_SCRATCH / block;
    for (uint64_t done = 0; done < blocks;) {
        const uint64_t n = min_u64(blocks - done, at_once);
        int r = window_take(g, offset + done * block, n * block, &src);
        if (r < 0)
            return r;
        put(g, dst + done * block_out, src, n);
        done += n;
    }
    return 0;
}

int gather_read(const struct source *source, const struct plan *plan, size_t shard, size_t index, uint8_t *dst,
                struct fill_count *count, struct device_fault *ret_fault)
{
    const struct piece *piece = &plan->pieces[index];
    const size_t tensor = plan->piece_tensors[index];
    const bool decodes = piece->form != FORM_NATIVE && !plan->verbatim;
    const size_t block_bytes = piece->type->block_bytes;
    const size_t block_arena =
        piece->form == FORM_NATIVE ? block_bytes : piece->type->block_elements * form_element_bytes(piece->form);
    const size_t block_out = decodes ? block_arena : block_bytes;
    struct gathering g = {
        .source = source,
        .gather = plan_gather(plan, tensor),
        .type = piece->type,
        .shard = shard,
        .tensor_offset = plan->tensors[tensor].offset,
        .decode = decodes ? dequant_find(piece->type->id, piece->form) : NULL,
        .count = count,
        .fault = ret_fault,
    };
    assert(g.gather && (g.decode || !decodes));
    const uint64_t first = (piece->arena_offset - plan->places[tensor].offset) / block_arena;
    const uint64_t blocks = piece->arena_bytes / block_arena;
    uint64_t at, run;
    for (uint64_t done = 0; done < blocks; done += run) {
        run = gather_run(g.gather, first + done, blocks - done, &at);
        const uint64_t end = g.tensor_offset + (at + run) * block_bytes;
        g.end = max_u64(end, g.end);
    }
    for (uint64_t done = 0; done < blocks; done += run) {
        run = gather_run(g.gather, first + done, blocks - done, &at);
        int r = run_read(&g, g.tensor_offset + at * block_bytes, run, dst + done * block_out, block_out);
        if (r < 0)
            return r;
    }
    return 0;
}
