#include "daemon/model/plan.h"

#include "kernels/dequant.h"
#include "proto/array.h"
#include "proto/min.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Chunks begin at a page boundary of the file, so that blocks have the same alignment in a slot as in the file. */
#define CHUNK_ALIGNMENT 4096u

/* The form that has the same elements as the type; FORM_NATIVE if there is no such form. */
static enum form type_form(const struct tensor_type *type)
{
    for (enum form form = FORM_F32; form < FORM_COUNT; form++)
        if (strcmp(type->name, form_name(form)) == 0)
            return form;
    return FORM_NATIVE;
}

static void placement_choose(struct placement *placement, const struct gguf_tensor *tensor, const struct forms *forms)
{
    const enum form own = type_form(tensor->type), form = forms_of(forms, tensor);
    placement->convert = form == own ? FORM_NATIVE : form;
    placement->form = placement->convert == FORM_NATIVE ? own : form;
}

static int align_up(uint64_t value, uint64_t alignment, uint64_t *ret)
{
    uint64_t sum;
    if (__builtin_add_overflow(value, alignment - 1, &sum))
        return -EOVERFLOW;
    *ret = sum & ~(alignment - 1);
    return 0;
}

/* Bytes of padding after a tensor, see PLAN_ROW_ELEMENTS, which is a multiple of the block size of every type. */
static uint64_t row_padding(const struct gguf_tensor *tensor)
{
    const struct tensor_type *type = tensor->type;
    const uint64_t beyond = tensor->ne[0] % PLAN_ROW_ELEMENTS;
    if (type->kind != TYPE_QUANTISED || beyond == 0)
        return 0;
    return (PLAN_ROW_ELEMENTS - beyond) / type->block_elements * type->block_bytes;
}

static int placement_measure(struct placement *placement, const struct gguf_tensor *tensor)
{
    if (placement->convert == FORM_NATIVE) {
        placement->bytes = tensor->bytes;
        placement->padding = row_padding(tensor);
        return 0;
    }
    if (__builtin_mul_overflow(tensor->elements, form_element_bytes(placement->convert), &placement->bytes))
        return -EOVERFLOW;
    return 0;
}

bool plan_same(const struct plan *a, const struct plan *b)
{
    bool same = a->model->n_tensors == b->model->n_tensors;
    for (size_t i = 0; i < a->model->n_tensors && same; i++)
        same = a->placements[i].form == b->placements[i].form && a->placements[i].convert == b->placements[i].convert;
    return same;
}

int plan_new(const struct gguf *model, const struct forms *forms, uint64_t granule, struct plan **ret,
             size_t *ret_tensor)
{
    assert(granule >= PLAN_ALIGNMENT && (granule & (granule - 1)) == 0);
    if (!forms_affordable(forms, model))
        return -E2BIG;
    struct plan *plan = calloc(1, sizeof(*plan));
    if (!plan)
        return -ENOMEM;
    plan->model = model;
    plan->placements = calloc(model->n_tensors ? model->n_tensors : 1, sizeof(*plan->placements));
    if (!plan->placements) {
        plan_free(plan);
        return -ENOMEM;
    }

    uint64_t end = 0;
    for (size_t i = 0; i < model->n_tensors; i++) {
        const struct gguf_tensor *tensor = &model->tensors[i];
        struct placement *placement = &plan->placements[i];
        placement_choose(placement, tensor, forms);
        if (placement->convert != FORM_NATIVE && !dequant_find(tensor->type->id, placement->convert)) {
            plan_free(plan);
            *ret_tensor = i;
            return -ENOTSUP;
        }
        int r = placement_measure(placement, tensor);
        if (r == 0)
            r = align_up(end, PLAN_ALIGNMENT, &placement->offset);
        if (r == 0 && (__builtin_add_overflow(placement->offset, placement->bytes, &end) ||
                       __builtin_add_overflow(end, placement->padding, &end)))
            r = -EOVERFLOW;
        if (r == 0 && __builtin_add_overflow(plan->model_bytes, tensor->bytes, &plan->model_bytes))
            r = -EOVERFLOW;
        if (r == 0 && end >= PLAN_ARENA_MAX)
            r = -EOVERFLOW;
        if (r < 0) {
            plan_free(plan);
            return r;
        }
    }
    int r = align_up(end ? end : 1, granule, &plan->arena_bytes);
    if (r < 0 || plan->arena_bytes >= PLAN_ARENA_MAX) {
        plan_free(plan);
        return -EOVERFLOW;
    }
    *ret = plan;
    return 0;
}

/* Whether this is where the tensor can be; *end is where the one before ends. */
static int placement_check(const struct placement *placement, const struct gguf_tensor *tensor, uint64_t arena_bytes,
                           uint64_t *end)
{
    struct placement expected = {.convert = placement->convert};
    if (placement->convert != FORM_NATIVE && !dequant_find(tensor->type->id, placement->convert))
        return -ENOTSUP;
    if (placement_measure(&expected, tensor) < 0 || placement->bytes != expected.bytes ||
        placement->offset % PLAN_ALIGNMENT != 0 || placement->offset < *end || placement->offset > arena_bytes ||
        placement->bytes > arena_bytes - placement->offset ||
        placement->padding > arena_bytes - placement->offset - placement->bytes)
        return -EBADMSG;
    *end = placement->offset + placement->bytes + placement->padding;
    return 0;
}

int plan_resume(const struct gguf *model, const struct placement *placements, uint64_t arena_bytes, struct plan **ret)
{
    struct plan *plan = calloc(1, sizeof(*plan));
    const size_t n = model->n_tensors;
    int r = arena_bytes == 0 || arena_bytes >= PLAN_ARENA_MAX ? -EBADMSG : 0;
    if (plan)
        plan->placements = calloc(n ? n : 1, sizeof(*plan->placements));
    if (!plan || !plan->placements)
        r = -ENOMEM;
    uint64_t end = 0;
    for (size_t i = 0; i < n && r == 0; i++) {
        plan->placements[i] = placements[i];
        plan->model_bytes += model->tensors[i].bytes;
        r = placement_check(&placements[i], &model->tensors[i], arena_bytes, &end);
    }
    if (r < 0) {
        plan_free(plan);
        return r;
    }
    plan->model = model;
    plan->arena_bytes = arena_bytes;
    *ret = plan;
    return 0;
}

void plan_free(struct plan *plan)
{
    if (!plan)
        return;
    free(plan->placements);
    free(plan->chunks);
    free(plan->pieces);
    free(plan->piece_file_offsets);
    free(plan->piece_tensors);
    free(plan);
}

bool plan_decoded_by(const struct plan *plan, struct device *device)
{
    for (size_t i = 0; i < plan->model->n_tensors; i++)
        if (plan->placements[i].convert != FORM_NATIVE &&
            !device->ops->decodes(device, plan->model->tensors[i].type, plan->placements[i].convert))
            return false;
    return true;
}

uint64_t plan_memory(const struct plan *plan)
{
    const size_t piece = sizeof(*plan->pieces) + sizeof(*plan->piece_file_offsets) + sizeof(*plan->piece_tensors);
    return sizeof(*plan) + plan->model->n_tensors * sizeof(*plan->placements) +
           plan->chunks_capacity * sizeof(*plan->chunks) + plan->pieces_capacity * piece;
}

uint64_t plan_piece_file_bytes(const struct plan *plan, size_t index)
{
    const struct piece *piece = &plan->pieces[index];
    if (piece->form == FORM_NATIVE)
        return piece->arena_bytes;
    uint64_t elements = piece->arena_bytes / form_element_bytes(piece->form);
    return elements / piece->type->block_elements * piece->type->block_bytes;
}

int plan_linear(uint64_t bytes, size_t slot_bytes, struct plan **ret)
{
    struct plan *plan = calloc(1, sizeof(*plan));
    if (!plan)
        return -ENOMEM;
    size_t n = (bytes + slot_bytes - 1) / slot_bytes;
    plan->arena_bytes = plan->model_bytes = bytes;
    plan->verbatim = true;
    plan->pieces_capacity = plan->chunks_capacity = n ? n : 1;
    plan->chunks = calloc(n ? n : 1, sizeof(*plan->chunks));
    plan->pieces = calloc(n ? n : 1, sizeof(*plan->pieces));
    if (!plan->chunks || !plan->pieces) {
        plan_free(plan);
        return -ENOMEM;
    }
    for (uint64_t at = 0; at < bytes; at += slot_bytes) {
        uint64_t size = min_u64(bytes - at, slot_bytes);
        plan->pieces[plan->n_pieces] = (struct piece){.slot_bytes = size, .arena_offset = at, .arena_bytes = size};
        plan->chunks[plan->n_chunks++] = (struct chunk){
            .file_offset = at,
            .file_bytes = size,
            .model_bytes = size,
            .first_piece = plan->n_pieces++,
            .n_pieces = 1,
        };
    }
    *ret = plan;
    return 0;
}

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
    uint64_t slot_used; /* bytes of the open chunk's slot in use, if the plan is not verbatim */
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

/* Tensors are cut only after a multiple of so many blocks. For every type this is a multiple of 32 bytes. So each piece
 * has the same alignment in its slot as the tensor has in the file, which is 32 bytes in most files. */
#define CUT_BLOCKS 32u

/* How many of `blocks` blocks at `file_offset` the open chunk can take as one piece. If the plan is not verbatim,
 * workers decode into the slot: then a piece is not larger than a part, and its blocks are a multiple of PLAN_ALIGNMENT
 * if possible, so that the slot has no gaps. */
static uint64_t cutter_room(const struct cutter *cutter, uint32_t shard, uint64_t file_offset, uint64_t blocks,
                            uint64_t block_file_bytes, uint64_t block_arena_bytes)
{
    const struct chunk *chunk = cutter->open;
    if (!chunk || chunk->shard != shard || file_offset < chunk->file_offset || file_offset < cutter->file_at)
        return 0;
    /* The slot, and the device's copy of the slot, have each byte of the file only once. Bytes that a second tensor
     * shares go into another chunk. */
    if (cutter->plan->verbatim && file_offset < chunk->file_offset + chunk->file_bytes)
        return 0;
    uint64_t used = cutter->plan->verbatim ? file_offset - chunk->file_offset : cutter->slot_used;
    uint64_t left = used < cutter->slot_bytes ? cutter->slot_bytes - used : 0;
    if (cutter->plan->verbatim) {
        uint64_t room = left / block_file_bytes;
        return room < blocks ? room - room % CUT_BLOCKS : blocks;
    }
    uint64_t part = cutter->part_bytes / block_arena_bytes;
    if (part >= PLAN_ALIGNMENT)
        part -= part % PLAN_ALIGNMENT;
    return min_u64(min_u64(left / block_arena_bytes, part ? part : 1), blocks);
}

static int cutter_add_piece(struct cutter *cutter, size_t tensor, uint64_t file_offset, uint64_t file_bytes,
                            uint64_t arena_offset, uint64_t arena_bytes)
{
    struct plan *plan = cutter->plan;
    struct chunk *chunk = cutter->open;
    int r = cutter_grow_pieces(cutter);
    if (r < 0)
        return r;
    struct piece *piece = &plan->pieces[plan->n_pieces];
    *piece = (struct piece){
        .slot_offset = plan->verbatim ? file_offset - chunk->file_offset : cutter->slot_used,
        .slot_bytes = plan->verbatim ? file_bytes : arena_bytes,
        .arena_offset = arena_offset,
        .arena_bytes = arena_bytes,
        .type = plan->model->tensors[tensor].type,
        .form = plan->placements[tensor].convert,
    };
    plan->piece_file_offsets[plan->n_pieces] = file_offset;
    plan->piece_tensors[plan->n_pieces] = (uint32_t)tensor;
    cutter->file_at = file_offset;
    plan->n_pieces++;
    chunk->n_pieces++;
    chunk->model_bytes += file_bytes;
    if (file_offset + file_bytes - chunk->file_offset > chunk->file_bytes)
        chunk->file_bytes = file_offset + file_bytes - chunk->file_offset;
    cutter->slot_used = (cutter->slot_used + arena_bytes + PLAN_ALIGNMENT - 1) & ~(uint64_t)(PLAN_ALIGNMENT - 1);
    return 0;
}

static int cutter_add_tensor(struct cutter *cutter, size_t index)
{
    const struct gguf_tensor *tensor = &cutter->plan->model->tensors[index];
    const struct placement *placement = &cutter->plan->placements[index];
    if (tensor->bytes == 0)
        return 0;
    uint64_t block_file = tensor->type->block_bytes;
    uint64_t blocks = tensor->bytes / block_file;
    uint64_t block_arena = placement->bytes / blocks;
    uint64_t done = 0;
    while (done < blocks) {
        uint64_t file_offset = tensor->offset + done * block_file;
        uint64_t n = cutter_room(cutter, tensor->shard, file_offset, blocks - done, block_file, block_arena);
        if (n == 0) {
            int r = cutter_begin_chunk(cutter, tensor->shard, file_offset);
            if (r < 0)
                return r;
            n = cutter_room(cutter, tensor->shard, file_offset, blocks - done, block_file, block_arena);
            assert(n > 0); /* a slot has room for at least a page and CUT_BLOCKS of the largest blocks */
        }
        int r = cutter_add_piece(cutter, index, file_offset, n * block_file, placement->offset + done * block_arena,
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
    const struct gguf *model = plan->model;
    struct span *spans = calloc(model->n_tensors ? model->n_tensors : 1, sizeof(*spans));
    if (!spans)
        return -ENOMEM;
    for (size_t i = 0; i < model->n_tensors; i++)
        spans[i] =
            (struct span){.offset = model->tensors[i].offset, .shard = model->tensors[i].shard, .tensor = (uint32_t)i};
    qsort(spans, model->n_tensors, sizeof(*spans), span_compare);

    plan->verbatim = verbatim;
    struct cutter cutter = {.plan = plan, .slot_bytes = slot_bytes, .part_bytes = part_bytes};
    int r = 0;
    for (size_t i = 0; i < model->n_tensors && r == 0; i++)
        r = cutter_add_tensor(&cutter, spans[i].tensor);
    free(spans);
    if (r == 0) { /* the arrays live as long as the model, so free their unused entries */
        (void)pieces_resize(plan, plan->n_pieces ? plan->n_pieces : 1);
        array_trim(&plan->chunks, &plan->chunks_capacity, plan->n_chunks, sizeof(*plan->chunks));
    }
    return r;
}

static uint64_t max(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Divides bytes into equal ranges of whole pages; the last range may be shorter. */
static size_t divide_bytes(uint64_t bytes, size_t part_bytes, struct part *ret)
{
    uint64_t each = max(part_bytes, (bytes + PLAN_PARTS_MAX - 1) / PLAN_PARTS_MAX);
    each = (each + CHUNK_ALIGNMENT - 1) & ~(uint64_t)(CHUNK_ALIGNMENT - 1);
    size_t n = 0;
    for (uint64_t at = 0; at < bytes || n == 0; at += each)
        ret[n++] = (struct part){.offset = at, .bytes = min_u64(each, bytes - at)};
    return n;
}

/* The work for a piece: the bytes that it reads or the bytes that it writes, whichever are more. */
static uint64_t piece_work(const struct plan *plan, size_t index)
{
    return max(plan_piece_file_bytes(plan, index), plan->pieces[index].slot_bytes);
}

/* Divides the work into equal lengths. Each piece belongs to the part in which its work begins. */
static size_t divide_pieces(const struct plan *plan, const struct chunk *chunk, size_t part_bytes, struct part *ret)
{
    const size_t end = chunk->first_piece + chunk->n_pieces;
    uint64_t work = 0;
    for (size_t i = chunk->first_piece; i < end; i++)
        work += piece_work(plan, i);
    const uint64_t lengths = min_u64((work + part_bytes - 1) / part_bytes, PLAN_PARTS_MAX);
    size_t n = 0;
    uint64_t done = 0, length = 0;
    ret[n] = (struct part){.first_piece = chunk->first_piece};
    for (size_t i = chunk->first_piece; i < end; i++) {
        const uint64_t of_piece = done * lengths / work;
        if (of_piece > length) {
            ret[++n] = (struct part){.first_piece = i};
            length = of_piece;
        }
        ret[n].n_pieces++;
        done += piece_work(plan, i);
    }
    return n + 1;
}

size_t plan_divide(const struct plan *plan, const struct chunk *chunk, size_t part_bytes,
                   struct part ret[PLAN_PARTS_MAX])
{
    return plan->verbatim ? divide_bytes(chunk->file_bytes, part_bytes, ret)
                          : divide_pieces(plan, chunk, part_bytes, ret);
}

/* Gaps with fewer bytes than this between them are joined: clearing so many bytes takes as long as one call. */
#define GAPS_TOGETHER ((uint64_t)1 << 20)

int plan_gaps(const struct plan *plan, struct extent **ret, size_t *ret_n)
{
    const size_t n_tensors = plan->model->n_tensors;
    struct extent *gaps = calloc(n_tensors + 1, sizeof(*gaps));
    if (!gaps)
        return -ENOMEM;
    size_t n = 0;
    uint64_t end = 0;
    for (size_t i = 0; i <= n_tensors; i++) {
        const struct placement *next = i < n_tensors ? &plan->placements[i] : NULL;
        const uint64_t begin = next ? next->offset : plan->arena_bytes;
        if (begin > end) {
            struct extent *last = n > 0 ? &gaps[n - 1] : NULL;
            if (last && end - (last->offset + last->bytes) < GAPS_TOGETHER)
                last->bytes = begin - last->offset;
            else
                gaps[n++] = (struct extent){.offset = end, .bytes = begin - end};
        }
        if (next)
            end = next->offset + next->bytes;
    }
    *ret = gaps;
    *ret_n = n;
    return 0;
}
