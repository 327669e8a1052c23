/* Parses lists of tensors, and headers of published models. What is accepted lies within its memory, and is written and
 * read again as the same. */
#include "daemon/model/manifest.h"

#include <stdlib.h>
#include <string.h>

#define GRANULE 4096u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool right)
{
    if (!right)
        abort();
}

static void check_places(const struct manifest_parsed *parts)
{
    const struct plan *plan = parts->plan;
    check(plan->arena_bytes > 0 && plan->arena_bytes < PLAN_ARENA_MAX && plan->model_bytes <= plan->arena_bytes);
    for (size_t i = 0; i < plan->model->n_tensors; i++) {
        const struct tensor_place *place = &plan->places[i];
        check(place->bytes <= plan->arena_bytes && place->offset <= plan->arena_bytes - place->bytes);
        const uint64_t *strides = manifest_strides(parts->manifest, i);
        uint64_t last = 0;
        for (uint32_t k = 0; strides && k < plan->model->tensors[i].n_dims; k++)
            last += (plan->model->tensors[i].ne[plan->model->tensors[i].n_dims - 1 - k] - 1) * strides[k];
        check(!strides || (last + 1) * plan->model->tensors[i].type->block_bytes == place->bytes);
    }
}

static void round_trip(const struct manifest_parsed *parts)
{
    struct manifest_parsed again;
    char *text;
    size_t size;
    if (manifest_header(parts->plan, &text, &size) < 0)
        return;
    check(manifest_read_header(text, size, parts->plan->arena_bytes, &again) == 0);
    check(again.plan->model->n_tensors == parts->plan->model->n_tensors);
    for (size_t i = 0; i < parts->plan->model->n_tensors; i++)
        check(memcmp(&again.plan->places[i], &parts->plan->places[i], sizeof(struct tensor_place)) == 0);
    free(text);
    manifest_parsed_free(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct manifest_parsed parts;
    struct manifest_fault fault;
    if (size > 0 && manifest_parse((const char *)data, size, 0, GRANULE, &parts, &fault) == 0) {
        check_places(&parts);
        round_trip(&parts);
        manifest_parsed_free(&parts);
    }
    if (manifest_read_header((const char *)data, size, GRANULE, &parts) == 0) {
        check_places(&parts);
        round_trip(&parts);
        manifest_parsed_free(&parts);
    }
    return 0;
}
