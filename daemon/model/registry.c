#include "daemon/model/registry.h"

#include "daemon/base/trust.h"
#include "daemon/model/source_compare.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

void registry_init(struct registry *registry, struct quota *quota)
{
    *registry = (struct registry){.next_model = 1, .next_lease = 1, .quota = quota};
    TAILQ_INIT(&registry->models);
    TAILQ_INIT(&registry->dirty.models);
}

struct model *registry_take_dirty(struct registry *registry)
{
    struct model *model = TAILQ_FIRST(&registry->dirty.models);
    if (!model)
        return NULL;
    TAILQ_REMOVE(&registry->dirty.models, model, dirty_link);
    registry->dirty.n--;
    model->dirty = false;
    return model;
}

/* The registry has the model from now on. */
static void registry_insert(struct registry *registry, struct model *model)
{
    TAILQ_INSERT_TAIL(&registry->models, model, link);
    registry->n_models++;
    model->dirty_in = &registry->dirty;
    model->registry = registry;
    model_mark_dirty(model);
}

static void registry_extract(struct registry *registry, struct model *model)
{
    TAILQ_REMOVE(&registry->models, model, link);
    registry->n_models--;
    if (model->dirty) {
        TAILQ_REMOVE(&registry->dirty.models, model, dirty_link);
        registry->dirty.n--;
        model->dirty = false;
    }
    model->dirty_in = NULL;
    model->registry = NULL;
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

bool registry_prefers(enum sight sight, const struct model_name *name, enum sight other_sight,
                      const struct model_name *other)
{
    if (sight != other_sight)
        return sight > other_sight;
    const bool trusted = trusted_user(name->uid), other_trusted = trusted_user(other->uid);
    return trusted != other_trusted ? trusted : name->since < other->since;
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
        const struct model_name *meant = model_find_name(model, name);
        if (!meant || (found && !registry_prefers(sight, meant, best_sight, best)))
            continue;
        found = model;
        best = meant;
        best_sight = sight;
    }
    return found;
}

struct model *registry_find_hidden(const struct registry *registry, const char *name, const struct peer *peer,
                                   uint64_t after)
{
    struct model *model;
    TAILQ_FOREACH(model, &registry->models, link)
    {
        if (model->id > after && model->access == ACCESS_READERS && !model_visible(model, peer) &&
            (model_has_name(model, name) || is_full_name(model, name)))
            return model;
    }
    return NULL;
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

struct model *registry_name_owner(const struct registry *registry, const char *name, const struct peer *peer)
{
    struct model *model = registry_find(registry, name, peer);
    return model && model_sight(model, peer) >= SIGHT_READER ? model : registry_taker(registry, name, peer);
}

struct model *registry_taker(const struct registry *registry, const char *name, const struct peer *peer)
{
    struct model *model;
    TAILQ_FOREACH(model, &registry->models, link)
    {
        if (strcmp(model->takes, name) == 0 && model_sight(model, peer) >= SIGHT_READER)
            return model;
    }
    return NULL;
}

static size_t names_of(const struct model *model, uid_t uid)
{
    size_t n = 0;
    const struct model_name *name;
    TAILQ_FOREACH(name, &model->names, link)
    {
        n += name->uid == uid;
    }
    return n;
}

int registry_may_name(const struct model *model, uid_t uid)
{
    const bool own = uid == model->uid || trusted_user(uid);
    const size_t n = model->n_names + (model->takes[0] ? 1 : 0);
    if (n >= (own ? MODEL_NAMES_MAX : MODEL_NAMES_MAX - MODEL_GIVEN_MAX))
        return -EMLINK;
    return own || names_of(model, uid) < MODEL_GIVEN_MAX ? 0 : -EDQUOT;
}

/* The hash FNV-1a of 32 bits: http://www.isthe.com/chongo/tech/comp/fnv/. */
static uint32_t mark_of(const char *text)
{
    uint32_t mark = 2166136261u;
    for (; *text; text++)
        mark = (mark ^ (uint8_t)*text) * 16777619u;
    return mark;
}

/* Adds a name without a look at the limits. -ENOMEM. */
static int name_add(struct registry *registry, struct model *model, const char *text, uid_t uid)
{
    struct model_name *name = calloc(1, sizeof(*name));
    if (!name)
        return -ENOMEM;
    name->since = registry->next_name++;
    name->uid = uid;
    memcpy(name->text, text, strnlen(text, MODEL_NAME_MAX));
    name->mark = mark_of(name->text);
    TAILQ_INSERT_TAIL(&model->names, name, link);
    model->n_names++;
    model_mark_dirty(model);
    return 0;
}

int registry_name(struct registry *registry, struct model *model, const char *name, uid_t uid)
{
    const int r = registry_may_name(model, uid);
    return r < 0 ? r : name_add(registry, model, name, uid);
}

/* Moves a name, or drops it if the other model has it too. */
static void name_move(struct model_name *name, struct model *from, struct model *to)
{
    model_mark_dirty(from);
    model_mark_dirty(to);
    TAILQ_REMOVE(&from->names, name, link);
    from->n_names--;
    if (model_has_name(to, name->text)) {
        free(name);
        return;
    }
    TAILQ_INSERT_TAIL(&to->names, name, link);
    to->n_names++;
}

/* Moves the name that `to` takes, or makes it. -ENOMEM. */
static int take_name(struct registry *registry, struct model *from, struct model *to, uid_t uid)
{
    char text[sizeof(to->takes)];
    strcpy(text, to->takes);
    to->takes[0] = '\0';
    struct model_name *name = from ? model_find_name(from, text) : NULL;
    if (name) {
        name->uid = uid;
        name_move(name, from, to);
        return 0;
    }
    return model_has_name(to, text) ? 0 : name_add(registry, to, text, uid);
}

int registry_take_names(struct registry *registry, struct model *from, struct model *to, bool all, uid_t uid)
{
    const int r = take_name(registry, from, to, uid);
    struct model_name *name = from && all ? TAILQ_FIRST(&from->names) : NULL, *next;
    for (; name && to->n_names < MODEL_NAMES_MAX; name = next) {
        next = TAILQ_NEXT(name, link);
        if (trusted_user(name->uid) && !trusted_user(uid))
            name->uid = uid;
        name_move(name, from, to);
    }
    const struct model_name *first = TAILQ_FIRST(&to->names), *left = from ? TAILQ_FIRST(&from->names) : NULL;
    if (first)
        strcpy(to->name, first->text);
    if (left)
        strcpy(from->name, left->text);
    else if (from)
        model_lose_name(from);
    return r;
}

bool registry_unname(struct model *model, const char *name)
{
    struct model_name *own = model_find_name(model, name);
    if (!own || model->n_names == 1)
        return model->n_names > 1;
    TAILQ_REMOVE(&model->names, own, link);
    free(own);
    model->n_names--;
    model_mark_dirty(model);
    strcpy(model->name, TAILQ_FIRST(&model->names)->text);
    return true;
}

/* Whether the model matches the query; its forms are not compared. */
static bool is_of_source(const struct model *model, const struct registry_query *query)
{
    return model_joinable(model, query->uid, query->private) && !model->changed && model->state != MODEL_DRAINING &&
           model->state != MODEL_FAILED && device_set_has(query->among, model->device) &&
           source_equal(model->source, query->source);
}

struct model *registry_find_source(const struct registry *registry, const struct registry_query *query)
{
    struct model *model, *found = NULL;
    TAILQ_FOREACH(model, &registry->models, link)
    {
        if (!is_of_source(model, query) || !model_same_forms(model, query->forms, query->layout, query->plan))
            continue;
        if (model->access == ACCESS_PRIVATE)
            return model;
        if (!found)
            found = model;
    }
    return found;
}

bool registry_same_path(const struct model *model, const struct source *source)
{
    const struct source *of = model->source;
    return (of->link && source->link && strcmp(of->link, source->link) == 0) || source_same_paths(of, source);
}

bool registry_same_place(const struct model *model, const struct source *source)
{
    return registry_same_path(model, source) || source_same_places(model->source, source);
}

/* The same files by whatever paths; or the same places. All of them: the peer chose the files, and one that it may read
 * says nothing of the others. A model that the peer does not see must not be found by its paths: the answer would tell
 * of it. */
static bool is_of_place(const struct model *model, const struct registry_query *query)
{
    if (model_is_published(model))
        return false;
    return source_same_files(model->source, query->source) ||
           (registry_same_place(model, query->source) && model_sight(model, query->peer) >= SIGHT_READER);
}

struct model *registry_find_doubtful(const struct registry *registry, const struct registry_query *query,
                                     uint64_t after)
{
    struct model *model;
    TAILQ_FOREACH(model, &registry->models, link)
    {
        if (model_joinable(model, query->uid, query->private) && model->id > after && model->state != MODEL_DRAINING &&
            model->state != MODEL_FAILED && device_set_has(query->among, model->device) && is_of_place(model, query) &&
            source_same_sizes(model->source, query->source) &&
            model_same_forms(model, query->forms, query->layout, query->plan) &&
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
        if (is_of_source(model, query) && !model_same_words(model, query->forms, query->layout) &&
            (!unplanned || !model->plan))
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
    int r = registry->quota ? quota_take(registry->quota, model->uid, QUOTA_MODELS, 1, &model->counted, &unused) : 0;
    if (r == 0 && registry->quota)
        r = quota_take(registry->quota, model->uid, QUOTA_BYTES, 0, &model->quota, &unused);
    if (r < 0) {
        quota_return(&model->counted);
        model_lose_name(model);
        return -ENOMEM;
    }
    /* Without random numbers it has no token: then it is not found by one. */
    if (getrandom(model->token, sizeof(model->token), GRND_NONBLOCK) != (ssize_t)sizeof(model->token))
        memset(model->token, 0, sizeof(model->token));
    model->id = registry->next_model++;
    if (model->takes[0])
        model_lose_name(model);
    registry_insert(registry, model);
    return 0;
}

/* The names, oldest first, with the users who gave them. -ENOMEM; -EINVAL. */
static int resume_names(struct registry *registry, struct model *model, const struct model_name *names, size_t n)
{
    if (n == 0 || n > MODEL_NAMES_MAX)
        return -EINVAL;
    for (size_t i = 0; i < n; i++) {
        if (name_add(registry, model, names[i].text, names[i].uid) < 0)
            return -ENOMEM;
        TAILQ_LAST(&model->names, model_names)->since = names[i].since;
        if (registry->next_name <= names[i].since)
            registry->next_name = names[i].since + 1;
    }
    strcpy(model->name, names[0].text);
    return 0;
}

int registry_resume(struct registry *registry, struct model *model, uint64_t id, const struct model_name *names,
                    size_t n_names)
{
    TAILQ_INIT(&model->names);
    if (id < registry->next_model)
        return -EEXIST;
    int r = resume_names(registry, model, names, n_names);
    uint64_t unused;
    if (r == 0 && registry->quota)
        r = quota_take(registry->quota, model->uid, QUOTA_BYTES, 0, &model->quota, &unused) < 0 ? -ENOMEM : 0;
    if (r == 0 && registry->quota)
        r = quota_take_none(registry->quota, model->uid, QUOTA_MODELS, &model->counted);
    if (r < 0) {
        quota_return(&model->quota);
        model_lose_name(model);
        return r;
    }
    quota_set(&model->counted, 1); /* also beyond the limit: it is there */
    model->id = id;
    registry->next_model = id + 1;
    registry_insert(registry, model);
    return 0;
}

struct model *registry_find_token(const struct registry *registry, const uint8_t token[MODEL_TOKEN_SIZE],
                                  const struct peer *peer)
{
    struct model *model, *found = NULL;
    TAILQ_FOREACH(model, &registry->models, link)
    {
        /* All bytes are compared, so that the time does not tell how many are right. */
        uint8_t differs = 0, any = 0;
        for (size_t i = 0; i < MODEL_TOKEN_SIZE; i++) {
            differs |= model->token[i] ^ token[i];
            any |= token[i];
        }
        if (any && differs == 0 && model_attachable(model, peer))
            found = model;
    }
    return found;
}

void registry_remove(struct registry *registry, struct model *model)
{
    assert(LIST_EMPTY(&model->leases) && !model->arena && !model->load && !model->cache && !model->stored &&
           model->reserved == 0);
    registry_extract(registry, model);
    publication_clear(&model->published);
    registry_discharge(model);
    quota_return(&model->quota);
    quota_return(&model->counted);
    plan_free(model->plan);
    model_header_free(model->header);
    manifest_free(model->manifest);
    source_free(model->source);
    model_lose_name(model);
    model_set_facts(model, NULL);
    free(model->guests);
    free(model->origin);
    free(model->key);
    forms_unref(model->forms);
    layout_unref(model->layout);
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
    const uint64_t kept = (model ? model->overhead : 0) + bytes;
    return kept > REGISTRY_OVERHEAD_FREE ? kept - REGISTRY_OVERHEAD_FREE - (model ? model->charged : 0) : 0;
}

void registry_charge(struct model *model, struct device *host, uint64_t bytes)
{
    const uint64_t due = registry_due(model, bytes);
    host->used += due;
    atomic_fetch_add(&host->taken, due); /* the caller has allocated this memory already */
    model->overhead += bytes;
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
