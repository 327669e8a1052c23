#include "daemon/model/model.h"

#include "daemon/base/state.h"
#include "daemon/base/trust.h"
#include "proto/array.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct state states[] = {
    [MODEL_OPENING] = {"opening",
                       STATE(MODEL_QUEUED) | STATE(MODEL_ALLOCATING) | STATE(MODEL_UNLOADING) | STATE(MODEL_RESIDENT)},
    [MODEL_QUEUED] = {"queued", STATE(MODEL_ALLOCATING) | STATE(MODEL_UNLOADING)},
    [MODEL_ALLOCATING] = {"allocating", STATE(MODEL_QUEUED) | STATE(MODEL_FILLING) | STATE(MODEL_UNLOADING)},
    [MODEL_FILLING] = {"filling", STATE(MODEL_SEALING) | STATE(MODEL_UNLOADING)},
    [MODEL_SEALING] = {"sealing", STATE(MODEL_RESIDENT) | STATE(MODEL_UNLOADING)},
    [MODEL_RESIDENT] = {"resident",
                        STATE(MODEL_DRAINING) | STATE(MODEL_UNLOADING) | STATE(MODEL_SAVING) | STATE(MODEL_FAILED)},
    [MODEL_DRAINING] = {"draining", STATE(MODEL_UNLOADING)},
    [MODEL_UNLOADING] = {"unloading", STATE(MODEL_CACHED)},
    [MODEL_FAILED] = {"failed", STATE(MODEL_DRAINING) | STATE(MODEL_UNLOADING)},
    [MODEL_SAVING] = {"saving", STATE(MODEL_CACHED)},
    [MODEL_CACHED] = {"cached", STATE(MODEL_ALLOCATING)},
};

static const struct state_machine machine = STATE_MACHINE(states);

const char *model_state_name(enum model_state state)
{
    return state_name(&machine, state);
}

bool model_may_move(enum model_state from, enum model_state to)
{
    return (from == to && from < MODEL_STATE_COUNT) || state_may_follow(&machine, from, to);
}

void model_move(struct model *model, enum model_state state)
{
    if (state != model->state)
        state_move(&machine, &model->state, state);
    model_mark_dirty(model);
}

void model_mark_dirty(struct model *model)
{
    if (model->dirty || !model->dirty_in)
        return;
    model->dirty = true;
    TAILQ_INSERT_TAIL(&model->dirty_in->models, model, dirty_link);
    model->dirty_in->n++;
}

void model_set_pinned(struct model *model, bool pinned)
{
    model->pinned = pinned;
    model_mark_dirty(model);
}

void model_set_ttl(struct model *model, int64_t ttl)
{
    model->ttl = ttl;
    model_mark_dirty(model);
}

void model_set_changed(struct model *model, bool changed)
{
    model->changed = changed;
    model_mark_dirty(model);
}

void model_set_deleted(struct model *model, bool deleted)
{
    model->deleted = deleted;
    model_mark_dirty(model);
}

void model_set_origin(struct model *model, char *origin)
{
    free(model->origin);
    model->origin = origin;
    model_mark_dirty(model);
}

void model_widen(struct model *model)
{
    model->access = ACCESS_PUBLIC;
    model_mark_dirty(model);
}

bool model_may_end(const struct model *model, uid_t uid)
{
    return uid == model->uid || trusted_user(uid);
}

bool model_departs(const struct model *model)
{
    return model->state == MODEL_UNLOADING || model->departs;
}

bool model_lost(const struct model *model)
{
    return model->state == MODEL_FAILED || (model->state == MODEL_DRAINING && model->device->failed);
}

struct model_name *model_find_name(const struct model *model, const char *text)
{
    struct model_name *name;
    TAILQ_FOREACH(name, &model->names, link)
    {
        if (strcmp(name->text, text) == 0)
            return name;
    }
    return NULL;
}

bool model_has_name(const struct model *model, const char *name)
{
    return model_find_name(model, name);
}

void model_lose_name(struct model *model)
{
    struct model_name *name;
    while ((name = TAILQ_FIRST(&model->names))) {
        TAILQ_REMOVE(&model->names, name, link);
        free(name);
    }
    model->n_names = 0;
    model_mark_dirty(model);
    const size_t n = strlen(model->name);
    if (!model_nameless(model))
        snprintf(model->name + n, sizeof(model->name) - n, "#%" PRIu64, model->id);
}

bool model_nameless(const struct model *model)
{
    return strchr(model->name, '#');
}

bool model_is_published(const struct model *model)
{
    return model->source->n_files == 0;
}

void model_hold(struct model *model)
{
    model->n_holds++;
}

void model_unhold(struct model *model)
{
    assert(model->n_holds > 0);
    model->n_holds--;
}

static bool is_guest(const struct model *model, uid_t uid)
{
    for (size_t i = 0; i < model->n_guests; i++)
        if (model->guests[i] == uid)
            return true;
    return false;
}

static bool is_reader(const struct model *model, const struct peer *peer)
{
    if (model->access == ACCESS_PRIVATE)
        return false;
    return model->access == ACCESS_PUBLIC || access_permits(model->facts, peer) || is_guest(model, peer->uid);
}

enum sight model_sight(const struct model *model, const struct peer *peer)
{
    if (peer->uid == model->uid)
        return SIGHT_OWN;
    if (is_reader(model, peer))
        return SIGHT_READER;
    return trusted_user(peer->uid) ? SIGHT_TRUSTED : SIGHT_NONE;
}

bool model_visible(const struct model *model, const struct peer *peer)
{
    return model_sight(model, peer) > SIGHT_NONE;
}

bool model_attachable(const struct model *model, const struct peer *peer)
{
    return peer->uid == model->uid || (model->access != ACCESS_PRIVATE && model_visible(model, peer));
}

bool model_joinable(const struct model *model, uid_t uid, bool private)
{
    return model->uid == uid || (!private && model->access != ACCESS_PRIVATE);
}

/* Whether the peer's user would become a guest. */
static bool is_new_guest(const struct model *model, const struct peer *peer)
{
    return model->access != ACCESS_PRIVATE && model_sight(model, peer) < SIGHT_READER;
}

int model_may_admit(const struct model *model, const struct peer *peer)
{
    return is_new_guest(model, peer) && model->n_guests == MODEL_GUESTS_MAX ? -EMLINK : 0;
}

int model_admit(struct model *model, const struct peer *peer)
{
    if (!is_new_guest(model, peer))
        return 0;
    if (model->n_guests == MODEL_GUESTS_MAX)
        return -EMLINK;
    int r = array_resize(&model->guests, model->n_guests + 1, sizeof(*model->guests));
    if (r < 0)
        return r;
    model->guests[model->n_guests++] = peer->uid;
    model_mark_dirty(model);
    return 0;
}

void model_set_source(struct model *model, struct source *source)
{
    source_free(model->source);
    model->source = source;
    model_set_changed(model, false);
}

/* Whether the user may see the model, by its present facts. The user's groups are not known: any group may be one. */
static bool may_see(const struct model *model, uid_t uid)
{
    return uid == model->uid || trusted_user(uid) || model->access == ACCESS_PUBLIC || is_guest(model, uid) ||
           (model->access == ACCESS_READERS && access_may_permit(model->facts, uid));
}

bool model_covered_by(const struct model *model, enum access access, const struct access_facts *facts)
{
    if (access == ACCESS_PUBLIC)
        return true;
    bool covered = access == ACCESS_READERS && model->access != ACCESS_PUBLIC && access_covers(facts, model->facts) &&
                   access_may_permit(facts, model->uid);
    for (size_t i = 0; i < model->n_guests && covered; i++)
        covered = access_may_permit(facts, model->guests[i]);
    return covered;
}

/* A user who no longer sees the model cannot remove the name that he gave it, so it is dropped. */
static void drop_names(struct model *model)
{
    struct model_name *name = TAILQ_FIRST(&model->names), *next;
    for (; name; name = next) {
        next = TAILQ_NEXT(name, link);
        if (may_see(model, name->uid))
            continue;
        if (model->n_names == 1) {
            name->uid = model->uid;
            break;
        }
        TAILQ_REMOVE(&model->names, name, link);
        free(name);
        model->n_names--;
    }
    const struct model_name *first = TAILQ_FIRST(&model->names);
    if (first)
        strcpy(model->name, first->text);
}

/* Guests who may not be able to read the files any more have to pass them once more. */
static void drop_guests(struct model *model, const struct access_facts *facts)
{
    size_t n = 0;
    for (size_t i = 0; i < model->n_guests; i++)
        if (!access_lost(model->facts, facts, model->guests[i]))
            model->guests[n++] = model->guests[i];
    model->n_guests = n;
}

void model_set_facts(struct model *model, struct access_facts *facts)
{
    drop_guests(model, facts);
    access_facts_unref(model->facts);
    model->facts = facts;
    model_mark_dirty(model);
    if (facts)
        drop_names(model);
}

void model_narrow(struct model *model)
{
    model->access = ACCESS_PRIVATE;
    model_mark_dirty(model);
    drop_names(model);
}

bool model_in_use(const struct model *model)
{
    return model->n_leases > 0 || model->n_holds > 0;
}

bool model_same_words(const struct model *model, const struct forms *forms, const struct layout *layout)
{
    return forms_equal(model->forms, forms) && layout_equal(model->layout, layout);
}

bool model_same_forms(const struct model *model, const struct forms *forms, const struct layout *layout,
                      const struct plan *plan)
{
    return model_same_words(model, forms, layout) || (plan && model->plan && plan_same(model->plan, plan));
}
