#include "daemon/model/arrange.h"

#include "daemon/model/layout_names.h"
#include "proto/array.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NO_TENSOR UINT32_MAX

/* An arrangement that is being made. */
struct arranger {
    const struct model_header *model;
    const struct layout *layout;
    struct arrangement *a;
    uint32_t *sorted;                  /* the tensors in ascending order of name */
    const struct layout_group **asked; /* of each tensor: the request's group that names it; NULL: none */
    size_t n_members;
    size_t groups_capacity;
    struct layout_fault *fault;
};

/* --- names --- */

static int name_compare(const void *a, const void *b, void *tensors)
{
    const struct header_tensor *all = tensors;
    return strcmp(all[*(const uint32_t *)a].name, all[*(const uint32_t *)b].name);
}

/* Where the first tensor is, in `sorted`, whose name is not before the first `length` bytes of `name`. */
static size_t tensor_lower(const struct arranger *r, const char *name, size_t length)
{
    size_t low = 0, high = r->a->n_tensors;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (strncmp(name, r->a->tensors[r->sorted[middle]].name, length) <= 0)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static uint32_t tensor_find(const struct arranger *r, const char *name)
{
    const size_t at = tensor_lower(r, name, strlen(name) + 1);
    const bool there = at < r->a->n_tensors && strcmp(name, r->a->tensors[r->sorted[at]].name) == 0;
    return there ? r->sorted[at] : NO_TENSOR;
}

/* --- groups --- */

/* Begins a group. Takes the name over, also when it fails; NULL: there was no memory for it. */
static int group_begin(struct arranger *r, char *name, uint32_t stack, bool asked)
{
    struct arrangement *a = r->a;
    const int error =
        name ? array_reserve(&a->groups, &r->groups_capacity, a->n_groups, sizeof(*a->groups), 64) : -ENOMEM;
    if (error < 0) {
        free(name);
        return error;
    }
    a->groups[a->n_groups++] =
        (struct arranged_group){.name = name, .members = a->members + r->n_members, .stack = stack, .asked = asked};
    return 0;
}

/* Adds a tensor, which is in no group yet, to the group that was begun last. */
static void group_add(struct arranger *r, uint32_t tensor)
{
    struct arrangement *a = r->a;
    a->members[r->n_members++] = tensor;
    a->groups[a->n_groups - 1].n_members++;
    a->group_of[tensor] = (uint32_t)(a->n_groups - 1);
}

/* The groups that the request names. */
static int groups_asked(struct arranger *r)
{
    for (size_t i = 0; i < r->layout->n_groups; i++) {
        const struct layout_group *group = &r->layout->groups[i];
        const bool alone = group->n_members == 1 && strcmp(group->name, group->members[0]) == 0 && group->stack == 0;
        if (!alone && tensor_find(r, group->name) != NO_TENSOR)
            return layout_refuse(r->fault, NULL, group->name, "the group has the name of a tensor");
        int error = alone ? 0 : group_begin(r, strdup(group->name), group->stack, true);
        for (size_t k = 0; k < group->n_members && error == 0; k++) {
            const uint32_t tensor = tensor_find(r, group->members[k]);
            if (tensor == NO_TENSOR)
                return layout_refuse(r->fault, group->members[k], group->name, "the model has no such tensor");
            if (r->asked[tensor])
                return layout_refuse(r->fault, group->members[k], group->name, "the tensor is a member twice");
            r->asked[tensor] = group;
            if (!alone)
                group_add(r, tensor);
        }
        if (error < 0)
            return error;
    }
    return 0;
}

/* Makes a name of a first part of `length` bytes and two further ones. NULL: no memory. */
static char *name_join(const char *first, size_t length, const char *second, const char *third)
{
    char *name = malloc(length + strlen(second) + strlen(third) + 1);
    if (!name)
        return NULL;
    memcpy(name, first, length);
    strcpy(stpcpy(name + length, second), third);
    return name;
}

/* The tensor with the same name as `like`, but for the module; of experts also but for the number. -ENOMEM. */
static int sibling_find(const struct arranger *r, const char *like, const struct name_rule *rule, size_t expert,
                        size_t sibling, uint32_t *ret)
{
    char number[24];
    char *name;
    if (rule->expert) {
        snprintf(number, sizeof(number), "%zu.", expert);
        char *begin = name_join(like, rule->prefix, number, rule->siblings[sibling]);
        name = begin ? name_join(begin, strlen(begin), rule->kind, "") : NULL;
        free(begin);
    } else
        name = name_join(like, rule->module, rule->siblings[sibling], rule->kind);
    if (!name)
        return -ENOMEM;
    *ret = tensor_find(r, name);
    free(name);
    return 0;
}

/* The name of the group: of experts, "PREFIXw13_weight". NULL: no memory. */
static char *fused_name(const char *like, const struct name_rule *rule)
{
    if (!rule->expert)
        return name_join(like, rule->module, rule->fused, rule->kind);
    char *name = name_join(like, rule->prefix, rule->fused, rule->kind);
    if (name)
        name[rule->prefix + strlen(rule->fused)] = '_';
    return name;
}

/* Adds the siblings of one expert, or of a tensor that is none. Returns 1; 0 if they are not all there, or one is in a
 * group already, and none was added; -ENOMEM. */
static int siblings_add(struct arranger *r, const char *like, const struct name_rule *rule, size_t expert)
{
    uint32_t found[NAME_SIBLINGS_MAX];
    for (size_t i = 0; i < rule->n_siblings; i++) {
        const int error = sibling_find(r, like, rule, expert, i, &found[i]);
        if (error < 0)
            return error;
        if (found[i] == NO_TENSOR || r->asked[found[i]] || r->a->group_of[found[i]] != ARRANGED_ALONE)
            return 0;
    }
    for (size_t i = 0; i < rule->n_siblings; i++)
        group_add(r, found[i]);
    return 1;
}

/* Whether the tensor is one of an expert by the rule of the first expert's, whose name is `like`. */
static bool of_same_experts(const char *name, const char *like, const struct name_rule *rule)
{
    if (strncmp(name, like, rule->prefix) != 0)
        return false;
    const char *rest = name + rule->prefix;
    const size_t digits = strspn(rest, "0123456789");
    if (digits == 0 || rest[digits] != '.')
        return false;
    rest += digits + 1;
    for (size_t i = 0; i < rule->n_siblings; i++) {
        const size_t length = strlen(rule->siblings[i]);
        if (strncmp(rest, rule->siblings[i], length) == 0 && strcmp(rest + length, rule->kind) == 0)
            return true;
    }
    return false;
}

/* Refuses a model that has tensors of further experts than the `n` that were stacked: an engine would take the stack
 * for all of them. A request with groups of its own may have taken some out. */
static int refuse_gap(struct arranger *r, const char *like, const struct name_rule *rule, size_t n)
{
    for (size_t at = tensor_lower(r, like, rule->prefix); r->layout->n_groups == 0 && at < r->a->n_tensors; at++) {
        const char *name = r->a->tensors[r->sorted[at]].name;
        if (strncmp(name, like, rule->prefix) != 0)
            break;
        if (r->a->group_of[r->sorted[at]] == ARRANGED_ALONE && of_same_experts(name, like, rule))
            return layout_refuse(r->fault, r->model->tensors[r->sorted[at]].name, NULL,
                                 "expert %zu is missing or not complete, so the tensor cannot be stacked with those of "
                                 "the experts before it",
                                 n);
    }
    return 0;
}

/* The group that a tensor is the first member of, by its name. */
static int group_by_name(struct arranger *r, const char *name, const struct name_rule *rule)
{
    char *fused = fused_name(name, rule);
    if (fused && tensor_find(r, fused) != NO_TENSOR) {
        free(fused);
        return 0;
    }
    int error = group_begin(r, fused, rule->expert ? (uint32_t)rule->n_siblings : 0, false);
    if (error < 0)
        return error;
    size_t expert = 0;
    while ((error = siblings_add(r, name, rule, expert)) > 0 && rule->expert)
        expert++;
    if (error == 0 && r->a->groups[r->a->n_groups - 1].n_members == 0)
        free(r->a->groups[--r->a->n_groups].name);
    else if (error == 0 && rule->expert)
        error = refuse_gap(r, name, rule, expert);
    return error < 0 ? error : 0;
}

static int group_name_compare(const void *a, const void *b)
{
    return strcmp((*(const struct arranged_group *const *)a)->name, (*(const struct arranged_group *const *)b)->name);
}

/* No two groups have the same name: only those that a request names could. */
static int groups_unique(struct arranger *r)
{
    const struct arrangement *a = r->a;
    const struct arranged_group **groups = calloc(a->n_groups ? a->n_groups : 1, sizeof(const void *));
    if (!groups)
        return -ENOMEM;
    for (size_t i = 0; i < a->n_groups; i++)
        groups[i] = &a->groups[i];
    qsort(groups, a->n_groups, sizeof(const void *), group_name_compare);
    int error = 0;
    for (size_t i = 1; i < a->n_groups && error == 0; i++)
        if (strcmp(groups[i - 1]->name, groups[i]->name) == 0) {
            const struct layout *layout = r->layout;
            const char *name = NULL; /* the layout's own: the arrangement does not outlive this */
            for (size_t k = 0; k < layout->n_groups && !name; k++)
                if (strcmp(layout->groups[k].name, groups[i]->name) == 0)
                    name = layout->groups[k].name;
            error = layout_refuse(r->fault, NULL, name, "two groups have the same name");
        }
    free(groups);
    return error;
}

/* --- shapes --- */

static bool shapes_join(const struct header_tensor *a, const struct header_tensor *b)
{
    bool join = a->type == b->type && a->n_dims == b->n_dims;
    for (uint32_t i = 0; i + 1 < a->n_dims && join; i++)
        join = a->ne[i] == b->ne[i];
    return join;
}

/* Sets the shape of a group of tensors. Returns a sentence if they cannot be joined, and *ret_tensor is the first that
 * does not fit. */
static const char *group_shape(const struct arrangement *a, struct arranged_group *group, uint32_t *ret_tensor)
{
    const struct header_tensor *first = &a->tensors[group->members[0]];
    const size_t each = group->stack > 0 ? group->stack : group->n_members;
    uint64_t rows = 0, rows_first = 0;
    *ret_tensor = group->members[0];
    if (group->n_members % each != 0)
        return "the members are no multiple of what is stacked";
    group->n_dims = first->n_dims > 0 ? first->n_dims : 1;
    memcpy(group->ne, first->ne, sizeof(group->ne));
    for (size_t i = 0; i < group->n_members; i++) {
        const struct header_tensor *tensor = &a->tensors[group->members[i]];
        *ret_tensor = group->members[i];
        if (tensor->type != first->type)
            return "the members have different types";
        if (tensor->type->kind == TYPE_FOREIGN || tensor->type->kind == TYPE_REMOVED)
            return "the size of the member's type is not known";
        if (!shapes_join(first, tensor))
            return "the members' shapes cannot be joined";
        if (i % each == 0 && i > 0 && rows != rows_first)
            return "what is stacked has different shapes";
        if (i % each == 0)
            rows = 0;
        if (__builtin_add_overflow(rows, tensor->ne[group->n_dims - 1], &rows))
            return "the members together are too large";
        if (i < each)
            rows_first = rows;
    }
    if (rows != rows_first)
        return "what is stacked has different shapes";
    group->ne[group->n_dims - 1] = rows;
    if (group->stack == 0)
        return NULL;
    if (group->n_dims == HEADER_DIMS_MAX)
        return "the members have too many dimensions to be stacked";
    group->ne[group->n_dims++] = group->n_members / each;
    return NULL;
}

static int groups_shape(struct arranger *r)
{
    struct arrangement *a = r->a;
    for (size_t i = 0; i < a->n_groups; i++) {
        uint32_t tensor = 0;
        const char *why = group_shape(a, &a->groups[i], &tensor);
        if (why && a->groups[i].asked)
            return layout_refuse(r->fault, r->model->tensors[tensor].name, r->asked[tensor]->name, "%s", why);
        if (why)
            arrangement_dissolve(a, i);
    }
    return 0;
}

void arrangement_dissolve(struct arrangement *a, size_t index)
{
    struct arranged_group *group = &a->groups[index];
    for (size_t i = 0; i < group->n_members; i++)
        a->group_of[group->members[i]] = ARRANGED_ALONE;
    free(group->name);
    group->name = NULL;
    group->n_members = 0;
}

void arrangement_order(struct arrangement *a)
{
    size_t n = 0;
    for (size_t i = 0; i < a->n_tensors; i++) {
        const uint32_t of = a->group_of[i];
        if (of == ARRANGED_ALONE) {
            a->order[n++] = (uint32_t)i;
            continue;
        }
        /* All of the group stands where the first one of them is in the file. */
        const struct arranged_group *group = &a->groups[of];
        uint32_t first = group->members[0];
        for (size_t k = 1; k < group->n_members; k++)
            first = group->members[k] < first ? group->members[k] : first;
        for (size_t k = 0; k < group->n_members && first == i; k++)
            a->order[n++] = group->members[k];
    }
}

/* --- the whole --- */

static int arranger_begin(struct arranger *r)
{
    struct arrangement *a = r->a;
    const size_t n = a->n_tensors = r->model->n_tensors, some = n ? n : 1;
    a->tensors = calloc(some, sizeof(*a->tensors));
    a->gathers = calloc(some, sizeof(*a->gathers));
    a->group_of = calloc(some, sizeof(*a->group_of));
    a->order = calloc(some, sizeof(*a->order));
    a->members = calloc(some, sizeof(*a->members));
    r->sorted = calloc(some, sizeof(*r->sorted));
    r->asked = calloc(some, sizeof(const void *));
    if (!a->tensors || !a->gathers || !a->group_of || !a->order || !a->members || !r->sorted || !r->asked)
        return -ENOMEM;
    memcpy(a->tensors, r->model->tensors, n * sizeof(*a->tensors));
    for (size_t i = 0; i < n; i++) {
        r->sorted[i] = (uint32_t)i;
        a->group_of[i] = ARRANGED_ALONE;
    }
    qsort_r(r->sorted, n, sizeof(*r->sorted), name_compare, a->tensors);
    return 0;
}

/* Cuts each tensor, or reorders its rows, as the request or the layout's name says. */
static int arrange_tensors(struct arranger *r, const struct model_heads *heads)
{
    const struct cutting cutting = {
        .layout = r->layout, .heads = heads, .permuted = tensors_permuted(r->model), .fault = r->fault};
    int error = 0;
    for (size_t i = 0; i < r->a->n_tensors && error == 0; i++)
        error = tensor_cut(&cutting, r->asked[i], &r->a->tensors[i], &r->a->gathers[i]);
    return error;
}

static int groups_by_name(struct arranger *r)
{
    int error = 0;
    for (size_t i = 0; i < r->a->n_tensors && error == 0 && r->layout->kind == LAYOUT_VLLM; i++) {
        const char *name = r->a->tensors[i].name;
        const struct name_rule rule = name_rule_vllm(name);
        if (rule.n_siblings > 0 && r->a->group_of[i] == ARRANGED_ALONE && !r->asked[i])
            error = group_by_name(r, name, &rule);
    }
    return error;
}

static int arranger_run(struct arranger *r, const struct model_heads *heads)
{
    int error = arranger_begin(r);
    if (error == 0)
        error = groups_asked(r);
    if (error == 0)
        error = groups_by_name(r);
    if (error == 0)
        error = groups_unique(r);
    if (error == 0)
        error = arrange_tensors(r, heads);
    return error == 0 ? groups_shape(r) : error;
}

/* Whether anything differs from the file. */
static bool changes_anything(const struct arrangement *a, const struct model_header *model)
{
    bool changes = false;
    for (size_t i = 0; i < a->n_groups && !changes; i++)
        changes = a->groups[i].name;
    for (size_t i = 0; i < a->n_tensors && !changes; i++)
        changes = a->gathers[i].row > 0 || a->tensors[i].bytes != model->tensors[i].bytes ||
                  a->tensors[i].offset != model->tensors[i].offset;
    return changes;
}

int arrange(const struct model_header *model, const struct layout *layout, const struct model_heads *heads,
            struct arrangement **ret, struct layout_fault *ret_fault)
{
    *ret = NULL;
    if (!layout || (layout->kind == LAYOUT_FILE && layout->n_groups == 0))
        return 0;
    struct arranger r = {.model = model, .layout = layout, .fault = ret_fault, .a = calloc(1, sizeof(*r.a))};
    if (!r.a)
        return -ENOMEM;
    int error = arranger_run(&r, heads);
    free(r.sorted);
    free(r.asked);
    if (error < 0 || !changes_anything(r.a, model)) {
        arrangement_free(r.a);
        return error;
    }
    for (size_t i = 0; i < r.a->n_tensors; i++)
        r.a->gathers_any |= r.a->gathers[i].row > 0;
    *ret = r.a;
    return 0;
}

static bool gathers_same(const struct gather *a, const struct gather *b)
{
    bool same = a->blocks == b->blocks && a->file_row == b->file_row && a->row_first == b->row_first &&
                a->row == b->row && a->n_ranges == b->n_ranges;
    for (size_t i = 0; i < a->n_ranges && same; i++)
        same = a->ranges[i].first == b->ranges[i].first && a->ranges[i].rows == b->ranges[i].rows &&
               a->ranges[i].heads == b->ranges[i].heads;
    return same;
}

static bool tensors_same(const struct header_tensor *a, const struct header_tensor *b)
{
    return a->offset == b->offset && a->bytes == b->bytes && a->n_dims == b->n_dims &&
           memcmp(a->ne, b->ne, sizeof(a->ne)) == 0;
}

static bool groups_same(const struct arranged_group *a, const struct arranged_group *b)
{
    if (!a->name || !b->name)
        return !a->name && !b->name;
    return strcmp(a->name, b->name) == 0 && a->n_members == b->n_members && a->stack == b->stack &&
           memcmp(a->members, b->members, a->n_members * sizeof(*a->members)) == 0;
}

bool arrangement_same(const struct arrangement *a, const struct arrangement *b)
{
    if (!a || !b)
        return !a && !b;
    bool same = a->n_tensors == b->n_tensors && a->n_groups == b->n_groups;
    for (size_t i = 0; i < a->n_tensors && same; i++)
        same = gathers_same(&a->gathers[i], &b->gathers[i]) && tensors_same(&a->tensors[i], &b->tensors[i]);
    for (size_t i = 0; i < a->n_groups && same; i++)
        same = groups_same(&a->groups[i], &b->groups[i]);
    return same;
}

uint64_t arrangement_memory(const struct arrangement *a)
{
    if (!a)
        return 0;
    const size_t each =
        sizeof(*a->tensors) + sizeof(*a->gathers) + sizeof(*a->group_of) + sizeof(*a->order) + sizeof(*a->members);
    uint64_t bytes = sizeof(*a) + a->n_tensors * each;
    for (size_t i = 0; i < a->n_groups; i++)
        bytes += sizeof(*a->groups) + (a->groups[i].name ? strlen(a->groups[i].name) + 1 : 0);
    return bytes;
}

void arrangement_free(struct arrangement *a)
{
    if (!a)
        return;
    for (size_t i = 0; i < a->n_groups; i++)
        free(a->groups[i].name);
    free(a->tensors);
    free(a->gathers);
    free(a->group_of);
    free(a->order);
    free(a->members);
    free(a->groups);
    free(a);
}
