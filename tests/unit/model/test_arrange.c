/* daemon/model/arrange.c and what it is made of: random layouts of random models, held against a plain computation; and
 * the rules that go by names. */
#include "daemon/model/arrange.h"
#include "daemon/model/layout_names.h"
#include "daemon/model/plan.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define ROUNDS      600
#define TENSORS_MAX 24
#define PAGE        4096u

static uint64_t below(uint64_t n)
{
    return ((uint64_t)random() << 31 ^ (uint64_t)random()) % n;
}

/* --- a random model and a random layout --- */

/* What the layout says of a tensor, as the test chose it. */
struct asked {
    bool any;
    unsigned heads; /* 0: in the file's order */
    const char *cut;
};

struct model {
    struct model_header header;
    struct header_tensor tensors[TENSORS_MAX];
    char names[TENSORS_MAX][48];
    struct asked asked[TENSORS_MAX];
    unsigned parts, rank;
};

/* Tensors of three kinds: those of one kind can be joined. */
static void model_make(struct model *model)
{
    static const uint32_t types[] = {0, 1, 2, 8, 30}; /* f32, f16, q4_0, q8_0, bf16 */
    uint32_t kind_types[3];
    uint64_t kind_blocks[3], end = below(PAGE);
    *model = (struct model){.parts = 1 + (unsigned)below(3)};
    model->rank = (unsigned)below(model->parts);
    for (size_t i = 0; i < 3; i++) {
        kind_types[i] = types[below(5)];
        kind_blocks[i] = 6 * (1 + below(5));
    }
    model->header.format = "gguf";
    model->header.tensors = model->tensors;
    model->header.n_tensors = 1 + below(TENSORS_MAX);
    for (size_t i = 0; i < model->header.n_tensors; i++) {
        struct header_tensor *tensor = &model->tensors[i];
        const size_t kind = below(3);
        snprintf(model->names[i], sizeof(model->names[i]), "t%zu.%zu", kind, i);
        tensor->name = model->names[i];
        tensor->type = tensor_type_find(kind_types[kind]);
        tensor->n_dims = 2;
        for (size_t k = 0; k < HEADER_DIMS_MAX; k++)
            tensor->ne[k] = 1;
        tensor->ne[0] = kind_blocks[kind] * tensor->type->block_elements;
        tensor->ne[1] = below(8) == 0 ? 0 : 24 * (1 + below(below(6) == 0 ? 40 : 4));
        tensor->elements = tensor->ne[0] * tensor->ne[1];
        tensor->bytes = tensor->elements / tensor->type->block_elements * tensor->type->block_bytes;
        tensor->shard = (uint32_t)below(2);
        tensor->offset = (end + below(3) * 32 + 31) / 32 * 32;
        end = tensor->offset + tensor->bytes;
    }
}

/* Groups of some of the tensors that can be joined. */
static const struct layout *layout_make(struct model *model)
{
    static const char *const cuts[] = {"whole", "rows", "columns"};
    cJSON *groups = cJSON_CreateArray(), *tp = cJSON_CreateObject();
    for (size_t i = 0; i < model->header.n_tensors; i++) {
        if (model->asked[i].any || below(3) == 0)
            continue;
        char name[32];
        snprintf(name, sizeof(name), "group%zu", i);
        cJSON *group = cJSON_CreateObject();
        const char *cut = cuts[below(3)];
        const unsigned heads = strcmp(cut, "columns") != 0 && below(2) == 0 ? 6 : 0;
        cJSON_AddStringToObject(group, "name", name);
        cJSON *members = cJSON_AddArrayToObject(group, "members");
        for (size_t k = i; k < model->header.n_tensors; k++) {
            if (model->asked[k].any || model->names[k][1] != model->names[i][1] || (k > i && below(2) == 0))
                continue;
            if (below(2) == 0)
                cJSON_AddItemToArray(members, cJSON_CreateString(model->names[k]));
            else
                cJSON_InsertItemInArray(members, 0, cJSON_CreateString(model->names[k]));
            model->asked[k] = (struct asked){true, heads, cut};
        }
        cJSON_AddStringToObject(group, "cut", cut);
        if (heads > 0)
            cJSON_AddNumberToObject(group, "heads", heads);
        cJSON_AddItemToArray(groups, group);
    }
    cJSON_AddNumberToObject(tp, "rank", model->rank);
    cJSON_AddNumberToObject(tp, "size", model->parts);
    const struct layout *layout = NULL;
    const char *wrong;
    assert_int_equal(layout_new(cJSON_GetArraySize(groups) == 0 ? "hf" : NULL, groups,
                                cJSON_GetArraySize(groups) == 0 ? NULL : tp, &layout, &wrong),
                     0);
    cJSON_Delete(groups);
    cJSON_Delete(tp);
    return layout;
}

/* --- what has to come of it, computed plainly --- */

static uint64_t rows_of(const struct model *model, size_t i)
{
    const bool cut = model->asked[i].any && strcmp(model->asked[i].cut, "rows") == 0;
    return model->tensors[i].ne[1] / (cut ? model->parts : 1);
}

static uint64_t columns_of(const struct model *model, size_t i)
{
    const bool cut = model->asked[i].any && strcmp(model->asked[i].cut, "columns") == 0;
    return model->tensors[i].ne[0] / model->tensors[i].type->block_elements / (cut ? model->parts : 1);
}

/* The number in the file of a block in memory. */
static uint64_t block_of(const struct model *model, size_t i, uint64_t block)
{
    const struct header_tensor *tensor = &model->tensors[i];
    const struct asked *asked = &model->asked[i];
    const uint64_t columns = columns_of(model, i), all = tensor->ne[0] / tensor->type->block_elements;
    uint64_t row = block / columns, column = block % columns;
    if (asked->any && strcmp(asked->cut, "rows") == 0)
        row += rows_of(model, i) * model->rank;
    if (asked->any && strcmp(asked->cut, "columns") == 0)
        column += columns * model->rank;
    if (asked->heads > 0) {
        const uint64_t head = tensor->ne[1] / asked->heads, half = head / 2;
        const uint64_t of_head = row / head, place = row % head;
        row = of_head * head + (place < half ? 2 * place : 2 * (place - half) + 1);
    }
    return row * all + column;
}

/* Every block of a tensor comes from its place in the file, and each once. */
static void check_tensor(const struct model *model, const struct plan *plan, size_t index)
{
    const struct tensor_type *type = model->tensors[index].type;
    const struct tensor_place *place = &plan->places[index];
    const struct gather *gather = plan_gather(plan, index);
    const uint64_t blocks = rows_of(model, index) * columns_of(model, index);
    assert_int_equal(plan->tensors[index].ne[0], columns_of(model, index) * type->block_elements);
    assert_int_equal(plan->tensors[index].ne[1], rows_of(model, index));
    if (blocks == 0)
        return;
    const uint64_t out = place->bytes / blocks;
    assert_int_equal(out * blocks, place->bytes);
    bool *seen = calloc(blocks, sizeof(*seen));
    for (size_t i = 0; i < plan->n_pieces; i++) {
        if (plan->piece_tensors[i] != index)
            continue;
        const struct piece *piece = &plan->pieces[i];
        const uint64_t first = (piece->arena_offset - place->offset) / out, n = piece->arena_bytes / out;
        uint64_t run;
        for (uint64_t done = 0; done < n; done += run) {
            uint64_t at = (plan->piece_file_offsets[i] - plan->tensors[index].offset) / type->block_bytes + done;
            run = 1;
            if (gather)
                run = gather_run(gather, first + done, n - done, &at);
            assert_true(run > 0 && run <= n - done);
            for (uint64_t k = 0; k < run; k++) {
                const uint64_t file = plan->tensors[index].offset + (at + k) * type->block_bytes;
                assert_int_equal(file, model->tensors[index].offset +
                                           block_of(model, index, first + done + k) * type->block_bytes);
                assert_false(seen[first + done + k]);
                seen[first + done + k] = true;
            }
        }
    }
    for (uint64_t i = 0; i < blocks; i++)
        assert_true(seen[i]);
    free(seen);
}

static void check_slots(const struct plan *plan, size_t slot_bytes, size_t part_bytes)
{
    for (size_t c = 0; c < plan->n_chunks; c++) {
        const struct chunk *chunk = &plan->chunks[c];
        uint64_t used = 0;
        for (size_t i = chunk->first_piece; i < chunk->first_piece + chunk->n_pieces; i++) {
            const struct piece *piece = &plan->pieces[i];
            assert_int_equal(plan->tensors[plan->piece_tensors[i]].shard, chunk->shard);
            assert_true(piece->slot_offset + piece->slot_bytes <= slot_bytes);
            assert_int_equal(piece->slot_bytes, plan->verbatim ? plan_piece_file_bytes(plan, i) : piece->arena_bytes);
            if (plan->packed)
                assert_true(piece->slot_offset >= used);
            used = piece->slot_offset + piece->slot_bytes;
        }
        struct chunk_part parts[CHUNK_PARTS_MAX];
        const size_t n = plan_divide(plan, chunk, part_bytes, parts);
        size_t pieces = 0;
        for (size_t i = 0; i < n; i++)
            pieces += parts[i].n_pieces;
        assert_int_equal(pieces, plan->packed ? chunk->n_pieces : 0);
    }
}

static int by_offset(const void *a, const void *b)
{
    const struct extent *x = a, *y = b;
    return x->offset != y->offset ? (x->offset < y->offset ? -1 : 1) : x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* Tensors do not overlap, and what is between them is cleared. */
static void check_arena(const struct plan *plan)
{
    struct extent all[TENSORS_MAX], *gaps;
    size_t n_gaps, gap = 0, tensor = 0, n = plan->model->n_tensors;
    for (size_t i = 0; i < n; i++)
        all[i] = (struct extent){plan->places[i].offset, plan->places[i].bytes};
    qsort(all, n, sizeof(all[0]), by_offset);
    for (size_t i = 1; i < n; i++)
        assert_true(all[i - 1].offset + all[i - 1].bytes <= all[i].offset);
    assert_int_equal(plan_gaps(plan, &gaps, &n_gaps), 0);
    uint64_t at = 0;
    while (true) {
        if (gap < n_gaps && gaps[gap].offset <= at) {
            const uint64_t end = gaps[gap].offset + gaps[gap].bytes;
            at = end > at ? end : at;
            gap++;
        } else if (tensor < n && all[tensor].offset <= at) {
            at = all[tensor].offset + all[tensor].bytes > at ? all[tensor].offset + all[tensor].bytes : at;
            tensor++;
        } else
            break;
    }
    assert_int_equal(at, plan->arena_bytes);
    free(gaps);
}

static void check_groups(const struct plan *plan)
{
    const struct arrangement *a = plan->arrangement;
    for (size_t i = 0; a && i < a->n_groups; i++) {
        const struct arranged_group *group = &a->groups[i];
        assert_int_equal(plan->places[group->members[0]].offset % PLAN_ALIGNMENT, 0);
        uint64_t end = plan->places[group->members[0]].offset, rows = 0;
        for (size_t k = 0; k < group->n_members; k++) {
            const struct tensor_place *place = &plan->places[group->members[k]];
            assert_int_equal(place->offset, end);
            assert_true(k + 1 == group->n_members || place->padding == 0);
            end += place->bytes;
            rows += plan->tensors[group->members[k]].ne[1];
        }
        assert_int_equal(group->ne[1], rows);
        assert_int_equal(group->ne[0], plan->tensors[group->members[0]].ne[0]);
        assert_int_equal(plan_group_bytes(plan, group), end - plan->places[group->members[0]].offset);
    }
}

/* The same request and the same places lead to the same plan; other places are refused. */
static void check_resume(const struct model *model, const struct plan *plan, const struct layout *layout)
{
    const struct model_heads none = {0};
    struct tensor_place places[TENSORS_MAX];
    memcpy(places, plan->places, model->header.n_tensors * sizeof(places[0]));
    struct plan *again;
    assert_int_equal(plan_resume(&model->header, layout, &none, places, plan->arena_bytes, &again), 0);
    assert_true(plan_same(plan, again));
    assert_int_equal(again->model_bytes, plan->model_bytes);
    plan_free(again);
    places[below(model->header.n_tensors)].offset += PLAN_ALIGNMENT / 2;
    assert_int_equal(plan_resume(&model->header, layout, &none, places, plan->arena_bytes, &again), -EBADMSG);
}

static void random_layouts(void **state)
{
    (void)state;
    srandom(7);
    for (size_t round = 0; round < ROUNDS; round++) {
        struct model model;
        model_make(&model);
        const struct layout *layout = layout_make(&model);
        const struct model_heads none = {0};
        struct plan *plan;
        struct layout_fault fault;
        size_t tensor;
        const enum form forms[] = {FORM_NATIVE, FORM_AUTO, FORM_F32};
        assert_int_equal(plan_new_arranged(&model.header, forms_plain(forms[below(3)]), layout, &none,
                                           PLAN_ALIGNMENT << below(8), &plan, &tensor, &fault),
                         0);
        const size_t slot_bytes = PAGE * (4 + below(200)), part_bytes = PAGE * (1 + below(20));
        assert_int_equal(plan_cut(plan, slot_bytes, part_bytes, random() & 1), 0);
        for (size_t i = 0; i < model.header.n_tensors; i++)
            check_tensor(&model, plan, i);
        check_slots(plan, slot_bytes, part_bytes);
        check_arena(plan);
        check_groups(plan);
        check_resume(&model, plan, layout);
        plan_free(plan);
        layout_unref(layout);
    }
}

/* --- requests --- */

static const struct layout *parse(const char *text, int expected, const char *parameter)
{
    cJSON *object = cJSON_Parse(text);
    assert_non_null(object);
    const struct layout *layout = NULL;
    const char *wrong = NULL;
    const int r = layout_new(cJSON_GetStringValue(cJSON_GetObjectItem(object, "layout")),
                             cJSON_GetObjectItem(object, "groups"), cJSON_GetObjectItem(object, "tp"), &layout, &wrong);
    assert_int_equal(r, expected);
    if (r == -EINVAL)
        assert_string_equal(wrong, parameter);
    cJSON_Delete(object);
    return layout;
}

#define TWO_GROUPS                                                                                                     \
    "{\"groups\":[{\"name\":\"g\",\"members\":[\"a\",\"b\"],\"stack\":2,\"heads\":4,\"cut\":\"rows\"},"                \
    "{\"name\":\"h\",\"members\":[\"c\"],\"cut\":\"columns\"}],\"tp\":{\"rank\":0,\"size\":2}}"

/* A layout that is described and read again is the same. */
static void requests(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "{}",
        "{\"layout\":\"hf\"}",
        "{\"layout\":\"vllm\",\"tp\":{\"rank\":1,\"size\":4,\"heads\":8,\"kvHeads\":2}}",
        TWO_GROUPS,
    };
    const struct layout *layouts[4];
    for (size_t i = 0; i < 4; i++) {
        layouts[i] = parse(texts[i], 0, NULL);
        cJSON *object = cJSON_CreateObject();
        layout_describe(layouts[i], object, false);
        char *text = cJSON_PrintUnformatted(object);
        assert_string_equal(text, texts[i]);
        const struct layout *again = parse(text, 0, NULL);
        for (size_t k = 0; k <= i; k++)
            assert_int_equal(layout_equal(again, layouts[k]), i == k);
        layout_unref(again);
        cJSON_free(text);
        cJSON_Delete(object);
    }
    assert_true(layout_equal(layouts[0], NULL) && layout_equal(layouts[0], layout_none()));
    for (size_t i = 0; i < 4; i++)
        layout_unref(layouts[i]);
}

static void too_many(void **state)
{
    (void)state;
    cJSON *groups = cJSON_CreateArray(), *one = cJSON_CreateArray(), *members = cJSON_CreateArray();
    const struct layout *layout;
    const char *wrong;
    for (size_t i = 0; i < LAYOUT_GROUPS_MAX + 1; i++)
        cJSON_AddItemToArray(groups, cJSON_CreateObject());
    assert_int_equal(layout_new(NULL, groups, NULL, &layout, &wrong), -E2BIG);
    for (size_t i = 0; i < LAYOUT_MEMBERS_MAX + 1; i++)
        cJSON_AddItemToArray(members, cJSON_CreateString("a"));
    cJSON *group = cJSON_CreateObject();
    cJSON_AddStringToObject(group, "name", "g");
    cJSON_AddItemToObject(group, "members", members);
    cJSON_AddItemToArray(one, group);
    assert_int_equal(layout_new(NULL, one, NULL, &layout, &wrong), -E2BIG);
    cJSON_Delete(groups);
    cJSON_Delete(one);
}

/* --- names --- */

static void rules_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        enum name_part part;
        size_t n_siblings;
        const char *fused;
        bool expert;
    } cases[] = {
        {"model.layers.0.self_attn.q_proj.weight", PART_Q, 3, "qkv_proj", false},
        {"model.layers.0.self_attn.q_proj.bias", PART_Q, 3, "qkv_proj", false},
        {"q_proj.weight", PART_Q, 3, "qkv_proj", false},
        {"xq_proj.weight", PART_UNKNOWN, 0, NULL, false},
        {"model.layers.0.self_attn.k_proj.weight", PART_KV, 0, NULL, false},
        {"model.layers.0.self_attn.q_proj.weight_scale", PART_UNKNOWN, 0, NULL, false},
        {"model.layers.0.self_attn.qkv_proj.weight", PART_QKV, 0, NULL, false},
        {"model.layers.0.self_attn.o_proj.weight", PART_COLUMNS, 0, NULL, false},
        {"model.layers.0.self_attn.o_proj.bias", PART_WHOLE, 0, NULL, false},
        {"model.layers.0.self_attn.q_norm.weight", PART_WHOLE, 0, NULL, false},
        {"model.layers.0.mlp.gate_proj.weight", PART_ROWS, 2, "gate_up_proj", false},
        {"model.layers.0.mlp.gate_up_proj.weight", PART_PAIR, 0, NULL, false},
        {"model.layers.0.mlp.gate.weight", PART_WHOLE, 0, NULL, false},
        {"model.layers.0.mlp.shared_expert.gate_proj.weight", PART_ROWS, 2, "gate_up_proj", false},
        {"model.layers.0.mlp.experts.0.gate_proj.weight", PART_ROWS, 2, "w13", true},
        {"model.layers.0.mlp.experts.10.gate_proj.weight", PART_ROWS, 0, NULL, true},
        {"model.layers.0.mlp.experts.0.down_proj.weight", PART_COLUMNS, 1, "w2", true},
        {"model.layers.0.block_sparse_moe.experts.0.w1.weight", PART_ROWS, 2, "w13", true},
        {"model.layers.0.block_sparse_moe.experts.3.w2.weight", PART_COLUMNS, 0, NULL, true},
        {"experts.0.w2.weight", PART_COLUMNS, 1, "w2", true},
        {"w1.weight", PART_UNKNOWN, 0, NULL, false},
        {"model.embed_tokens.weight", PART_VOCABULARY, 0, NULL, false},
        {"lm_head.weight", PART_VOCABULARY, 0, NULL, false},
        {"", PART_UNKNOWN, 0, NULL, false},
        {".weight", PART_UNKNOWN, 0, NULL, false},
        {".", PART_UNKNOWN, 0, NULL, false},
        {"experts..w1.weight", PART_UNKNOWN, 0, NULL, false},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct name_rule rule = name_rule_vllm(cases[i].name);
        assert_int_equal(rule.part, cases[i].part);
        assert_int_equal(rule.n_siblings, cases[i].n_siblings);
        assert_int_equal(rule.expert, cases[i].expert);
        if (cases[i].fused)
            assert_string_equal(rule.fused, cases[i].fused);
    }
    assert_int_equal(name_of_attention("blk.31.attn_q.weight"), 'q');
    assert_int_equal(name_of_attention("blk.0.attn_k.bias"), 'k');
    static const char *const neither[] = {"blk.0.attn_v.weight",  "blk.attn_q.weight", "blk.0.attn_q_norm.weight",
                                          "xblk.0.attn_q.weight", "blk.0.attn_q",      ""};
    for (size_t i = 0; i < sizeof(neither) / sizeof(neither[0]); i++)
        assert_int_equal(name_of_attention(neither[i]), 0);
}

/* --- config.json --- */

static void configurations(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t heads, kv_heads;
    } cases[] = {
        {"{\"num_attention_heads\": 32, \"num_key_value_heads\": 8}", 32, 8},
        {"{\"a\": [1, {\"num_attention_heads\": 5}], \"num_attention_heads\": 32}", 32, 32},
        {"{\"text_config\": {\"num_key_value_heads\": 2, \"num_attention_heads\": 8}}", 8, 2},
        {"{\"num_attention_heads\": 32, \"num_key_value_heads\": null}", 32, 32},
        {"{\"num_attention_heads\": -1}", 0, 0},
        {"{\"num_attention_heads\": 0}", 0, 0},
        {"{\"num_attention_heads\": 1e3}", 0, 0},
        {"{\"num_attention_heads\": 99999999999999999999}", 0, 0},
        {"{\"num_attention_heads\": 4000000000}", 0, 0},
        {"{\"num_attention_heads\": 32} x", 0, 0},
        {"{\"num_attention_heads\": 32", 0, 0},
        {"[]", 0, 0},
        {"", 0, 0},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct model_heads heads = {0};
        heads_read_config(cases[i].text, strlen(cases[i].text), &heads);
        assert_int_equal(heads.heads, cases[i].heads);
        assert_int_equal(heads.kv_heads, cases[i].kv_heads);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_layouts), cmocka_unit_test(requests),       cmocka_unit_test(too_many),
        cmocka_unit_test(rules_by_name),  cmocka_unit_test(configurations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
