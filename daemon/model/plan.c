#include "daemon/model/plan.h"

#include "kernels/dequant.h"
#include "proto/min.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void place_choose(struct tensor_place *place, const struct header_tensor *tensor, const struct forms *forms)
{
    const enum form own = form_of_type(tensor->type), form = forms_of(forms, tensor);
    place->convert = form == own ? FORM_NATIVE : form;
    place->form = place->convert == FORM_NATIVE ? own : form;
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
static uint64_t row_padding(const struct header_tensor *tensor)
{
    const struct tensor_type *type = tensor->type;
    const uint64_t beyond = tensor->ne[0] % PLAN_ROW_ELEMENTS;
    if (type->kind != TYPE_QUANTISED || beyond == 0)
        return 0;
    return (PLAN_ROW_ELEMENTS - beyond) / type->block_elements * type->block_bytes;
}

static int place_measure(struct tensor_place *place, const struct header_tensor *tensor)
{
    if (place->convert == FORM_NATIVE) {
        place->bytes = tensor->bytes;
        place->padding = row_padding(tensor);
        return 0;
    }
    if (__builtin_mul_overflow(tensor->elements, form_element_bytes(place->convert), &place->bytes))
        return -EOVERFLOW;
    return 0;
}

bool plan_same(const struct plan *a, const struct plan *b)
{
    bool same = a->model->n_tensors == b->model->n_tensors && arrangement_same(a->arrangement, b->arrangement);
    for (size_t i = 0; i < a->model->n_tensors && same; i++)
        same = a->places[i].form == b->places[i].form && a->places[i].convert == b->places[i].convert;
    return same;
}

/* --- where tensors go --- */

/* Makes a plan that has no places yet. Takes the arrangement over, also when it fails. */
static struct plan *plan_begin(const struct model_header *model, struct arrangement *arrangement)
{
    struct plan *plan = calloc(1, sizeof(*plan));
    if (!plan) {
        arrangement_free(arrangement);
        return NULL;
    }
    plan->model = model;
    plan->arrangement = arrangement;
    plan->tensors = arrangement ? arrangement->tensors : model->tensors;
    plan->places = calloc(model->n_tensors ? model->n_tensors : 1, sizeof(*plan->places));
    if (plan->places)
        return plan;
    plan_free(plan);
    return NULL;
}

/* The tensor that comes at this place in memory. */
static size_t tensor_at(const struct plan *plan, size_t place)
{
    return plan->arrangement ? plan->arrangement->order[place] : place;
}

/* Whether the tensor is a member of a group; *ret_first: the first one, *ret_last: the last one. */
static bool is_member(const struct plan *plan, size_t tensor, bool *ret_first, bool *ret_last)
{
    const struct arrangement *a = plan->arrangement;
    *ret_first = *ret_last = true;
    if (!a || a->group_of[tensor] == ARRANGED_ALONE)
        return false;
    const struct arranged_group *group = &a->groups[a->group_of[tensor]];
    *ret_first = group->members[0] == tensor;
    *ret_last = group->members[group->n_members - 1] == tensor;
    return true;
}

/* Members whose bytes have different forms are no neighbours of which one tensor can be made. A request that names the
 * members is refused then. */
static int settle_groups(struct plan *plan, struct layout_fault *fault)
{
    struct arrangement *a = plan->arrangement;
    for (size_t i = 0; a && i < a->n_groups; i++) {
        const struct arranged_group *group = &a->groups[i];
        size_t k = 1;
        while (k < group->n_members && plan->places[group->members[k]].form == plan->places[group->members[0]].form &&
               plan->places[group->members[k]].convert == plan->places[group->members[0]].convert)
            k++;
        if (k >= group->n_members)
            continue;
        if (group->asked)
            return layout_refuse(fault, plan->tensors[group->members[k]].name, NULL,
                                 "the member gets another form than the first one of its group");
        arrangement_dissolve(a, i);
    }
    if (a)
        arrangement_order(a);
    return 0;
}

/* Chooses the forms of all tensors. -ENOTSUP, and the tensor. */
static int choose_forms(struct plan *plan, const struct forms *forms, size_t *ret_tensor)
{
    for (size_t i = 0; i < plan->model->n_tensors; i++) {
        const struct header_tensor *tensor = &plan->model->tensors[i];
        place_choose(&plan->places[i], tensor, forms);
        if (plan->places[i].convert != FORM_NATIVE && !dequant_find(tensor->type->id, plan->places[i].convert)) {
            *ret_tensor = i;
            return -ENOTSUP;
        }
    }
    return 0;
}

/* Places one tensor. *end: where the one before ends. */
static int place(struct plan *plan, size_t index, uint64_t *end)
{
    struct tensor_place *place = &plan->places[index];
    bool first, last;
    const bool member = is_member(plan, index, &first, &last);
    int r = place_measure(place, &plan->tensors[index]);
    if (member && !last)
        place->padding = 0;
    place->offset = *end;
    if (r == 0 && first)
        r = align_up(*end, PLAN_ALIGNMENT, &place->offset);
    if (r < 0 || __builtin_add_overflow(place->offset, place->bytes, end) ||
        __builtin_add_overflow(*end, place->padding, end) ||
        __builtin_add_overflow(plan->model_bytes, plan_tensor_reads(plan, index), &plan->model_bytes))
        return -EOVERFLOW;
    return *end >= PLAN_ARENA_MAX ? -EOVERFLOW : 0;
}

static int place_all(struct plan *plan, uint64_t granule)
{
    uint64_t end = 0;
    int r = 0;
    for (size_t i = 0; i < plan->model->n_tensors && r == 0; i++)
        r = place(plan, tensor_at(plan, i), &end);
    if (r == 0)
        r = align_up(end ? end : 1, granule, &plan->arena_bytes);
    return r == 0 && plan->arena_bytes >= PLAN_ARENA_MAX ? -EOVERFLOW : r;
}

int plan_new_arranged(const struct model_header *model, const struct forms *forms, const struct layout *layout,
                      const struct model_heads *heads, uint64_t granule, struct plan **ret, size_t *ret_tensor,
                      struct layout_fault *ret_fault)
{
    assert(granule >= PLAN_ALIGNMENT && (granule & (granule - 1)) == 0);
    if (!forms_affordable(forms, model))
        return -E2BIG;
    struct arrangement *arrangement;
    int r = arrange(model, layout, heads, &arrangement, ret_fault);
    if (r < 0)
        return r;
    struct plan *plan = plan_begin(model, arrangement);
    if (!plan)
        return -ENOMEM;
    plan->heads = *heads;
    r = choose_forms(plan, forms, ret_tensor);
    if (r == 0)
        r = settle_groups(plan, ret_fault);
    if (r == 0)
        r = place_all(plan, granule);
    if (r < 0) {
        plan_free(plan);
        return r;
    }
    *ret = plan;
    return 0;
}

int plan_new(const struct model_header *model, const struct forms *forms, uint64_t granule, struct plan **ret,
             size_t *ret_tensor)
{
    struct layout_fault unused;
    return plan_new_arranged(model, forms, layout_none(), &(struct model_heads){0}, granule, ret, ret_tensor, &unused);
}

/* Whether this is where the tensor can be; *end is where the one before ends. */
static int place_check(const struct plan *plan, size_t index, uint64_t arena_bytes, uint64_t *end)
{
    const struct tensor_place *place = &plan->places[index];
    struct tensor_place expected = {.convert = place->convert};
    bool first, last;
    (void)is_member(plan, index, &first, &last);
    if (place->convert != FORM_NATIVE && !dequant_find(plan->tensors[index].type->id, place->convert))
        return -ENOTSUP;
    if (place_measure(&expected, &plan->tensors[index]) < 0 || place->bytes != expected.bytes ||
        (first ? place->offset % PLAN_ALIGNMENT != 0 : place->offset != *end) || place->offset < *end ||
        place->offset > arena_bytes || place->bytes > arena_bytes - place->offset ||
        place->padding > arena_bytes - place->offset - place->bytes || (!last && place->padding > 0))
        return -EBADMSG;
    *end = place->offset + place->bytes + place->padding;
    return 0;
}

int plan_resume(const struct model_header *model, const struct layout *layout, const struct model_heads *heads,
                const struct tensor_place *places, uint64_t arena_bytes, struct plan **ret)
{
    const size_t n = model->n_tensors;
    struct arrangement *arrangement;
    struct layout_fault unused;
    if (arena_bytes == 0 || arena_bytes >= PLAN_ARENA_MAX)
        return -EBADMSG;
    int r = arrange(model, layout, heads, &arrangement, &unused);
    if (r < 0)
        return r == -EDOM ? -EBADMSG : r;
    struct plan *plan = plan_begin(model, arrangement);
    if (!plan)
        return -ENOMEM;
    plan->heads = *heads;
    plan->arena_bytes = arena_bytes;
    if (n > 0)
        memcpy(plan->places, places, n * sizeof(*places));
    r = settle_groups(plan, &unused) < 0 ? -EBADMSG : 0;
    uint64_t end = 0;
    for (size_t i = 0; i < n && r == 0; i++) {
        plan->model_bytes += plan_tensor_reads(plan, tensor_at(plan, i));
        r = place_check(plan, tensor_at(plan, i), arena_bytes, &end);
    }
    if (r < 0) {
        plan_free(plan);
        return r;
    }
    *ret = plan;
    return 0;
}

void plan_free(struct plan *plan)
{
    if (!plan)
        return;
    arrangement_free(plan->arrangement);
    free(plan->places);
    free(plan->chunks);
    free(plan->pieces);
    free(plan->piece_file_offsets);
    free(plan->piece_tensors);
    free(plan);
}

bool plan_decoded_by(const struct plan *plan, struct device *device)
{
    for (size_t i = 0; i < plan->model->n_tensors; i++)
        if (plan->places[i].convert != FORM_NATIVE &&
            !device->ops->decodes(device, plan->model->tensors[i].type, plan->places[i].convert))
            return false;
    return true;
}

uint64_t plan_memory(const struct plan *plan)
{
    const size_t piece = sizeof(*plan->pieces) + sizeof(*plan->piece_file_offsets) + sizeof(*plan->piece_tensors);
    return sizeof(*plan) + arrangement_memory(plan->arrangement) + plan->model->n_tensors * sizeof(*plan->places) +
           plan->chunks_capacity * sizeof(*plan->chunks) + plan->pieces_capacity * piece;
}

const struct gather *plan_gather(const struct plan *plan, size_t tensor)
{
    const struct gather *gather = plan->arrangement ? &plan->arrangement->gathers[tensor] : NULL;
    return gather && gather->row > 0 ? gather : NULL;
}

uint64_t plan_tensor_reads(const struct plan *plan, size_t index)
{
    const struct header_tensor *tensor = &plan->tensors[index];
    const struct gather *gather = plan_gather(plan, index);
    return gather ? gather->blocks * tensor->type->block_bytes : tensor->bytes;
}

uint64_t plan_group_bytes(const struct plan *plan, const struct arranged_group *group)
{
    const struct tensor_place *first = &plan->places[group->members[0]];
    const struct tensor_place *last = &plan->places[group->members[group->n_members - 1]];
    return last->offset + last->bytes - first->offset;
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
    plan->verbatim = true; /* not packed either: a slot holds a copy of the memory's bytes */
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

/* Gaps with fewer bytes than this between them are joined: clearing that many bytes takes about as long as one call. */
#define GAPS_TOGETHER ((uint64_t)1 << 20)

/* Bytes at the beginning of a tensor that pieces are written to. */
static uint64_t written_bytes(const struct plan *plan, size_t index)
{
    const struct tensor_place *place = &plan->places[index];
    const uint64_t reads = plan_tensor_reads(plan, index), all = plan->tensors[index].bytes;
    if (reads == all)
        return place->bytes;
    const uint64_t block = plan->tensors[index].type->block_bytes;
    return place->bytes / (all / block) * (reads / block);
}

int plan_gaps(const struct plan *plan, struct extent **ret, size_t *ret_n)
{
    const size_t n_tensors = plan->model->n_tensors;
    struct extent *gaps = calloc(n_tensors + 1, sizeof(*gaps));
    if (!gaps)
        return -ENOMEM;
    size_t n = 0;
    uint64_t end = 0;
    for (size_t i = 0; i <= n_tensors; i++) {
        const size_t index = i < n_tensors ? tensor_at(plan, i) : 0;
        const uint64_t begin = i < n_tensors ? plan->places[index].offset : plan->arena_bytes;
        if (begin > end) {
            struct extent *last = n > 0 ? &gaps[n - 1] : NULL;
            if (last && end - (last->offset + last->bytes) < GAPS_TOGETHER)
                last->bytes = begin - last->offset;
            else
                gaps[n++] = (struct extent){.offset = end, .bytes = begin - end};
        }
        if (i < n_tensors)
            end = begin + written_bytes(plan, index);
    }
    *ret = gaps;
    *ret_n = n;
    return 0;
}
