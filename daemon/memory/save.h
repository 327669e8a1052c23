/* Copies an arena to host memory, with several workers: taking new pages from the kernel is most of the work.
 *
 * One worker has the job, and others help. A helper goes back to the queue after each piece, so that other jobs do not
 * wait for the whole copy. */
#pragma once

#include "daemon/base/core.h"
#include "daemon/model/model.h"

#include <stdbool.h>

struct save;

/* loop. Prepares to copy the model's arena, which stays as it is until save_run() returns. host: the host's device.
 * lock: the copy is locked into memory. NULL: no memory; else save_run() is called. */
struct save *save_new(struct core *core, struct model *model, struct device *host, bool lock);

/* worker, once. Returns the copy, as large as the arena, which the caller unmaps; no worker uses the arena any more.
 * NULL if there is no copy: for want of memory that there is or may be locked, or because the device cannot be read;
 * *ret_lost says whether it is lost. */
void *save_run(struct save *save, bool *ret_lost);

/* loop, after save_run(). The memory is freed when the helpers are back. NULL is fine. */
void save_free(struct save *save);
