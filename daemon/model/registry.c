#include "daemon/model/registry.h"

#include "daemon/base/trust.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void registry_init(struct registry *registry, struct quota *quota)
{
    *registry = (struct registry){.next_model = 1, .next_lease = 1, .quota = quota};
    TAILQ_INIT(&registry->models);
}

/* The model's name that equals the text; NULL if there is none. */
static const struct model_name *name_meant(const struct model *model, const char *text)
{
    const struct model_name *name;
    TAILQ_FOREACH(name, &model->names, link)
    {
        if (strcmp(name->text, text) == 0)
            return name;
    }
    return NULL;
}

/* Whether the text is "NAME#ID" with the model's id, and NAME a name that it has, or had before it lost it. */
static bool is_full_name(const struct model *model, const char *text)
{
    char number[24];
    snprintf(number, sizeof(number), "#%" PRIu64, model->id);
    const char *hash = strrchr(text, '#');
    const size_t n = hash ? (size_t)(hash - text) : 0;
    if (!hash || strcmp(hash, number) != 0 || n > MODEL_NAME_MAX)
        return false;
    char name[MODEL_NAME_SIZE] = "";
    memcpy(name, text, n);
    return model_has_name(model, name) || (strncmp(model->name, name, n) == 0 && model->name[n] == '#');
}

/* Whether a found model is better than the best one so far; registry_find() says which is better. */
static bool is_better(enum sight sight, const struct model_name *name, enum sight best_sight,
                      const struct model_name *best)
{
    if (sight != best_sight)
        return sight > best_sight;
    const bool trusted = trusted_user(name->uid), best_trusted = trusted_user(best->uid);
    return trusted != best_trusted ? trusted : name->since < best->since;
}

struct model *registry_find(const struct registry *registry, const char *name, const struct peer *peer)
{
    struct model *model, *found = NULL;
    const struct model_name *best = NULL;
    enum sight best_sight = SIGHT_NONE;
    TAILQ_FOREACH(model, &registry->models, link)
    {
        /* This is the slow part. It is done for every model, before names are compared, so that the time shows nothing
         * about names. */
        const enum sight sight = model_sight(model, peer);
        if (sight == SIGHT_NONE)
            continue;
        if (is_full_name(model, name))
            return model;
        const struct model_name *meant = name_meant(model, name);
        if (!meant || (found && !is_better(sight, meant, best_sight, best)))
            continue;
        found = model;
        best = meant;
        best_sight = sight;
    }
    return found;
}

struct model *registry_find_id(const struct registry *registry, uint64_t id)
{
    struct model *model;
    TAILQ_FOREACH(model, &registry->models, link)
    {
        if (model->id == id)
            return model;
    }
    return NULL;
}

struct model *registry_holder(const struct registry *registry, const char *name, const struct peer *peer)
{
    struct model *model = registry_find(registry, name, peer);
    if (model && model_sight(model, peer) >= SIGHT_READER)
        return model;
    TAILQ_FOREACH(model, &registry->models, link)
    {
        if (strcmp(model->takes, name) == 0 && model_sight(model, peer) >= SIGHT_READER)
            return model;
    }
    return NULL;
}

int registry_name(struct registry *registry, struct model *model, const char *name, uid_t uid)
{
    if (model->n_names == MODEL_NAMES_MAX)
        return -EMLINK;
    struct model_name *own = calloc(1, sizeof(*own));
    if (!own)
        return -ENOMEM;
    own->since = registry->next_name++;
    own->uid = uid;
    memcpy(own->text, name, strnlen(name, MODEL_NAME_MAX));
    TAILQ_INSERT_TAIL(&model->names, own, link);
    model->n_names++;
    return 0;
}

int registry_take_names(struct registry *registry, struct model *from, struct model *to, bool all)
{
    int r = 0;
    struct model_name *name, *next;
    for (name = from ? TAILQ_FIRST(&from->names) : NULL; name; name = next) {
        next = TAILQ_NEXT(name, link);
        if (!all && strcmp(name->text, to->takes) != 0)
            continue;
        TAILQ_REMOVE(&from->names, name, link);
        from->n_names--;
        if (to->n_names == MODEL_NAMES_MAX || model_has_name(to, name->text)) {
            free(name);
            continue;
        }
        TAILQ_INSERT_TAIL(&to->names, name, link);
        to->n_names++;
    }
    if (to->takes[0] && !model_has_name(to, to->takes))
        r = registry_name(registry, to, to->takes, to->uid);
    to->takes[0] = '\0';
    if (r == 0)
        strcpy(to->name, TAILQ_FIRST(&to->names)->text);
    if (from && from->n_names == 0)
        model_lose_name(from);
    else if (from)
        strcpy(from->name, TAILQ_FIRST(&from->names)->text);
    return r;
}

bool registry_unname(struct model *model, const char *name)
{
    struct model_name *own;
    TAILQ_FOREACH(own, &model->names, link)
    {
        if (strcmp(own->text, name) == 0)
            break;
    }
    if (!own || model->n_names == 1)
        return model->n_names > 1;
    TAILQ_REMOVE(&model->names, own, link);
    free(own);
    model->n_names--;
    strcpy(model->name, TAILQ_FIRST(&model->names)->text);
    return true;
}

/* Whether the model matches the query; its forms are not compared. */
static bool is_of_source(const struct model *model, const struct registry_query *query)
{
    const bool private = model->access == ACCESS_PRIVATE;
    const bool shown = query->owner ? private && model->uid == *query->owner : !private;
    return shown && !model->changed && model->state != MODEL_DRAINING && model->state != MODEL_FAILED &&
           device_set_has(query->among, model->device) && source_equal(model->source, query->source);
}

struct model *registry_find_source(const struct registry *registry, const struct registry_query *query)
{
    struct model *model;
    TAILQ_FOREACH(model, &registry->models, link)
    {
        if (is_of_source(model, query) && model_same_forms(model, query->forms, query->plan))
            return model;
    }
    return NULL;
}

/* Whether both have the same path, or the same file under different paths. */
static bool is_of_place(const struct source *a, const struct source *b)
{
    const struct identity *x = &a->files[0].identity, *y = &b->files[0].identity;
    return (a->path && b->path && strcmp(a->path, b->path) == 0) || (x->dev == y->dev && x->ino == y->ino);
}

struct model *registry_find_doubtful(const struct registry *registry, const struct registry_query *query,
                                     uint64_t after)
{
    struct model *model;
    TAILQ_FOREACH(model, &registry->models, link)
    {
        const bool private = model->access == ACCESS_PRIVATE;
        const bool shown = query->owner ? private && model->uid == *query->owner : !private;
        if (shown && model->id > after && model->state != MODEL_DRAINING && model->state != MODEL_FAILED &&
            device_set_has(query->among, model->device) && is_of_place(model->source, query->source) &&
            source_same_sizes(model->source, query->source) && model_same_forms(model, query->forms, query->plan) &&
            (model->changed || !source_same(model->source, query->source)))
            return model;
    }
    return NULL;
}

struct model *registry_find_other(const struct registry *registry, const struct registry_query *query, bool unplanned)
{
    struct model *model;
    TAILQ_FOREACH(model, &registry->models, link)
    {
        if (is_of_source(model, query) && !forms_equal(model->forms, query->forms) && (!unplanned || !model->plan))
            return model;
    }
    return NULL;
}

int registry_add(struct registry *registry, struct model *model)
{
    TAILQ_INIT(&model->names);
    if (!model->takes[0] && registry_name(registry, model, model->name, model->uid) < 0)
        return -ENOMEM;
    uint64_t unused;
    if (registry->quota && quota_take(registry->quota, model->uid, QUOTA_BYTES, 0, &model->quota, &unused) < 0) {
        model_lose_name(model);
        return -ENOMEM;
    }
    model->id = registry->next_model++;
    if (model->takes[0])
        model_lose_name(model);
    TAILQ_INSERT_TAIL(&registry->models, model, link);
    registry->n_models++;
    return 0;
}

void registry_remove(struct registry *registry, struct model *model)
{
    assert(LIST_EMPTY(&model->leases) && !model->arena && !model->load && !model->cache && model->reserved == 0);
    TAILQ_REMOVE(&registry->models, model, link);
    registry->n_models--;
    publication_clear(&model->published);
    registry_discharge(model);
    quota_return(&model->quota);
    plan_free(model->plan);
    gguf_free(model->header);
    source_free(model->source);
    model_lose_name(model);
    model_set_facts(model, NULL);
    free(model->guests);
    free(model->origin);
    forms_unref(model->forms);
    free(model);
}

void registry_reserve(struct model *model, uint64_t bytes)
{
    model->device->used += bytes;
    model->reserved += bytes;
    quota_set(&model->quota, model->reserved + model->charged);
}

void registry_unreserve(struct model *model)
{
    assert(model->device->used >= model->reserved);
    model->device->used -= model->reserved;
    model->reserved = 0;
    quota_set(&model->quota, model->charged);
}

uint64_t registry_due(const struct model *model, uint64_t bytes)
{
    const uint64_t kept = (model ? model->kept : 0) + bytes;
    return kept > REGISTRY_KEPT_FREE ? kept - REGISTRY_KEPT_FREE - (model ? model->charged : 0) : 0;
}

void registry_charge(struct model *model, struct device *host, uint64_t bytes)
{
    const uint64_t due = registry_due(model, bytes);
    host->used += due;
    atomic_fetch_add(&host->taken, due); /* the caller has allocated this memory already */
    model->kept += bytes;
    model->charged += due;
    quota_set(&model->quota, model->reserved + model->charged);
    model->charged_to = host;
}

void registry_discharge(struct model *model)
{
    if (model->charged_to) {
        model->charged_to->used -= model->charged;
        atomic_fetch_sub(&model->charged_to->taken, model->charged);
    }
    model->charged = 0;
    quota_set(&model->quota, model->reserved);
    model->charged_to = NULL;
}

void registry_lose_device(struct registry *registry, struct device *device)
{
    struct model *model;
    TAILQ_FOREACH(model, &registry->models, link)
    {
        if (model->device != device || model->state != MODEL_RESIDENT)
            continue;
        model_move(model, MODEL_FAILED);
        if (registry->model_failed)
            registry->model_failed(registry->context, model);
    }
}
