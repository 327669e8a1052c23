/* The name that a load asks for: whether its model may have it, and how it gets it from the model that has it now.
 * Only files of this folder include this header.
 *
 * Loop thread only. */
#pragma once

#include "daemon/model/model.h"

#include <stdbool.h>

struct load;
struct loads;

enum name_verdict {
    NAME_FREE,      /* no model has it */
    NAME_SOON_FREE, /* its model will be gone or cached soon */
    NAME_REPLACED,  /* its model loses it when the load's model is resident */
    NAME_BUSY,      /* a model of the same file has it, and is draining or lost */
    NAME_TAKEN,     /* another model has it, and keeps it */
    NAME_TOO_MANY,  /* the load's model is there already, and may have no more names */
};

struct naming {
    enum name_verdict verdict;
    struct model *holder;          /* the model that has the name, or will get it, and is not the load's; NULL: none */
    bool is_new;                   /* for who asks, the name does not mean the load's model yet */
    unsigned limit;                /* with NAME_TOO_MANY: how many names it may have */
    char name[MODEL_NAME_MAX + 1]; /* "": the load asks for none */
};

/* The name that a load asks for of a model that is there: the one in its request. Without one, a load with `replace`
 * asks for the name that its file would get, if an older model of the same path has that, and may lose it. NULL: it
 * asks for none. The result borrows from the request, or is in `room`. */
const char *naming_wanted(const struct load *load, const struct model *model, char room[MODEL_NAME_MAX + 1]);

/* Decides, and changes nothing. name: NULL: the load asks for none. model: the model that is there, and that the load
 * would join; NULL: the load makes a new one. */
void naming_judge(const struct load *load, const char *name, const struct model *model, struct naming *ret);

/* Unloads models whose device was lost, if nobody uses them, and they have this name or are of this load's file. They
 * have nothing left to keep. They are gone soon, not at once. */
void naming_clear_lost(const struct load *load, const char *name);

/* Makes the name free for the load's model, as it was judged. Returns false if the load has to wait, because the name
 * is not free yet or the model that it would join is not resident yet (load->blocked); or if the load has failed. */
bool naming_prepare(struct load *load, const char *name, const struct model *model, const struct naming *naming);

/* Gives the name to a model that is there, after naming_prepare(). A cached model gets a name that it takes from
 * another model when it is resident: see naming_switch(). -ENOMEM. */
int naming_give(struct load *load, const char *name, struct model *model);

/* The load's model is resident: if it takes a name from another model, it gets this name now. The other model loses
 * it; if the load's model is the newer version of the other one, it loses all its names. Then naming_retire() ends
 * it. */
void naming_switch(struct load *load, struct model *model);

/* Drains, unloads or drops a model that has lost all its names to another. Returns true; the model may be gone then.
 * Returns false and does nothing if the model has a name or is being loaded. If it is being loaded from host memory,
 * the caller calls this again when that load has ended. */
bool naming_retire(struct loads *loads, struct model *model);
