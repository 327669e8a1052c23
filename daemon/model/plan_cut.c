#include "daemon/model/plan.h"
#include "proto/array.h"
#include "proto/min.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

/* Chunks begin at a page boundary of the file, so that blocks have the same alignment in a slot as in the file. */
#define CHUNK_ALIGNMENT 4096u

/* For sorting tensors by their position in the files. */
struct span {
    uint64_t offset;
    uint32_t shard;
    uint32_t tensor;
};

static int span_compare(const void *a, const void *b)
{
    const struct span *x = a, *y = b;
    if (x->shard != y->shard)
        return x->shard < y->shard ? -1 : 1;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return x->tensor < y->tensor ? -1 : x->tensor > y->tensor;
}

/* The state of plan_cut(): the plan, whose arrays grow, and the chunk that pieces are added to. */
struct cutter {
    struct plan *plan;
    size_t slot_bytes;
    size_t part_bytes;
    struct chunk *open; /* NULL: no chunk yet */
    uint64_t slot_used; /* bytes of the open chunk's slot in use, if the plan is packed */
    uint64_t file_at;   /* where its last piece begins. Tensors that share bytes may begin before it */
};

/* Changes the allocated number of pieces. */
static int pieces_resize(struct plan *plan, size_t capacity)
{
    if (array_resize(&plan->pieces, capacity, sizeof(*plan->pieces)) < 0 ||
        array_resize(&plan->piece_file_offsets, capacity, sizeof(*plan->piece_file_offsets)) < 0 ||
        array_resize(&plan->piece_tensors, capacity, sizeof(*plan->piece_tensors)) < 0)
        return -ENOMEM;
    plan->pieces_capacity = capacity;
    return 0;
}

static int cutter_grow_pieces(struct cutter *cutter)
{
    struct plan *plan = cutter->plan;
    if (plan->n_pieces < plan->pieces_capacity)
        return 0;
    return pieces_resize(plan, plan->pieces_capacity ? plan->pieces_capacity * 2 : 256);
}

static int cutter_begin_chunk(struct cutter *cutter, uint32_t shard, uint64_t file_offset)
{
    struct plan *plan = cutter->plan;
    int r = array_reserve(&plan->chunks, &plan->chunks_capacity, plan->n_chunks, sizeof(*plan->chunks), 64);
    if (r < 0)
        return r;
    cutter->open = &plan->chunks[plan->n_chunks++];
    cutter->slot_used = 0;
    cutter->file_at = 0;
    *cutter->open = (struct chunk){
        .shard = shard,
        .file_offset = file_offset & ~(uint64_t)(CHUNK_ALIGNMENT - 1),
        .first_piece = plan->n_pieces,
    };
    return 0;
}

/* The blocks before a cut in a tensor are a multiple of this. For every type this is a multiple of 32 bytes. So each
 * piece has the same alignment in its slot as the tensor has in the file, which is 32 bytes in most files. */
#define CUT_BLOCKS 32u

/* How many of `blocks` blocks at `file_offset` the open chunk can take as one piece. If the plan is packed, workers
 * read each piece by itself: then a piece is not larger than a part, and its blocks are a multiple of PLAN_ALIGNMENT if
 * possible, so that the slot has no gaps. block_slot_bytes: of a block in a packed slot. */
static uint64_t cutter_room(const struct cutter *cutter, uint32_t shard, uint64_t file_offset, uint64_t blocks,
                            uint64_t block_file_bytes, uint64_t block_slot_bytes)
{
    const struct chunk *chunk = cutter->open;
    if (!chunk || chunk->shard != shard || file_offset < chunk->file_offset || file_offset < cutter->file_at)
        return 0;
    if (cutter->plan->packed) {
        const uint64_t left = cutter->slot_used < cutter->slot_bytes ? cutter->slot_bytes - cutter->slot_used : 0;
        uint64_t part = cutter->part_bytes / block_slot_bytes;
        if (part >= PLAN_ALIGNMENT)
            part -= part % PLAN_ALIGNMENT;
        return min_u64(min_u64(left / block_slot_bytes, part ? part : 1), blocks);
    }
    /* The slot, and the device's copy of the slot, have each byte of the file only once. Bytes that a second tensor
     * shares go into another chunk. */
    if (file_offset < chunk->file_offset + chunk->file_bytes)
        return 0;
    const uint64_t used = file_offset - chunk->file_offset;
    const uint64_t room = used < cutter->slot_bytes ? (cutter->slot_bytes - used) / block_file_bytes : 0;
    return room < blocks ? room - room % CUT_BLOCKS : blocks;
}

static int cutter_add_piece(struct cutter *cutter, size_t tensor, uint64_t file_offset, uint64_t file_bytes,
                            uint64_t arena_offset, uint64_t arena_bytes)
{
    struct plan *plan = cutter->plan;
    struct chunk *chunk = cutter->open;
    assert(chunk); /* cutter_room() found room in it, or it was opened */
    int r = cutter_grow_pieces(cutter);
    if (r < 0)
        return r;
    struct piece *piece = &plan->pieces[plan->n_pieces];
    *piece = (struct piece){
        .slot_offset = plan->packed ? cutter->slot_used : file_offset - chunk->file_offset,
        .slot_bytes = plan->verbatim ? file_bytes : arena_bytes,
        .arena_offset = arena_offset,
        .arena_bytes = arena_bytes,
        .type = plan->tensors[tensor].type,
        .form = plan->places[tensor].convert,
    };
    plan->piece_file_offsets[plan->n_pieces] = file_offset;
    plan->piece_tensors[plan->n_pieces] = (uint32_t)tensor;
    cutter->file_at = file_offset;
    plan->n_pieces++;
    chunk->n_pieces++;
    chunk->model_bytes += file_bytes;
    if (file_offset + file_bytes - chunk->file_offset > chunk->file_bytes)
        chunk->file_bytes = file_offset + file_bytes - chunk->file_offset;
    cutter->slot_used = (cutter->slot_used + piece->slot_bytes + PLAN_ALIGNMENT - 1) & ~(uint64_t)(PLAN_ALIGNMENT - 1);
    return 0;
}

static int cutter_add_tensor(struct cutter *cutter, size_t index)
{
    const struct plan *plan = cutter->plan;
    const struct header_tensor *tensor = &plan->tensors[index];
    const struct tensor_place *place = &plan->places[index];
    if (tensor->bytes == 0)
        return 0;
    const uint64_t block_file = tensor->type->block_bytes;
    const uint64_t block_arena = place->bytes / (tensor->bytes / block_file);
    const uint64_t block_slot = plan->verbatim ? block_file : block_arena;
    const uint64_t blocks = plan_tensor_reads(plan, index) / block_file;
    uint64_t done = 0;
    while (done < blocks) {
        uint64_t file_offset = tensor->offset + done * block_file;
        uint64_t n = cutter_room(cutter, tensor->shard, file_offset, blocks - done, block_file, block_slot);
        if (n == 0) {
            int r = cutter_begin_chunk(cutter, tensor->shard, file_offset);
            if (r < 0)
                return r;
            n = cutter_room(cutter, tensor->shard, file_offset, blocks - done, block_file, block_slot);
            assert(n > 0); /* a slot has room for at least a page and CUT_BLOCKS of the largest blocks */
        }
        int r = cutter_add_piece(cutter, index, file_offset, n * block_file, place->offset + done * block_arena,
                                 n * block_arena);
        if (r < 0)
            return r;
        done += n;
    }
    return 0;
}

int plan_cut(struct plan *plan, size_t slot_bytes, size_t part_bytes, bool verbatim)
{
    assert(!plan->chunks && slot_bytes >= 4 * CHUNK_ALIGNMENT);
    const size_t n_tensors = plan->model->n_tensors;
    struct span *spans = calloc(n_tensors ? n_tensors : 1, sizeof(*spans));
    if (!spans)
        return -ENOMEM;
    for (size_t i = 0; i < n_tensors; i++)
        spans[i] =
            (struct span){.offset = plan->tensors[i].offset, .shard = plan->tensors[i].shard, .tensor = (uint32_t)i};
    qsort(spans, n_tensors, sizeof(*spans), span_compare);

    plan->verbatim = verbatim;
    plan->packed = !verbatim || (plan->arrangement && plan->arrangement->gathers_any);
    struct cutter cutter = {.plan = plan, .slot_bytes = slot_bytes, .part_bytes = part_bytes};
    int r = 0;
    for (size_t i = 0; i < n_tensors && r == 0; i++)
        r = cutter_add_tensor(&cutter, spans[i].tensor);
    free(spans);
    if (r == 0) { /* the arrays live as long as the model, so free their unused entries */
        (void)pieces_resize(plan, plan->n_pieces ? plan->n_pieces : 1);
        array_trim(&plan->chunks, &plan->chunks_capacity, plan->n_chunks, sizeof(*plan->chunks));
    }
    return r;
}

/* Divides bytes into equal ranges of whole pages; the last range may be shorter. */
static size_t divide_bytes(uint64_t bytes, size_t part_bytes, struct chunk_part *ret)
{
    uint64_t each = max_u64(part_bytes, (bytes + CHUNK_PARTS_MAX - 1) / CHUNK_PARTS_MAX);
    each = (each + CHUNK_ALIGNMENT - 1) & ~(uint64_t)(CHUNK_ALIGNMENT - 1);
    size_t n = 0;
    for (uint64_t at = 0; at < bytes || n == 0; at += each)
        ret[n++] = (struct chunk_part){.offset = at, .bytes = min_u64(each, bytes - at)};
    return n;
}

/* The work for a piece: the bytes that it reads or the bytes that it writes, whichever are more. */
static uint64_t piece_work(const struct plan *plan, size_t index)
{
    return max_u64(plan_piece_file_bytes(plan, index), plan->pieces[index].slot_bytes);
}

/* Divides the work into equal lengths. Each piece belongs to the part in which its work begins. */
static size_t divide_pieces(const struct plan *plan, const struct chunk *chunk, size_t part_bytes,
                            struct chunk_part *ret)
{
    const size_t end = chunk->first_piece + chunk->n_pieces;
    uint64_t work = 0;
    for (size_t i = chunk->first_piece; i < end; i++)
        work += piece_work(plan, i);
    const uint64_t lengths = min_u64((work + part_bytes - 1) / part_bytes, CHUNK_PARTS_MAX);
    size_t n = 0;
    uint64_t done = 0, length = 0;
    ret[n] = (struct chunk_part){.first_piece = chunk->first_piece};
    for (size_t i = chunk->first_piece; i < end; i++) {
        const uint64_t of_piece = done * lengths / work;
        if (of_piece > length) {
            ret[++n] = (struct chunk_part){.first_piece = i};
            length = of_piece;
        }
        ret[n].n_pieces++;
        done += piece_work(plan, i);
    }
    return n + 1;
}

size_t plan_divide(const struct plan *plan, const struct chunk *chunk, size_t part_bytes,
                   struct chunk_part ret[CHUNK_PARTS_MAX])
{
    return plan->packed ? divide_pieces(plan, chunk, part_bytes, ret)
                        : divide_bytes(chunk->file_bytes, part_bytes, ret);
}

static bool decodes(const struct plan *plan)
{
    for (size_t i = 0; i < plan->model->n_tensors; i++)
        if (plan->places[i].convert != FORM_NATIVE)
            return true;
    return false;
}

int plan_cut_for(struct plan *plan, struct device *device, bool decode_on_cpu)
{
    const bool verbatim = !decodes(plan) || (!decode_on_cpu && plan_decoded_by(plan, device));
    return plan_cut(plan, device->slot_bytes, device->part_bytes, verbatim);
}
