#include "daemon/model/manifest_place.h"

#include "daemon/header/name_set.h"
#include "proto/min.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_TOLD 64 /* bytes of a name in a fault */

int manifest_refuse(struct manifest_fault *fault, size_t tensor, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fault->tensor = tensor;
    vsnprintf(fault->reason, sizeof(fault->reason), format, arguments);
    va_end(arguments);
    return -EBADMSG;
}

static int check_names(const struct model_header *header, struct manifest_fault *fault)
{
    __attribute__((cleanup(name_set_free))) struct name_set seen = {0};
    if (name_set_init(&seen, header->n_tensors) < 0)
        return -ENOMEM;
    for (size_t i = 0; i < header->n_tensors; i++)
        if (!name_set_add(&seen, header->tensors[i].name, strlen(header->tensors[i].name)))
            return manifest_refuse(fault, i, "two tensors are called '%.*s'", NAME_TOLD, header->tensors[i].name);
    return 0;
}

/* Places the tensors that have no offset behind those that have one. *ret: where the last one ends. */
static int place_tensors(const struct model_header *header, struct tensor_place *places, uint64_t *ret,
                         struct manifest_fault *fault)
{
    uint64_t end = 0;
    for (size_t i = 0; i < header->n_tensors; i++)
        if (places[i].offset != MANIFEST_NOWHERE && places[i].offset + places[i].bytes > end)
            end = places[i].offset + places[i].bytes;
    for (size_t i = 0; i < header->n_tensors; i++) {
        if (places[i].offset != MANIFEST_NOWHERE)
            continue;
        places[i].offset = (end + PLAN_ALIGNMENT - 1) & ~(uint64_t)(PLAN_ALIGNMENT - 1);
        end = places[i].offset + places[i].bytes; /* each term is below 2^53, and so is their sum so far */
        if (end >= PLAN_ARENA_MAX)
            return manifest_refuse(fault, i, "the tensors together are larger than any memory");
    }
    *ret = end;
    return 0;
}

/* Sizes the memory, and checks that it has all tensors. */
static int size_arena(const struct model_header *header, struct plan *plan, const struct manifest_room *room,
                      uint64_t end, struct manifest_fault *fault)
{
    for (size_t i = 0; room->bytes > 0 && i < header->n_tensors; i++) {
        const struct tensor_place *place = &plan->places[i];
        if (place->offset > room->bytes || place->bytes > room->bytes - place->offset)
            return manifest_refuse(fault, i, "it ends at byte %" PRIu64 " of a memory of %" PRIu64,
                                   place->offset + place->bytes, room->bytes);
    }
    const uint64_t needed = room->bytes ? room->bytes : end ? end : 1;
    uint64_t rounded;
    if (__builtin_add_overflow(needed, room->granule - 1, &rounded) ||
        (rounded & ~(room->granule - 1)) >= PLAN_ARENA_MAX)
        return manifest_refuse(fault, SIZE_MAX, "it is larger than any memory");
    plan->arena_bytes = rounded & ~(room->granule - 1);
    return 0;
}

static int place_compare(const void *a, const void *b, void *context)
{
    const struct tensor_place *all = context;
    const size_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    if (all[i].offset != all[j].offset)
        return all[i].offset < all[j].offset ? -1 : 1;
    if (all[i].bytes != all[j].bytes)
        return all[i].bytes > all[j].bytes ? -1 : 1;
    return i < j ? -1 : i > j;
}

/* Finds the tensors that begin within others, and counts the bytes, those that tensors share once. */
static int find_views(struct manifest *manifest, const struct model_header *header, struct plan *plan)
{
    const size_t n = header->n_tensors;
    uint32_t *order = calloc(n ? n : 1, sizeof(*order));
    if (!order)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++)
        order[i] = (uint32_t)i;
    qsort_r(order, n, sizeof(*order), place_compare, plan->places);
    uint64_t end = 0;
    for (size_t k = 0; k < n; k++) {
        const struct tensor_place *place = &plan->places[order[k]];
        const uint64_t last = place->offset + place->bytes;
        if (place->bytes == 0)
            continue;
        if (place->offset < end)
            manifest->flags[order[k]] |= MANIFEST_VIEW;
        if (last > end)
            plan->model_bytes += last - max_u64(place->offset, end);
        end = max_u64(last, end);
    }
    free(order);
    manifest->n_tensors = n;
    return 0;
}

int manifest_place(struct manifest_parsed *parts, const struct manifest_room *room, struct manifest_fault *fault)
{
    uint64_t end = 0;
    int r = check_names(parts->header, fault);
    if (r == 0)
        r = place_tensors(parts->header, parts->plan->places, &end, fault);
    if (r == 0)
        r = size_arena(parts->header, parts->plan, room, end, fault);
    return r == 0 ? find_views(parts->manifest, parts->header, parts->plan) : r;
}
