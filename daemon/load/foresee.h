/* What would become of a load, as far as it depends on the models that are there. For Plan.
 *
 * Loop thread only. */
#pragma once

#include "daemon/load/failure.h"
#include "daemon/load/load.h"

/* request: only forms, layout, among, name, path, access, peer, uid, trusted and replace are read. source, facts and
 * plan are borrowed: the files of the request, who may read them, and the plan for them. *ret_model: with LOAD_QUEUED
 * the model in the queue; else the model that the load would join, even if it is refused; NULL: it would make a new
 * one. That model gets the facts if they were read at its own place; nothing else changes.
 *
 * plan NULL: the file's header cannot be read. Load decides what it can before it reads one. *ret_failure is what it
 * would fail with then; none with LOAD_JOIN and LOAD_RESTORE, and with LOAD_NEW: then it would read the header. */
enum load_verdict load_foresee(struct loads *loads, const struct load_request *request, struct source *source,
                               struct access_facts *facts, struct plan *plan, struct model **ret_model,
                               struct failure *ret_failure);
