/* Looks, when asked, whether the paths of all models still lead to the bytes that these were made of.
 *
 * One model after the other. A path that leads to another file, or to one of another size, counts as changed; a file
 * that was touched is compared as Verify does. The other file is not opened: that is for who may read it, in a call of
 * Load, which finds out if it has the same bytes all the same. Loop thread only. */
#pragma once

#include "daemon/api/verify.h"
#include "daemon/load/load.h"

struct changes;

/* -ENOMEM. */
int changes_new(struct loads *loads, struct verifies *verifies, struct changes **ret);

/* Looks now, or again as soon as the last look is over. */
void changes_look(struct changes *changes);

/* NULL is fine. No look is under way. */
void changes_free(struct changes *changes);
