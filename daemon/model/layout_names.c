#include "daemon/model/layout_names.h"

#include <string.h>

static const struct module {
    const char *name;
    enum name_part part;
    const char *fused; /* NULL: it is not the first of a group */
    const char *siblings[NAME_SIBLINGS_MAX];
    bool of_expert; /* a rule for experts only */
} modules[] = {
    {"q_proj", PART_Q, "qkv_proj", {"q_proj", "k_proj", "v_proj"}, false},
    {"k_proj", PART_KV, NULL, {NULL}, false},
    {"v_proj", PART_KV, NULL, {NULL}, false},
    {"qkv_proj", PART_QKV, NULL, {NULL}, false},
    {"o_proj", PART_COLUMNS, NULL, {NULL}, false},
    {"gate_proj", PART_ROWS, "gate_up_proj", {"gate_proj", "up_proj"}, false},
    {"up_proj", PART_ROWS, NULL, {NULL}, false},
    {"gate_up_proj", PART_PAIR, NULL, {NULL}, false},
    {"down_proj", PART_COLUMNS, NULL, {NULL}, false},
    {"embed_tokens", PART_VOCABULARY, NULL, {NULL}, false},
    {"lm_head", PART_VOCABULARY, NULL, {NULL}, false},
    {"gate", PART_WHOLE, NULL, {NULL}, false},
    {"shared_expert_gate", PART_WHOLE, NULL, {NULL}, false},
    {"w1", PART_ROWS, "w13", {"w1", "w3"}, true},
    {"w3", PART_ROWS, NULL, {NULL}, true},
    {"w2", PART_COLUMNS, "w2", {"w2"}, true},
    {"gate_proj", PART_ROWS, "w13", {"gate_proj", "up_proj"}, true},
    {"up_proj", PART_ROWS, NULL, {NULL}, true},
    {"down_proj", PART_COLUMNS, "w2", {"down_proj"}, true},
};

#define N_MODULES (sizeof(modules) / sizeof(modules[0]))

static const struct module *module_find(const char *name, size_t length, bool of_expert)
{
    for (size_t i = 0; i < N_MODULES; i++)
        if (modules[i].of_expert == of_expert && strlen(modules[i].name) == length &&
            memcmp(modules[i].name, name, length) == 0)
            return &modules[i];
    return NULL;
}

/* Where the part of the name begins that ends before `end`: after a dot, or at the beginning. */
static size_t part_begin(const char *name, size_t end)
{
    while (end > 0 && name[end - 1] != '.')
        end--;
    return end;
}

/* Whether the number of an expert ends before `end`: "experts.", digits. Sets where it begins. */
static bool is_numbered(const char *name, size_t end, size_t *ret_number)
{
    static const char before[] = "experts.";
    const size_t length = sizeof(before) - 1, number = part_begin(name, end);
    if (number == end || strspn(name + number, "0123456789") != end - number || number < length ||
        memcmp(name + number - length, before, length) != 0)
        return false;
    *ret_number = number;
    return true;
}

struct name_rule name_rule_vllm(const char *name)
{
    struct name_rule rule = {.part = PART_UNKNOWN};
    const char *kind = strrchr(name, '.');
    const bool bias = kind && strcmp(kind, ".bias") == 0;
    if (strstr(name, "norm") || strstr(name, "rotary_emb.") || strstr(name, "e_score_correction_bias"))
        rule.part = PART_WHOLE;
    if (!kind || (!bias && strcmp(kind, ".weight") != 0))
        return rule;
    const size_t end = (size_t)(kind - name), begin = part_begin(name, end);
    size_t number = 0;
    rule.expert = begin > 0 && is_numbered(name, begin - 1, &number);
    const struct module *module = module_find(name + begin, end - begin, rule.expert);
    if (!module)
        return rule;
    /* The bias of a layer that is cut by columns is added once, after the parts are summed up. */
    rule.part = bias && module->part == PART_COLUMNS ? PART_WHOLE : module->part;
    const bool first = !rule.expert || (begin - 1 - number == 1 && name[number] == '0');
    if (!module->fused || !first)
        return rule;
    while (rule.n_siblings < NAME_SIBLINGS_MAX && module->siblings[rule.n_siblings]) {
        rule.siblings[rule.n_siblings] = module->siblings[rule.n_siblings];
        rule.n_siblings++;
    }
    rule.fused = module->fused;
    rule.module = begin;
    rule.kind = kind;
    rule.prefix = number;
    return rule;
}

char name_of_attention(const char *name)
{
    static const char layer[] = "blk.", module[] = ".attn_";
    if (strncmp(name, layer, sizeof(layer) - 1) != 0)
        return 0;
    const char *at = name + sizeof(layer) - 1;
    const size_t digits = strspn(at, "0123456789");
    at += digits;
    if (digits == 0 || strncmp(at, module, sizeof(module) - 1) != 0)
        return 0;
    at += sizeof(module) - 1;
    const bool known =
        (at[0] == 'q' || at[0] == 'k') && (strcmp(at + 1, ".weight") == 0 || strcmp(at + 1, ".bias") == 0);
    return known ? at[0] : 0;
}
