/* By which names a model is called to whom.
 *
 * Two models may have the same name: who gave it to one of them did not see the other. So a name may mean one model to
 * one user, and another model to another. A client is told only those names of a model that mean it to the client's
 * user, as registry_find() decides; and "NAME#ID" if none does.
 *
 * Loop thread only. */
#pragma once

#include "daemon/model/model.h"

#include <stdint.h>

/* How many are noted. If there are more, all models of the registry are looked at for each peer. */
#define RIVALS_MAX 8u

/* The other models that have a name of this model, whoever sees them. Most models have none. */
struct rivals {
    const struct model *model;
    size_t n; /* more than RIVALS_MAX: only the first were noted */
    const struct model *models[RIVALS_MAX];
};

/* Takes the time of looking at all names, whoever asks for it later. Valid until a model comes or goes, or a name. */
void rivals_find(const struct model *model, struct rivals *ret);

/* Which names of the model mean it to this peer: bit 0 stands for the first of model->names, bit 1 for the second. If
 * the peer does not see the model: those that mean no other model to it. A model that has a name of this one, and that
 * the peer does not see, makes this longer by one call of model_sight(). */
uint32_t calling_names(const struct rivals *rivals, const struct peer *peer);

/* The first of these names; "NAME#ID" if there is none. It is valid as long as the model's name and `room`. */
const char *calling_first(const struct model *model, uint32_t names, char room[MODEL_NAME_SIZE]);

/* The name that this peer is told: these three together. */
const char *model_called(const struct model *model, const struct peer *peer, char room[MODEL_NAME_SIZE]);
