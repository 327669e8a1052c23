/* daemon/model/plan.c on random models: every byte of every tensor is brought to its place exactly once, and no slot is
 * filled beyond its end. */
#include "daemon/model/plan.h"
#include "kernels/dequant.h"

#include <errno.h>
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define ROUNDS      400
#define TENSORS_MAX 40
#define PAGE        4096u

static uint64_t below(uint64_t n)
{
    return ((uint64_t)random() << 31 ^ (uint64_t)random()) % n;
}

/* Now and then one that nothing decodes, or that nobody knows the size of. */
static const struct tensor_type *random_type(void)
{
    static const struct tensor_type foreign = {137, "type137", 1, 1, TYPE_FOREIGN};
    if (below(40) == 0)
        return &foreign;
    for (;;) {
        const struct tensor_type *type = tensor_type_find((uint32_t)below(64));
        if (type && (type->kind <= TYPE_QUANTISED || (type->kind == TYPE_INTERNAL && below(10) == 0)))
            return type;
    }
}

/* A model of up to three files, its tensors in no order, with gaps between them, and some that share their bytes. */
struct model {
    struct model_header header;
    struct header_tensor tensors[TENSORS_MAX];
    char names[TENSORS_MAX][24];
};

static void model_make(struct model *model)
{
    memset(model, 0, sizeof(*model));
    model->header.tensors = model->tensors;
    model->header.n_tensors = (size_t)below(TENSORS_MAX + 1);
    uint64_t ends[3] = {below(5000), below(5000), below(5000)};
    for (size_t i = 0; i < model->header.n_tensors; i++) {
        struct header_tensor *tensor = &model->tensors[i];
        snprintf(model->names[i], sizeof(model->names[i]), "t%zu", i);
        tensor->name = model->names[i];
        tensor->type = random_type();
        tensor->n_dims = (uint32_t)below(3);
        tensor->shard = (uint32_t)below(3);
        uint64_t blocks = below(5) == 0 ? 0 : below(4) == 0 ? below(20000) : 1 + below(300);
        tensor->elements = tensor->ne[0] = blocks * tensor->type->block_elements;
        for (size_t k = 1; k < HEADER_DIMS_MAX; k++)
            tensor->ne[k] = 1;
        tensor->bytes = blocks * tensor->type->block_bytes;
        uint64_t gap = below(8) == 0 ? below(1 << 20) : 0;
        tensor->offset = (ends[tensor->shard] + gap + 31) / 32 * 32;
        if (i > 0 && below(10) == 0) {
            tensor->shard = model->tensors[i - 1].shard;
            tensor->offset = model->tensors[i - 1].offset;
        }
        if (tensor->offset + tensor->bytes > ends[tensor->shard])
            ends[tensor->shard] = tensor->offset + tensor->bytes;
    }
    for (size_t i = 0; i + 1 < model->header.n_tensors; i++) {
        size_t j = i + (size_t)below(model->header.n_tensors - i);
        struct header_tensor swapped = model->tensors[i];
        model->tensors[i] = model->tensors[j];
        model->tensors[j] = swapped;
    }
}

/* What is one-dimensional and f32 in the file is not narrowed. */
static bool stays(const struct header_tensor *tensor, enum form form)
{
    return (form == FORM_F16 || form == FORM_BF16) && tensor->n_dims <= 1 && tensor->type->id == 0;
}

static bool decodable(const struct model *model, enum form form)
{
    for (size_t i = 0; i < model->header.n_tensors; i++) {
        const struct tensor_type *type = model->tensors[i].type;
        enum form into = form == FORM_AUTO ? type->kind == TYPE_QUANTISED ? FORM_F16 : FORM_NATIVE : form;
        if (stays(&model->tensors[i], form))
            continue;
        if (into != FORM_NATIVE && strcmp(type->name, form_name(into)) != 0 && !dequant_find(type->id, into))
            return false;
    }
    return true;
}

/* What the plan promises of the arena, computed anew. */
static void check_layout(const struct model *model, const struct plan *plan, enum form form, uint64_t granule)
{
    uint64_t end = 0, bytes_in_file = 0;
    for (size_t i = 0; i < model->header.n_tensors; i++) {
        const struct header_tensor *tensor = &model->tensors[i];
        const struct tensor_place *place = &plan->places[i];
        assert_int_equal(place->offset % PLAN_ALIGNMENT, 0);
        assert_true(place->offset >= end);
        assert_true(place->offset - end < PLAN_ALIGNMENT);
        uint64_t padding = 0;
        if (place->convert == FORM_NATIVE) {
            assert_int_equal(place->bytes, tensor->bytes);
            if (tensor->type->kind == TYPE_QUANTISED)
                for (uint64_t at = tensor->ne[0]; at % 512 != 0; at += tensor->type->block_elements)
                    padding += tensor->type->block_bytes;
        } else {
            assert_int_equal(place->bytes, tensor->elements * form_element_bytes(place->convert));
            assert_int_equal(place->form, place->convert);
            assert_false(stays(tensor, form));
            assert_true(place->convert == (form == FORM_AUTO ? FORM_F16 : form));
        }
        assert_int_equal(place->padding, padding);
        if (place->form != FORM_NATIVE)
            assert_int_equal(place->bytes, tensor->elements * form_element_bytes(place->form));
        end = place->offset + place->bytes + padding;
        bytes_in_file += tensor->bytes;
    }
    assert_int_equal(plan->model_bytes, bytes_in_file);
    assert_int_equal(plan->arena_bytes % granule, 0);
    assert_true(plan->arena_bytes >= end && plan->arena_bytes > 0);
    assert_true(plan->arena_bytes - end < granule || end == 0);
}

/* The pieces of a tensor, found by brute force, follow each other without gap or overlap, in the file and in the arena.
 */
static void check_tensor(const struct model *model, const struct plan *plan, size_t index)
{
    const struct header_tensor *tensor = &model->tensors[index];
    const struct tensor_place *place = &plan->places[index];
    uint64_t done = 0;
    while (done < tensor->bytes) {
        size_t found = 0;
        uint64_t next = 0;
        for (size_t i = 0; i < plan->n_pieces; i++) {
            if (plan->piece_tensors[i] != index || plan->piece_file_offsets[i] != tensor->offset + done)
                continue;
            const struct piece *piece = &plan->pieces[i];
            uint64_t bytes = plan_piece_file_bytes(plan, i);
            assert_true(bytes > 0 && bytes % tensor->type->block_bytes == 0);
            if (plan->verbatim) /* at the alignment that the tensor has */
                assert_int_equal(piece->slot_offset % 32, tensor->offset % 32);
            assert_int_equal(piece->arena_offset - place->offset,
                             done / tensor->type->block_bytes *
                                 (place->bytes / (tensor->bytes / tensor->type->block_bytes)));
            assert_int_equal(piece->arena_bytes, (unsigned __int128)bytes * place->bytes / tensor->bytes);
            assert_ptr_equal(piece->type, tensor->type);
            assert_int_equal(piece->form, place->convert);
            next = bytes;
            found++;
        }
        assert_int_equal(found, 1);
        done += next;
    }
    assert_int_equal(done, tensor->bytes);
    uint64_t in_all = 0;
    for (size_t i = 0; i < plan->n_pieces; i++)
        if (plan->piece_tensors[i] == index)
            in_all += plan_piece_file_bytes(plan, i);
    assert_int_equal(in_all, tensor->bytes);
}

static void check_chunks(const struct model *model, const struct plan *plan, size_t slot_bytes)
{
    size_t next_piece = 0;
    uint64_t progress = 0;
    for (size_t c = 0; c < plan->n_chunks; c++) {
        const struct chunk *chunk = &plan->chunks[c];
        assert_int_equal(chunk->first_piece, next_piece);
        assert_true(chunk->n_pieces > 0);
        assert_int_equal(chunk->file_offset % PAGE, 0);
        if (plan->verbatim)
            assert_true(chunk->file_bytes <= slot_bytes);
        uint64_t used = 0, model_bytes = 0, file_end = 0;
        for (size_t i = next_piece; i < next_piece + chunk->n_pieces; i++) {
            const struct piece *piece = &plan->pieces[i];
            uint64_t at = plan->piece_file_offsets[i], bytes = plan_piece_file_bytes(plan, i);
            assert_int_equal(model->tensors[plan->piece_tensors[i]].shard, chunk->shard);
            assert_true(i == next_piece || at >= plan->piece_file_offsets[i - 1]);
            assert_true(piece->slot_offset + piece->slot_bytes <= slot_bytes);
            assert_true(piece->arena_offset + piece->arena_bytes <= plan->arena_bytes);
            if (plan->verbatim) {
                assert_true(i == next_piece || at >= file_end); /* no byte is in two pieces of a slot */
                assert_int_equal(piece->slot_offset, at - chunk->file_offset);
                assert_int_equal(piece->slot_bytes, bytes);
            } else {
                assert_int_equal(piece->slot_bytes, piece->arena_bytes);
                assert_true(piece->slot_offset >= used); /* nothing in the slot is written twice */
                assert_int_equal(piece->slot_offset % 32, 0);
                used = piece->slot_offset + piece->slot_bytes;
            }
            model_bytes += bytes;
            file_end = at + bytes > file_end ? at + bytes : file_end;
        }
        assert_int_equal(chunk->model_bytes, model_bytes);
        assert_int_equal(chunk->file_offset + chunk->file_bytes, file_end);
        next_piece += chunk->n_pieces;
        progress += model_bytes;
    }
    assert_int_equal(next_piece, plan->n_pieces);
    assert_int_equal(progress, plan->model_bytes);
}

static uint64_t work_of(const struct plan *plan, size_t piece)
{
    const uint64_t read = plan_piece_file_bytes(plan, piece), made = plan->pieces[piece].slot_bytes;
    return read > made ? read : made;
}

/* No part is longer than an equal share and a piece. */
static void check_shares(const struct plan *plan, const struct chunk *chunk, const struct chunk_part *parts, size_t n,
                         size_t part_bytes)
{
    uint64_t work = 0, longest = 0;
    for (size_t i = chunk->first_piece; i < chunk->first_piece + chunk->n_pieces; i++) {
        work += work_of(plan, i);
        longest = work_of(plan, i) > longest ? work_of(plan, i) : longest;
    }
    const uint64_t share = work / CHUNK_PARTS_MAX > part_bytes ? work / CHUNK_PARTS_MAX : part_bytes;
    for (size_t i = 0; i < n; i++) {
        uint64_t part = 0;
        for (size_t k = 0; k < parts[i].n_pieces; k++)
            part += work_of(plan, parts[i].first_piece + k);
        assert_true(part <= share + longest);
    }
}

/* Parts follow one another and are the whole chunk. */
static void check_parts(const struct plan *plan, size_t part_bytes)
{
    for (size_t c = 0; c < plan->n_chunks; c++) {
        const struct chunk *chunk = &plan->chunks[c];
        struct chunk_part parts[CHUNK_PARTS_MAX];
        size_t n = plan_divide(plan, chunk, part_bytes, parts);
        assert_true(n >= 1 && n <= CHUNK_PARTS_MAX);
        uint64_t offset = 0;
        size_t piece = chunk->first_piece;
        for (size_t i = 0; i < n; i++) {
            const struct chunk_part *part = &parts[i];
            if (!plan->verbatim) {
                assert_int_equal(part->first_piece, piece);
                assert_true(part->n_pieces > 0);
                piece += part->n_pieces;
                continue;
            }
            assert_int_equal(part->offset, offset);
            assert_true(part->bytes > 0);
            assert_true(part->bytes < part_bytes + PAGE ||
                        part->bytes < chunk->file_bytes / CHUNK_PARTS_MAX + PAGE + 1);
            offset += part->bytes;
        }
        if (!plan->verbatim)
            check_shares(plan, chunk, parts, n, part_bytes);
        assert_int_equal(offset, plan->verbatim ? chunk->file_bytes : 0);
        assert_int_equal(piece, chunk->first_piece + (plan->verbatim ? 0 : chunk->n_pieces));
    }
}

/* Pieces that the CPU makes are small enough to be shared out. */
static void check_piece_sizes(const struct plan *plan, size_t part_bytes)
{
    for (size_t i = 0; i < plan->n_pieces && !plan->verbatim; i++) {
        const struct piece *piece = &plan->pieces[i];
        size_t block = piece->form == FORM_NATIVE ? piece->type->block_bytes
                                                  : piece->type->block_elements * form_element_bytes(piece->form);
        assert_true(piece->slot_bytes <= part_bytes || piece->slot_bytes == block);
    }
}

/* Every byte of the arena is a tensor's or a gap's. */
static void check_gaps(const struct model *model, const struct plan *plan)
{
    struct extent *gaps;
    size_t n;
    assert_int_equal(plan_gaps(plan, &gaps, &n), 0);
    uint64_t at = 0;
    size_t gap = 0, tensor = 0;
    for (;;) {
        if (gap < n && gaps[gap].offset <= at) {
            const uint64_t end = gaps[gap].offset + gaps[gap].bytes;
            at = end > at ? end : at;
            gap++;
        } else if (tensor < model->header.n_tensors && plan->places[tensor].offset <= at) {
            const uint64_t end = plan->places[tensor].offset + plan->places[tensor].bytes;
            at = end > at ? end : at;
            tensor++;
        } else
            break;
    }
    assert_int_equal(at, plan->arena_bytes);
    assert_int_equal(gap, n);
    free(gaps);
}

/* Rows that engines' kernels read beyond: as many zero bytes as the blocks that the row lacks take. */
static void padding_of_rows(void **state)
{
    (void)state;
    static const struct {
        uint32_t type;
        uint64_t ne0, ne1;
        enum form form;
        uint64_t padding;
    } cases[] = {
        {2, 512, 3, FORM_NATIVE, 0},             /* q4_0 */
        {2, 4096, 1, FORM_NATIVE, 0},            /* whole rows */
        {2, 32, 2, FORM_NATIVE, 270},            /* 480 elements are 15 blocks of 18 */
        {2, 640, 1, FORM_NATIVE, 216},           /* 384 are 12 */
        {12, 256, 1, FORM_NATIVE, 144},          /* q4_K: one block */
        {2, 11008, 4096, FORM_NATIVE, 144},      /* a 7B model's ffn_down: half of 512 */
        {8, 11008 - 32, 4096, FORM_NATIVE, 306}, /* q8_0, and one block less */
        {2, 32, 2, FORM_F16, 0},                 /* decoded */
        {0, 32, 2, FORM_NATIVE, 0},              /* f32 */
        {15, 256, 1, FORM_NATIVE, 0},            /* q8_K, which no file's tensor is multiplied as */
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct header_tensor tensors[2] = {0};
        for (size_t k = 0; k < 2; k++) {
            struct header_tensor *tensor = &tensors[k];
            tensor->type = tensor_type_find(cases[i].type);
            tensor->n_dims = 2;
            tensor->ne[0] = cases[i].ne0;
            tensor->ne[1] = cases[i].ne1;
            tensor->elements = cases[i].ne0 * cases[i].ne1;
            tensor->bytes = tensor->elements / tensor->type->block_elements * tensor->type->block_bytes;
        }
        const struct model_header header = {.n_tensors = 2, .tensors = tensors};
        struct plan *plan;
        size_t tensor;
        assert_int_equal(plan_new(&header, forms_plain(cases[i].form), PLAN_ALIGNMENT, &plan, &tensor), 0);
        for (size_t k = 0; k < 2; k++) {
            const uint64_t begin = plan->places[k].offset + plan->places[k].bytes;
            const uint64_t end = begin + cases[i].padding;
            assert_int_equal(plan->places[k].padding, cases[i].padding);
            assert_true(end <= (k == 0 ? plan->places[1].offset : plan->arena_bytes));
        }
        plan_free(plan);
    }
}

/* The last tensor's padding is the arena's, too: here it needs a granule of its own. */
static void padding_at_the_end(void **state)
{
    (void)state;
    struct header_tensor tensor = {.type = tensor_type_find(12), .n_dims = 2, .ne = {256, PAGE / 16}};
    tensor.elements = tensor.ne[0] * tensor.ne[1];
    tensor.bytes = tensor.elements / 256 * 144; /* nine pages */
    const struct model_header header = {.n_tensors = 1, .tensors = &tensor};
    struct plan *plan;
    size_t index;
    assert_int_equal(plan_new(&header, forms_plain(FORM_NATIVE), PAGE, &plan, &index), 0);
    assert_int_equal(plan->arena_bytes, 10 * PAGE);
    struct extent *gaps;
    size_t n;
    assert_int_equal(plan_gaps(plan, &gaps, &n), 0);
    assert_int_equal(n, 1);
    assert_int_equal(gaps[0].offset, 9 * PAGE);
    assert_int_equal(gaps[0].bytes, PAGE);
    free(gaps);
    plan_free(plan);
}

/* What the ledger is told of a plan is what was taken for it. */
static void memory(void **state)
{
    (void)state;
    enum { N = 1500 };
    struct header_tensor *tensors = calloc(N, sizeof(*tensors));
    assert_non_null(tensors);
    for (size_t i = 0; i < N; i++)
        tensors[i] = (struct header_tensor){
            .type = tensor_type_find(0), .n_dims = 1, .ne = {8}, .elements = 8, .bytes = 32, .offset = i * PAGE * 4};
    const struct model_header header = {.n_tensors = N, .tensors = tensors};
    for (int verbatim = 0; verbatim < 2; verbatim++) {
        struct plan *plan;
        size_t index;
        assert_int_equal(plan_new(&header, forms_plain(FORM_NATIVE), PAGE, &plan, &index), 0);
        assert_int_equal(plan_cut(plan, PAGE * 4, PAGE * 4, verbatim), 0);
        const size_t taken = malloc_usable_size(plan->places) + malloc_usable_size(plan->chunks) +
                             malloc_usable_size(plan->pieces) + malloc_usable_size(plan->piece_file_offsets) +
                             malloc_usable_size(plan->piece_tensors);
        assert_in_range(plan_memory(plan), taken - PAGE / 4, taken + PAGE / 4);
        plan_free(plan);
    }
    free(tensors);
}

/* Small tensors with padding between them are cleared together, large ones are left alone. */
static void gaps_of_a_model(void **state)
{
    (void)state;
    struct header_tensor tensors[4] = {0};
    static const uint64_t elements[] = {1, 1, (4u << 20) + 1, 1};
    uint64_t offset = 0;
    for (size_t i = 0; i < 4; i++) {
        tensors[i] =
            (struct header_tensor){.type = tensor_type_find(0), .elements = elements[i], .bytes = elements[i] * 4};
        tensors[i].offset = offset;
        offset += (tensors[i].bytes + 31) / 32 * 32;
    }
    const struct model_header header = {.n_tensors = 4, .tensors = tensors};
    struct plan *plan;
    size_t tensor;
    assert_int_equal(plan_new(&header, forms_plain(FORM_NATIVE), PAGE, &plan, &tensor), 0);
    struct extent *gaps;
    size_t n;
    assert_int_equal(plan_gaps(plan, &gaps, &n), 0);
    assert_int_equal(n, 2);
    assert_int_equal(gaps[0].offset, 4);
    assert_int_equal(gaps[0].offset + gaps[0].bytes, plan->places[2].offset);
    assert_int_equal(gaps[1].offset, plan->places[2].offset + plan->places[2].bytes);
    assert_int_equal(gaps[1].offset + gaps[1].bytes, plan->arena_bytes);
    free(gaps);
    plan_free(plan);
}

static void random_models(void **state)
{
    (void)state;
    srandom(1);
    unsigned cut = 0, refused = 0, verbatim = 0;
    for (int round = 0; round < ROUNDS; round++) {
        struct model model;
        model_make(&model);
        enum form form = (enum form)below(FORM_COUNT + 1);
        uint64_t granule = (uint64_t)PLAN_ALIGNMENT << below(14);
        struct plan *plan = NULL;
        size_t tensor = SIZE_MAX;
        int r = plan_new(&model.header, forms_plain(form), granule, &plan, &tensor);
        if (!decodable(&model, form)) {
            assert_int_equal(r, -ENOTSUP);
            assert_true(tensor < model.header.n_tensors);
            assert_null(plan);
            refused++;
            continue;
        }
        assert_int_equal(r, 0);
        check_layout(&model, plan, form, granule);
        size_t slot_bytes = PAGE * (4 + (size_t)below(60));
        size_t part_bytes = random() & 1 ? slot_bytes : PAGE * (1 + (size_t)below(4));
        assert_int_equal(plan_cut(plan, slot_bytes, part_bytes, random() & 1), 0);
        check_chunks(&model, plan, slot_bytes);
        check_parts(plan, part_bytes);
        check_piece_sizes(plan, part_bytes);
        check_gaps(&model, plan);
        for (size_t i = 0; i < model.header.n_tensors; i++)
            check_tensor(&model, plan, i);
        cut++;
        verbatim += plan->verbatim;
        plan_free(plan);
    }
    assert_true(cut > ROUNDS / 3 && refused > 0);
    assert_true(verbatim > cut / 4 && verbatim < cut - cut / 4);
}

static void linear(void **state)
{
    (void)state;
    srandom(2);
    for (int round = 0; round < 200; round++) {
        uint64_t bytes = 1 + below(1 << 22);
        size_t slot_bytes = PAGE * (1 + (size_t)below(100));
        struct plan *plan = NULL;
        assert_int_equal(plan_linear(bytes, slot_bytes, &plan), 0);
        uint64_t at = 0;
        for (size_t i = 0; i < plan->n_chunks; i++) {
            const struct chunk *chunk = &plan->chunks[i];
            const struct piece *piece = &plan->pieces[chunk->first_piece];
            assert_int_equal(chunk->n_pieces, 1);
            assert_int_equal(chunk->file_offset, at);
            assert_int_equal(piece->arena_offset, at);
            assert_int_equal(piece->slot_offset, 0);
            assert_int_equal(piece->form, FORM_NATIVE);
            assert_true(piece->slot_bytes <= slot_bytes);
            assert_int_equal(piece->slot_bytes, piece->arena_bytes);
            assert_int_equal(piece->slot_bytes, chunk->file_bytes);
            at += piece->arena_bytes;
        }
        assert_int_equal(at, bytes);
        assert_int_equal(plan->arena_bytes, bytes);
        plan_free(plan);
    }
}

/* One tensor of so many elements of i8; sizes come as a file may claim them, and the plan has no file to hold them
 * against. */
static int plan_of(uint64_t elements, size_t n, enum form form)
{
    struct model model = {.header = {.tensors = model.tensors, .n_tensors = n}};
    for (size_t i = 0; i < n; i++)
        model.tensors[i] = (struct header_tensor){
            .name = "t",
            .type = tensor_type_find(24), /* i8 */
            .ne = {elements, 1, 1, 1},
            .elements = elements,
            .bytes = elements,
        };
    struct plan *plan = NULL;
    size_t tensor;
    int r = plan_new(&model.header, forms_plain(form), PLAN_ALIGNMENT, &plan, &tensor);
    plan_free(plan);
    return r;
}

static void sizes_at_the_edge(void **state)
{
    (void)state;
    assert_string_equal(tensor_type_find(24)->name, "i8");
    assert_int_equal(plan_of(PLAN_ARENA_MAX - PLAN_ALIGNMENT - 1, 1, FORM_NATIVE), 0);
    assert_int_equal(plan_of(PLAN_ARENA_MAX, 1, FORM_NATIVE), -EOVERFLOW);
    assert_int_equal(plan_of(PLAN_ARENA_MAX / 2, 2, FORM_NATIVE), -EOVERFLOW);
    assert_int_equal(plan_of(UINT64_MAX, 1, FORM_NATIVE), -EOVERFLOW);
    assert_int_equal(plan_of(UINT64_MAX - 1, 2, FORM_NATIVE), -EOVERFLOW);
    assert_int_equal(plan_of(0, 3, FORM_NATIVE), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_models),   cmocka_unit_test(gaps_of_a_model),
        cmocka_unit_test(linear),          cmocka_unit_test(sizes_at_the_edge),
        cmocka_unit_test(padding_of_rows), cmocka_unit_test(padding_at_the_end),
        cmocka_unit_test(memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
