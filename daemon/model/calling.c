#include "daemon/model/calling.h"

#include "daemon/model/registry.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* A list of models asks this of each two of them. */
static bool share_name(const struct model *a, const struct model *b)
{
    const struct model_name *name, *other;
    TAILQ_FOREACH(name, &a->names, link)
    {
        TAILQ_FOREACH(other, &b->names, link)
        {
            if (name->mark == other->mark && strcmp(name->text, other->text) == 0)
                return true;
        }
    }
    return false;
}

void rivals_find(const struct model *model, struct rivals *ret)
{
    *ret = (struct rivals){.model = model};
    const struct model *other = model->registry ? TAILQ_FIRST(&model->registry->models) : NULL;
    for (; other && ret->n <= RIVALS_MAX; other = TAILQ_NEXT(other, link)) {
        if (other == model || !share_name(model, other))
            continue;
        if (ret->n < RIVALS_MAX)
            ret->models[ret->n] = other;
        ret->n++;
    }
}

/* The names without those that mean `other` to the peer. */
static uint32_t names_left(const struct model *model, enum sight sight, uint32_t names, const struct model *other,
                           const struct peer *peer)
{
    const enum sight others_sight = model_sight(other, peer);
    if (others_sight == SIGHT_NONE)
        return names;
    const struct model_name *name;
    uint32_t bit = 1;
    TAILQ_FOREACH(name, &model->names, link)
    {
        const struct model_name *others = model_find_name(other, name->text);
        if (others && registry_prefers(others_sight, others, sight, name))
            names &= ~bit;
        bit <<= 1;
    }
    return names;
}

uint32_t calling_names(const struct rivals *rivals, const struct peer *peer)
{
    const struct model *model = rivals->model, *other;
    uint32_t names = ((uint32_t)1 << model->n_names) - 1;
    if (rivals->n == 0)
        return names;
    const enum sight sight = model_sight(model, peer);
    for (size_t i = 0; i < rivals->n && rivals->n <= RIVALS_MAX; i++)
        names = names_left(model, sight, names, rivals->models[i], peer);
    if (rivals->n <= RIVALS_MAX)
        return names;
    TAILQ_FOREACH(other, &model->registry->models, link)
    {
        if (other != model && share_name(model, other))
            names = names_left(model, sight, names, other, peer);
    }
    return names;
}

const char *calling_first(const struct model *model, uint32_t names, char room[MODEL_NAME_SIZE])
{
    const struct model_name *name;
    TAILQ_FOREACH(name, &model->names, link)
    {
        if (names & 1)
            return name->text;
        names >>= 1;
    }
    if (model_nameless(model))
        return model->name;
    snprintf(room, MODEL_NAME_SIZE, "%.*s#%" PRIu64, (int)MODEL_NAME_MAX, model->name, model->id);
    return room;
}

const char *model_called(const struct model *model, const struct peer *peer, char room[MODEL_NAME_SIZE])
{
    struct rivals rivals;
    rivals_find(model, &rivals);
    return calling_first(model, calling_names(&rivals, peer), room);
}
