/* Closes files of clients, on a worker: close() of a file in a file system of some user (FUSE) waits until that
 * answers, which may be never. The loop closes no descriptor that a client has sent. One worker at a time closes those
 * of a user, so what one user's files wait for delays nobody else; they count as the user's descriptors until they are
 * closed.
 *
 * Loop thread only. */
#pragma once

#include "daemon/base/core.h"
#include "daemon/base/quota.h"

struct closer;

/* Both outlive it. -ENOMEM. */
int closer_new(struct core *core, struct quota *quota, struct closer **ret);

/* Nothing is to be closed any more: no job of the core is under way. NULL is fine. */
void closer_free(struct closer *closer);

/* A user for whom this is true shall not send more descriptors now: CLOSER_MANY are to be closed first, and they will
 * be. It becomes false when they are, and also when their file system does not answer: then the user's quota is the
 * limit. `changed` is called when it may have become false. */
#define CLOSER_MANY 16u
bool closer_is_busy(const struct closer *closer, uid_t uid);
void closer_watch(struct closer *closer, void (*changed)(void *context), void *context);

/* Closes a descriptor, soon. closer NULL, or no memory: at once. */
void closer_close(struct closer *closer, uid_t uid, int fd);
