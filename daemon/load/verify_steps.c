#include "daemon/load/verify_steps.h"

#include "daemon/load/chunk_part.h"
#include "daemon/model/source_compare.h"
#include "daemon/model/source_look.h"
#include "proto/min.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Two values are equal if their bits are equal, or if both are NaN: processors make NaNs with different bits. */
static bool values_equal(enum form form, const uint8_t *a, const uint8_t *b)
{
    if (form == FORM_F32) {
        float x, y;
        memcpy(&x, a, sizeof(x));
        memcpy(&y, b, sizeof(y));
        return memcmp(a, b, sizeof(x)) == 0 || (isnan(x) && isnan(y));
    }
    uint16_t x, y;
    memcpy(&x, a, sizeof(x));
    memcpy(&y, b, sizeof(y));
    uint16_t infinity = form == FORM_F16 ? 0x7c00 : 0x7f80;
    return x == y || ((x & 0x7fff) > infinity && (y & 0x7fff) > infinity);
}

/* The first byte at which a piece differs, or -1. */
static int64_t piece_compare(const struct piece *piece, const uint8_t *expected, const uint8_t *actual)
{
    if (memcmp(expected, actual, piece->arena_bytes) == 0)
        return -1;
    size_t step = piece->form == FORM_NATIVE ? 1 : form_element_bytes(piece->form);
    for (uint64_t at = 0; at < piece->arena_bytes; at += step)
        if (step == 1 ? expected[at] != actual[at] : !values_equal(piece->form, expected + at, actual + at))
            return (int64_t)at;
    return -1;
}

/* Of the device, or of the copy in host memory if the model is cached. */
static int read_memory(const struct model *model, uint64_t offset, void *dst, size_t size, struct device_fault *fault)
{
    if (!model->cache)
        return device_arena_read(model->device, model->arena, offset, dst, size, fault);
    memcpy(dst, (const uint8_t *)model->cache + offset, size);
    return 0;
}

static void note(struct verify_job *job, size_t tensor, uint64_t byte)
{
    if (job->n_differences == VERIFY_TOLD_MAX)
        return;
    job->differences[job->n_differences].tensor = tensor;
    job->differences[job->n_differences++].byte = byte;
}

void verify_job_chunk(struct verify_job *job)
{
    const struct comparison *c = job->comparison;
    const struct chunk_part whole = {.first_piece = job->chunk->first_piece, .n_pieces = job->chunk->n_pieces};
    struct fill_count count = {0};
    const struct input input = {.source = c->source, .shard = job->chunk->shard};
    job->status = chunk_part_decode(&input, c->plan, job->chunk, &whole, job->expected, &count, &job->fault);
    if (job->status < 0) {
        job->of_file = true;
        return;
    }
    for (size_t i = job->chunk->first_piece; i < job->chunk->first_piece + job->chunk->n_pieces; i++) {
        const struct piece *piece = &c->plan->pieces[i];
        job->status = read_memory(c->model, piece->arena_offset, job->actual, piece->arena_bytes, &job->fault);
        if (job->status < 0)
            return;
        int64_t at = piece_compare(piece, job->expected + piece->slot_offset, job->actual);
        const uint32_t tensor = c->plan->piece_tensors[i];
        if (at >= 0)
            note(job, tensor, piece->arena_offset - c->plan->places[tensor].offset + (uint64_t)at);
    }
}

/* A tensor, and where it ends in the arena. */
struct ending {
    size_t tensor;
    uint64_t offset, end;
};

static int by_offset(const void *a, const void *b)
{
    const struct ending *x = a, *y = b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Compares the bytes between a tensor's end and `next` with zeros. */
static int compare_padding(struct verify_job *job, const struct ending *ending, uint64_t next)
{
    const struct model *model = job->comparison->model;
    for (uint64_t at = ending->end; at < next; at += VERIFY_BYTES) {
        const size_t n = (size_t)min_u64(next - at, VERIFY_BYTES);
        const int r = read_memory(model, at, job->actual, n, &job->fault);
        if (r < 0)
            return r;
        for (size_t i = 0; i < n; i++) {
            if (job->actual[i] != 0) {
                note(job, ending->tensor, at + i - ending->offset);
                return 0;
            }
        }
    }
    return 0;
}

void verify_job_padding(struct verify_job *job)
{
    const struct plan *plan = job->comparison->model->plan;
    const size_t n = plan->model->n_tensors;
    struct ending *endings = calloc(n ? n : 1, sizeof(*endings));
    if (!endings) {
        job->status = device_fault_set(&job->fault, -ENOMEM, "calloc", ENOMEM, strerror(ENOMEM));
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const struct tensor_place *place = &plan->places[i];
        endings[i] = (struct ending){i, place->offset, place->offset + place->bytes};
    }
    qsort(endings, n, sizeof(*endings), by_offset);
    const struct ending *last = endings; /* of those before, the one that ends last */
    for (size_t i = 0; i < n && job->status == 0; i++) {
        last = endings[i].end > last->end ? &endings[i] : last;
        job->status = compare_padding(job, last, i + 1 < n ? endings[i + 1].offset : plan->arena_bytes);
    }
    free(endings);
}

void verify_job_check(struct verify_job *job)
{
    struct comparison *c = job->comparison;
    job->status = source_check(c->source, &job->fault);
    job->of_file = job->status < 0;
    struct device_fault unused;
    const bool same_files = source_same_files(c->loaded, c->source);
    if (job->status == 0 && c->touched && same_files && source_reopen(c->loaded, &c->renewed, &unused) == 0 &&
        !source_equal(c->renewed, c->source)) {
        source_discard(c->renewed);
        c->renewed = NULL;
    }
    const bool takes = c->touched && c->moves && !same_files;
    c->takes = takes;
    c->replaced = source_replaced(takes ? c->source : c->loaded);
    c->deleted = takes ? source_deleted(c->source) : source_deleted(c->loaded);
}

static int compare_headers(struct verify_job *job)
{
    struct comparison *c = job->comparison;
    struct model_header *header;
    struct header_fault unused;
    size_t file;
    int r = source_read_headers(c->source, &header, &unused, &file);
    if (r < 0 && r != -EBADMSG)
        return device_fault_set(&job->fault, r, "pread", -r, strerror(-r));
    c->stale = r == -EBADMSG || !model_header_same(c->model->header, header);
    if (r == 0)
        model_header_free(header);
    return 0;
}

static void make_plan(struct verify_job *job)
{
    struct comparison *c = job->comparison;
    size_t tensor;
    struct layout_fault unused;
    const struct model *model = c->model;
    job->status = plan_new_arranged(model->header, model->forms, model->layout, &model->plan->heads,
                                    model->device->granule, &c->plan, &tensor, &unused);
    if (job->status == 0)
        job->status = plan_cut(c->plan, VERIFY_BYTES, VERIFY_BYTES, false);
    if (job->status < 0)
        device_fault_set(&job->fault, 0, "plan", -job->status, strerror(-job->status));
}

/* The header's tensors say in which file they are by its place in `loaded`. So the files are read in that order,
 * however they were given. */
static int put_in_order(struct comparison *c, struct device_fault *ret_fault)
{
    size_t order[SOURCE_FILES_MAX];
    if (!source_order(c->loaded, c->source, order))
        return 0;
    bool moved = false;
    for (size_t i = 0; i < c->source->n_files; i++)
        moved = moved || order[i] != i;
    struct source *ordered;
    int r = moved ? source_reorder(c->source, order, &ordered, ret_fault) : 0;
    if (r < 0 || !moved)
        return r;
    c->given = c->source;
    c->source = ordered;
    return 0;
}

void verify_job_open(struct verify_job *job)
{
    struct comparison *c = job->comparison;
    if (!c->source)
        job->status = source_reopen(c->loaded, &c->source, &job->fault);
    else
        job->status = put_in_order(c, &job->fault);
    if (job->status == 0) {
        c->touched = !source_same(c->loaded, c->source);
        c->stale = !source_same_sizes(c->loaded, c->source);
    }
    if (job->status == 0 && c->touched && !c->stale)
        job->status = compare_headers(job);
    job->of_file = job->status < 0;
    if (job->status == 0 && !c->stale)
        make_plan(job);
}
