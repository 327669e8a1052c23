/* Lets resident models outlive the daemon: keeps their descriptors and descriptions in the store of the service manager
 * (store.h) up to date, and takes them back at the start (resume.h).
 *
 * Models are kept whose memory is exported as a descriptor, while they are resident and have a name. What a client
 * asked for since the loop last slept may be lost with the process.
 *
 * A model that was taken back is not freed for a time of grace, as if a client had a lease on it: so clients have the
 * time to take their leases up again.
 *
 * Loop thread only. */
#pragma once

#include "daemon/keep/store.h"
#include "daemon/memory/residency.h"

/* The default time of grace in seconds. */
#define KEEP_GRACE_DEFAULT 30

struct keep;

/* grace: in seconds. 0 and a struct that the caller ends with keep_close(); or a negative errno. Without a store
 * nothing is kept. The residency tells it which models are unloaded. */
int keep_new(struct residency *residency, unsigned grace, struct keep **ret);

/* Takes models back from what the store had; once, at the start, before clients are served. What does not check out is
 * dropped, and removed from the store. Takes over all descriptors. The entries are sorted anew.
 *
 * awaits: the GPUs are not among the devices yet, because their drivers take long to start. Models that were kept on
 * them are taken back all the same, so that clients can attach to them and take their leases again; the caller calls
 * keep_settle() later, and meanwhile has nothing else done with models. */
void keep_resume(struct keep *keep, struct store_entry *entries, size_t n, bool awaits);

/* All GPUs are there. A model whose GPU is not, or is another one, or cannot take its memory over, is dropped: who has
 * attached to it meanwhile is told by draining, and it is freed when they have let go. The time of grace begins. */
void keep_settle(struct keep *keep);

/* The daemon stops: the store stays as it is. Models are not held any longer. */
void keep_stop(struct keep *keep);

/* After keep_stop(). The memory is freed when the loop has closed the handles. NULL is fine. */
void keep_close(struct keep *keep);
