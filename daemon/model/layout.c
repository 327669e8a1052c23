#include "daemon/model/layout.h"

#include "daemon/base/json_text.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Groups with more names than that, or longer ones, are left out where many models are described. */
#define BRIEF_NAMES_MAX 64u
#define BRIEF_BYTES_MAX 4096u

const char *const layout_names[] = {"vllm", "hf", NULL};
static const char *const kinds[] = {[LAYOUT_VLLM] = "vllm", [LAYOUT_HF] = "hf"};
static const char *const cuts[] = {[LAYOUT_WHOLE] = "whole", [LAYOUT_ROWS] = "rows", [LAYOUT_COLUMNS] = "columns"};

#define N_OF(array) (sizeof(array) / sizeof((array)[0]))

static const struct layout none = {.kind = LAYOUT_FILE, .parts = 1};

const struct layout *layout_none(void)
{
    return &none;
}

static const struct layout *or_none(const struct layout *layout)
{
    return layout ? layout : &none;
}

const char *layout_name(const struct layout *layout)
{
    return kinds[or_none(layout)->kind];
}

/* --- requests --- */

/* The index of a word in a table; 0: it is not there, or is the first one. */
static unsigned word_find(const char *const *table, size_t n, const char *word)
{
    for (unsigned i = 0; i < n; i++)
        if (table[i] && strcmp(table[i], word) == 0)
            return i;
    return 0;
}

/* Reads an integer from `least` to `most`. A missing one keeps *ret. */
static bool take_integer(const cJSON *object, const char *key, uint32_t least, uint32_t most, uint32_t *ret)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!item || cJSON_IsNull(item))
        return true;
    if (!cJSON_IsNumber(item) || item->valuedouble < least || item->valuedouble > most ||
        item->valuedouble != (double)(uint32_t)item->valuedouble)
        return false;
    *ret = (uint32_t)item->valuedouble;
    return true;
}

/* Whether the object has no other keys than those of a list that NULL ends. */
static bool has_only(const cJSON *object, const char *const *keys)
{
    const cJSON *item;
    cJSON_ArrayForEach (item, object) {
        const char *const *key = keys;
        while (*key && strcmp(*key, item->string) != 0)
            key++;
        if (!*key)
            return false;
    }
    return cJSON_IsObject(object);
}

static bool take_tp(const cJSON *tp, struct layout *layout)
{
    static const char *const keys[] = {"rank", "size", "heads", "kvHeads", NULL};
    layout->parts = 0;
    layout->rank = UINT32_MAX;
    if (!has_only(tp, keys) || !take_integer(tp, "size", 1, LAYOUT_PARTS_MAX, &layout->parts) || layout->parts == 0 ||
        !take_integer(tp, "rank", 0, layout->parts - 1, &layout->rank) || layout->rank == UINT32_MAX)
        return false;
    return take_integer(tp, "heads", 1, LAYOUT_HEADS_MAX, &layout->heads) &&
           take_integer(tp, "kvHeads", 1, LAYOUT_HEADS_MAX, &layout->kv_heads);
}

static const char *take_name(const cJSON *item)
{
    const char *text = cJSON_IsString(item) ? item->valuestring : NULL;
    return text && text[0] && strlen(text) <= LAYOUT_NAME_MAX ? text : NULL;
}

/* Adds what a group takes in memory. -EINVAL: it is not valid. */
static int group_measure(const cJSON *group, size_t *n_members, size_t *bytes)
{
    static const char *const keys[] = {"name", "members", "stack", "heads", "cut", NULL};
    const cJSON *members = cJSON_GetObjectItemCaseSensitive(group, "members"), *member;
    const char *name = take_name(cJSON_GetObjectItemCaseSensitive(group, "name"));
    if (!has_only(group, keys) || !name || !cJSON_IsArray(members) || cJSON_GetArraySize(members) == 0)
        return -EINVAL;
    *bytes += strlen(name) + 1;
    cJSON_ArrayForEach (member, members) {
        const char *text = take_name(member);
        if (!text)
            return -EINVAL;
        *bytes += strlen(text) + 1;
        if (++*n_members > LAYOUT_MEMBERS_MAX)
            return -E2BIG;
    }
    return 0;
}

/* Reads a group that was measured, into memory that is large enough. */
static int group_take(const cJSON *group, struct layout_group *ret, const char **members, char **text)
{
    const cJSON *member, *cut = cJSON_GetObjectItemCaseSensitive(group, "cut");
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(group, "members");
    *ret = (struct layout_group){.name = *text, .members = members, .n_members = (size_t)cJSON_GetArraySize(list)};
    *text = stpcpy(*text, cJSON_GetObjectItemCaseSensitive(group, "name")->valuestring) + 1;
    cJSON_ArrayForEach (member, list) {
        *members++ = *text;
        *text = stpcpy(*text, member->valuestring) + 1;
    }
    if (!take_integer(group, "stack", 1, LAYOUT_MEMBERS_MAX, &ret->stack) ||
        !take_integer(group, "heads", 1, LAYOUT_HEADS_MAX, &ret->heads))
        return -EINVAL;
    if (!cut || cJSON_IsNull(cut))
        return 0;
    ret->cut = (enum layout_cut)word_find(cuts, N_OF(cuts), cJSON_IsString(cut) ? cut->valuestring : "");
    return cJSON_IsString(cut) && strcmp(cuts[ret->cut], cut->valuestring) == 0 ? 0 : -EINVAL;
}

/* Makes a layout with the groups of a request, or with none. */
static int groups_new(const cJSON *groups, struct layout **ret)
{
    const size_t n = groups ? (size_t)cJSON_GetArraySize(groups) : 0;
    size_t n_members = 0, bytes = 0;
    const cJSON *group;
    if (n > LAYOUT_GROUPS_MAX)
        return -E2BIG;
    cJSON_ArrayForEach (group, groups) {
        int r = group_measure(group, &n_members, &bytes);
        if (r < 0)
            return r;
    }
    struct layout *layout =
        calloc(1, sizeof(*layout) + n * sizeof(struct layout_group) + n_members * sizeof(char *) + bytes);
    if (!layout)
        return -ENOMEM;
    struct layout_group *own = (struct layout_group *)(layout + 1);
    const char **members = (const char **)(own + n);
    char *text = (char *)(members + n_members);
    *layout = (struct layout){
        .references = 1, .parts = 1, .n_groups = n, .groups = own, .n_names = n + n_members, .name_bytes = bytes};
    cJSON_ArrayForEach (group, groups) {
        int r = group_take(group, own, members, &text);
        if (r < 0) {
            free(layout);
            return r;
        }
        members += own->n_members;
        own++;
    }
    *ret = layout;
    return 0;
}

int layout_new(const char *name, const cJSON *groups, const cJSON *tp, const struct layout **ret,
               const char **ret_parameter)
{
    const unsigned kind = name ? word_find(kinds, N_OF(kinds), name) : LAYOUT_FILE;
    *ret_parameter = "layout";
    if (name && kind == LAYOUT_FILE)
        return -EINVAL;
    struct layout *layout;
    *ret_parameter = "groups";
    int r = groups_new(groups, &layout);
    if (r < 0)
        return r;
    layout->kind = (enum layout_kind)kind;
    *ret_parameter = "tp";
    if (tp && (!take_tp(tp, layout) || (layout->parts > 1 && kind != LAYOUT_VLLM && layout->n_groups == 0))) {
        free(layout); /* no rule says what the parts are */
        return -EINVAL;
    }
    if (layout->parts == 1)
        layout->heads = layout->kv_heads = 0; /* they say nothing then */
    *ret = layout;
    return 0;
}

static cJSON *group_describe(const struct layout_group *group)
{
    cJSON *object = cJSON_CreateObject();
    cJSON_AddStringToObject(object, "name", group->name);
    cJSON *members = cJSON_AddArrayToObject(object, "members");
    for (size_t i = 0; i < group->n_members; i++)
        json_append(members, cJSON_CreateString(group->members[i]));
    if (group->stack > 0)
        cJSON_AddNumberToObject(object, "stack", group->stack);
    if (group->heads > 0)
        cJSON_AddNumberToObject(object, "heads", group->heads);
    if (group->cut != LAYOUT_WHOLE)
        cJSON_AddStringToObject(object, "cut", cuts[group->cut]);
    return object;
}

void layout_describe(const struct layout *layout, cJSON *object, bool brief)
{
    layout = or_none(layout);
    if (layout->kind != LAYOUT_FILE)
        cJSON_AddStringToObject(object, "layout", kinds[layout->kind]);
    const bool left = brief && (layout->n_names > BRIEF_NAMES_MAX || layout->name_bytes > BRIEF_BYTES_MAX);
    if (left)
        cJSON_AddNumberToObject(object, "groupsLeft", (double)layout->n_groups);
    cJSON *groups = layout->n_groups > 0 && !left ? cJSON_AddArrayToObject(object, "groups") : NULL;
    for (size_t i = 0; i < layout->n_groups && groups; i++)
        json_append(groups, group_describe(&layout->groups[i]));
    cJSON *tp = layout->parts > 1 ? cJSON_AddObjectToObject(object, "tp") : NULL;
    if (!tp)
        return;
    cJSON_AddNumberToObject(tp, "rank", layout->rank);
    cJSON_AddNumberToObject(tp, "size", layout->parts);
    if (layout->heads > 0)
        cJSON_AddNumberToObject(tp, "heads", layout->heads);
    if (layout->kv_heads > 0)
        cJSON_AddNumberToObject(tp, "kvHeads", layout->kv_heads);
}

/* --- references --- */

const struct layout *layout_ref(const struct layout *layout)
{
    if (layout && layout->references > 0)
        ((struct layout *)layout)->references++;
    return layout;
}

void layout_unref(const struct layout *layout)
{
    struct layout *counted = (struct layout *)layout;
    if (!layout || layout->references == 0)
        return;
    if (--counted->references == 0)
        free(counted);
}

static bool group_equal(const struct layout_group *a, const struct layout_group *b)
{
    bool equal = strcmp(a->name, b->name) == 0 && a->n_members == b->n_members && a->stack == b->stack &&
                 a->heads == b->heads && a->cut == b->cut;
    for (size_t i = 0; i < a->n_members && equal; i++)
        equal = strcmp(a->members[i], b->members[i]) == 0;
    return equal;
}

bool layout_equal(const struct layout *a, const struct layout *b)
{
    a = or_none(a);
    b = or_none(b);
    bool equal = a->kind == b->kind && a->rank == b->rank && a->parts == b->parts && a->heads == b->heads &&
                 a->kv_heads == b->kv_heads && a->n_groups == b->n_groups;
    for (size_t i = 0; i < a->n_groups && equal; i++)
        equal = group_equal(&a->groups[i], &b->groups[i]);
    return equal;
}

int layout_refuse(struct layout_fault *fault, const char *tensor, const char *group, const char *format, ...)
{
    *fault = (struct layout_fault){.tensor = tensor, .group = group};
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(fault->reason, sizeof(fault->reason), format, arguments);
    va_end(arguments);
    return -EDOM;
}
