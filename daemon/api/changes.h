/* Checks, when asked, whether the paths of each model still lead to the bytes that the model was made of, or is being
 * made of.
 *
 * One model after the other. If a path leads to another file, or the size is another, the model counts as changed. If
 * the files are the same but were touched, their bytes are compared with the model's, as Verify does, if it is resident
 * or cached: a load looks itself whether its file was touched. They are compared
 * as well if a model counts as changed, but its paths lead to its files again: then it may not be changed any more.
 * Another file at a path is not opened here. When a user who may read
 * it calls Load, Load compares its bytes: they may be the same. Loop thread only. */
#pragma once

#include "daemon/load/load.h"
#include "daemon/load/verify.h"

struct changes;

/* 0 or -ENOMEM. Both are borrowed. */
int changes_new(struct loads *loads, struct verifies *verifies, struct changes **ret);

/* Begins a check of all models. If one is under way, another follows when it is over. */
void changes_look(struct changes *changes);

/* No check is under way. NULL is fine. */
void changes_free(struct changes *changes);
