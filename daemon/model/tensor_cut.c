#include "daemon/model/tensor_cut.h"

#include "daemon/model/layout_names.h"
#include "proto/min.h"

#include <errno.h>
#include <string.h>

static bool text_is(const struct header_string *string, const char *text)
{
    return string->size == strlen(text) && memcmp(string->bytes, text, string->size) == 0;
}

bool tensors_permuted(const struct model_header *model)
{
    struct header_string architecture;
    return strcmp(model->format, "gguf") == 0 &&
           header_kv_string(model_header_find(model, "general.architecture"), &architecture) == 0 &&
           (text_is(&architecture, "llama") || text_is(&architecture, "mistral"));
}

/* --- one tensor --- */

/* A tensor as a matrix: along its first dimension, and all others. */
struct matrix {
    uint64_t rows;
    uint64_t row; /* blocks */
};

/* Takes a tensor for a matrix, of which whole rows are taken. */
static int matrix_of(const struct cutting *c, const struct header_tensor *tensor, struct matrix *ret)
{
    const struct tensor_type *type = tensor->type;
    if (type->kind == TYPE_FOREIGN || type->kind == TYPE_REMOVED)
        return layout_refuse(c->fault, tensor->name, NULL, "the size of the tensor's type is not known");
    if (tensor->n_dims == 0)
        return layout_refuse(c->fault, tensor->name, NULL, "the tensor has no rows");
    uint64_t elements = 1;
    for (uint32_t i = 0; i + 1 < tensor->n_dims; i++)
        if (__builtin_mul_overflow(elements, tensor->ne[i], &elements))
            return layout_refuse(c->fault, tensor->name, NULL, "the tensor is too large");
    if (elements % type->block_elements != 0)
        return layout_refuse(c->fault, tensor->name, NULL, "a row of the tensor is not whole blocks of %s", type->name);
    *ret = (struct matrix){tensor->ne[tensor->n_dims - 1], elements / type->block_elements};
    return 0;
}

/* Sets what memory gets of the tensor: the rows of `ranges`, and of each row `row` blocks from `first` on; and after
 * them `zeros` rows of zeros. */
static int take(const struct cutting *c, struct header_tensor *tensor, struct gather *gather,
                const struct matrix *matrix, const struct gather_range *ranges, size_t n_ranges, uint64_t first,
                uint64_t row, uint64_t zeros)
{
    const struct tensor_type *type = tensor->type;
    uint64_t rows = 0, all, blocks;
    for (size_t i = 0; i < n_ranges; i++)
        rows += ranges[i].rows;
    if (__builtin_add_overflow(rows, zeros, &all) || __builtin_mul_overflow(all, row, &blocks) ||
        __builtin_mul_overflow(blocks, type->block_bytes, &tensor->bytes) ||
        __builtin_mul_overflow(blocks, type->block_elements, &tensor->elements))
        return layout_refuse(c->fault, tensor->name, NULL, "the tensor is too large");
    tensor->ne[tensor->n_dims - 1] = all;
    if (row != matrix->row)
        tensor->ne[0] = row * type->block_elements;
    if (n_ranges == 1 && ranges[0].heads == 0 && row == matrix->row && zeros == 0) {
        tensor->offset += ranges[0].first * row * type->block_bytes;
        return 0;
    }
    if (blocks == 0)
        return 0;
    *gather = (struct gather){
        .blocks = rows * row, .file_row = matrix->row, .row_first = first, .row = row, .n_ranges = n_ranges};
    memcpy(gather->ranges, ranges, n_ranges * sizeof(*ranges));
    return 0;
}

static int refuse_division(const struct cutting *c, const struct header_tensor *tensor, uint64_t n, const char *what)
{
    return layout_refuse(c->fault, tensor->name, NULL, "%llu %s are no multiple of %u", (unsigned long long)n, what,
                         c->layout->parts);
}

/* The rows of this part, of a tensor that is `n` tensors with equally many rows, one behind the other. heads: see
 * struct gather_range. */
static int take_rows(const struct cutting *c, struct header_tensor *tensor, struct gather *gather, size_t n,
                     uint64_t heads)
{
    const uint64_t parts = c->layout->parts, rank = c->layout->rank;
    struct gather_range ranges[GATHER_RANGES_MAX] = {0};
    struct matrix matrix = {0};
    int r = matrix_of(c, tensor, &matrix);
    if (r < 0)
        return r;
    if (matrix.rows % (n * parts) != 0)
        return refuse_division(c, tensor, matrix.rows, "rows");
    if (heads > 0 && (heads % parts != 0 || matrix.rows % (2 * heads) != 0))
        return layout_refuse(c->fault, tensor->name, NULL, "%llu rows cannot be those of %llu heads in %u parts",
                             (unsigned long long)matrix.rows, (unsigned long long)heads, c->layout->parts);
    const uint64_t each = matrix.rows / n, part = each / parts;
    for (size_t i = 0; i < n; i++)
        ranges[i] = (struct gather_range){i * each + rank * part, part, heads / parts};
    return take(c, tensor, gather, &matrix, ranges, n, 0, matrix.row, 0);
}

static int take_columns(const struct cutting *c, struct header_tensor *tensor, struct gather *gather)
{
    const uint64_t parts = c->layout->parts, rank = c->layout->rank;
    struct matrix matrix = {0};
    int r = matrix_of(c, tensor, &matrix);
    if (r < 0)
        return r;
    if (tensor->n_dims != 2)
        return layout_refuse(c->fault, tensor->name, NULL, "the tensor has no columns: it has not two dimensions");
    if (tensor->ne[0] % parts != 0)
        return refuse_division(c, tensor, tensor->ne[0], "columns");
    if (matrix.row % parts != 0)
        return layout_refuse(c->fault, tensor->name, NULL, "%llu columns do not end between blocks of %s",
                             (unsigned long long)(tensor->ne[0] / parts), tensor->type->name);
    const struct gather_range all = {0, matrix.rows, 0};
    const uint64_t part = matrix.row / parts;
    return take(c, tensor, gather, &matrix, &all, 1, rank * part, part, 0);
}

/* The rows of this part's heads, of those of a tensor from `first` on. */
static int head_rows(const struct cutting *c, const struct header_tensor *tensor, uint64_t first, uint64_t heads,
                     uint64_t head, bool shared, struct gather_range *ret)
{
    const uint64_t parts = c->layout->parts, rank = c->layout->rank;
    if (heads % parts == 0)
        *ret = (struct gather_range){first + heads / parts * head * rank, heads / parts * head, 0};
    else if (shared && parts % heads == 0)
        *ret = (struct gather_range){first + rank / (parts / heads) * head, head, 0};
    else
        return refuse_division(c, tensor, heads, shared ? "heads of k and v" : "heads");
    return 0;
}

/* q, k or v alone, or all of them in one tensor. */
static int take_heads(const struct cutting *c, struct header_tensor *tensor, struct gather *gather, enum name_part part)
{
    const uint64_t heads = c->heads->heads, kv = c->heads->kv_heads;
    const uint64_t all = part == PART_Q ? heads : part == PART_KV ? kv : heads + 2 * kv;
    struct gather_range ranges[GATHER_RANGES_MAX] = {0};
    struct matrix matrix = {0};
    size_t n = 0;
    if (heads == 0 || kv == 0)
        return layout_refuse(c->fault, tensor->name, NULL,
                             "how many attention heads the model has is not known: tp has no heads, and there is no "
                             "config.json");
    int r = matrix_of(c, tensor, &matrix);
    if (r < 0)
        return r;
    if (matrix.rows % all != 0)
        return layout_refuse(c->fault, tensor->name, NULL, "%llu rows cannot be those of %llu heads",
                             (unsigned long long)matrix.rows, (unsigned long long)all);
    const uint64_t head = matrix.rows / all;
    if (part != PART_KV)
        r = head_rows(c, tensor, 0, heads, head, false, &ranges[n++]);
    if (part == PART_KV && r == 0)
        r = head_rows(c, tensor, 0, kv, head, true, &ranges[n++]);
    for (size_t i = 0; i < 2 && part == PART_QKV && r == 0; i++)
        r = head_rows(c, tensor, (heads + i * kv) * head, kv, head, true, &ranges[n++]);
    return r < 0 ? r : take(c, tensor, gather, &matrix, ranges, n, 0, matrix.row, 0);
}

/* Rows of the vocabulary. What it was padded with are zeros at the end of the last parts. */
static int take_vocabulary(const struct cutting *c, struct header_tensor *tensor, struct gather *gather)
{
    const uint64_t parts = c->layout->parts, rank = c->layout->rank;
    struct matrix matrix = {0};
    int r = matrix_of(c, tensor, &matrix);
    if (r < 0)
        return r;
    const uint64_t beyond = matrix.rows % VOCABULARY_PADDING;
    const uint64_t padded = matrix.rows + (beyond > 0 ? VOCABULARY_PADDING - beyond : 0);
    if (padded < matrix.rows || padded % parts != 0)
        return refuse_division(c, tensor, padded, "padded rows");
    const uint64_t part = padded / parts, first = min_u64(rank * part, matrix.rows);
    const uint64_t rows = min_u64(part, matrix.rows - first);
    const struct gather_range range = {first, rows, 0};
    return take(c, tensor, gather, &matrix, &range, 1, 0, matrix.row, part - rows);
}

static int cut_asked(const struct cutting *c, const struct layout_group *asked, struct header_tensor *tensor,
                     struct gather *gather)
{
    const bool cuts = c->layout->parts > 1;
    if (cuts && asked->cut == LAYOUT_COLUMNS)
        return asked->heads == 0 ? take_columns(c, tensor, gather)
                                 : layout_refuse(c->fault, tensor->name, asked->name,
                                                 "heads and columns in one group are not possible");
    if (cuts && asked->cut == LAYOUT_ROWS)
        return take_rows(c, tensor, gather, 1, asked->heads);
    const struct layout whole = {.parts = 1};
    const struct cutting one = {.layout = &whole, .heads = c->heads, .fault = c->fault};
    return asked->heads > 0 ? take_rows(&one, tensor, gather, 1, asked->heads) : 0;
}

static int cut_vllm(const struct cutting *c, struct header_tensor *tensor, struct gather *gather)
{
    const enum name_part part = tensor->n_dims > 2 ? PART_UNKNOWN : name_rule_vllm(tensor->name).part;
    switch (part) {
    case PART_ROWS:
        return take_rows(c, tensor, gather, 1, 0);
    case PART_PAIR:
        return take_rows(c, tensor, gather, 2, 0);
    case PART_COLUMNS:
        return take_columns(c, tensor, gather);
    case PART_Q:
        return take_heads(c, tensor, gather, PART_Q);
    case PART_KV:
        return take_heads(c, tensor, gather, PART_KV);
    case PART_QKV:
        return take_heads(c, tensor, gather, PART_QKV);
    case PART_VOCABULARY:
        return take_vocabulary(c, tensor, gather);
    case PART_UNKNOWN:
        if (tensor->elements > 1)
            return layout_refuse(c->fault, tensor->name, NULL, "no rule says which part of this tensor a process has");
        break;
    case PART_WHOLE:
        break;
    }
    return 0;
}

static int cut_hf(const struct cutting *c, struct header_tensor *tensor, struct gather *gather)
{
    const char which = c->permuted ? name_of_attention(tensor->name) : 0;
    const uint64_t heads = which == 'q' ? c->heads->heads : c->heads->kv_heads;
    if (which && heads == 0)
        return layout_refuse(c->fault, tensor->name, NULL,
                             "how many attention heads the model has does not stand in its metadata");
    return which ? take_rows(c, tensor, gather, 1, heads) : 0;
}

int tensor_cut(const struct cutting *cutting, const struct layout_group *asked, struct header_tensor *tensor,
               struct gather *gather)
{
    int r = 0;
    if (asked)
        r = cut_asked(cutting, asked, tensor, gather);
    else if (cutting->layout->kind == LAYOUT_VLLM && cutting->layout->parts > 1)
        r = cut_vllm(cutting, tensor, gather);
    else if (cutting->layout->kind == LAYOUT_HF)
        r = cut_hf(cutting, tensor, gather);
    if (r < 0 && asked && !cutting->fault->group)
        cutting->fault->group = asked->name;
    return r;
}

/* --- reading --- */

/* Where a row of a range stands in the file. Of each head, memory has the first rows of all pairs and then the
 * second ones. */
static uint64_t file_row(const struct gather_range *range, uint64_t row)
{
    if (range->heads == 0)
        return range->first + row;
    const uint64_t head = range->rows / range->heads, half = head / 2, in_head = row % head;
    return range->first + row - in_head + in_head % half * 2 + in_head / half;
}

uint64_t gather_run(const struct gather *gather, uint64_t at, uint64_t most, uint64_t *ret_file)
{
    uint64_t row = at / gather->row;
    const uint64_t column = at % gather->row;
    const struct gather_range *range = gather->ranges;
    while (row >= range->rows)
        row -= range++->rows;
    *ret_file = file_row(range, row) * gather->file_row + gather->row_first + column;
    const bool whole = gather->row == gather->file_row && range->heads == 0;
    const uint64_t rows = whole ? range->rows - row : 1;
    return min_u64(most, rows * gather->row - column);
}
