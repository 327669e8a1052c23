/* The calls that wait for a load, and what each of them waits for.
 *
 * Loop thread only. */
#pragma once

#include "daemon/wire/conn.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

enum waiter_kind {
    WAIT_RESIDENT,  /* Load */
    WAIT_LEASE,     /* Load, with a lease once it is resident */
    WAIT_JOINED,    /* Load, of a model that another call began to load */
    WAIT_ALLOCATED, /* Load, with wait: false */
    WAIT_ATTACH,    /* Attach: a lease, once it is resident */
    WAIT_CREATE,    /* Create: memory to write to; or a lease, if the model is there or is copied back to its device */
    WAIT_END,       /* Cancel: until the load has ended */
};

struct model;
struct waiter;

struct waiters {
    TAILQ_HEAD(, waiter) list;
    /* The client of the last call has gone. The owner may free the waiters in this function. */
    void (*deserted)(struct waiters *waiters);
};

void waiters_init(struct waiters *waiters, void (*deserted)(struct waiters *waiters));

bool waiters_empty(const struct waiters *waiters);

/* Returns false, after the call was failed, if memory is short. */
bool waiters_add(struct waiters *waiters, struct call *call, enum waiter_kind kind);

/* Calls may wait for memory, in the queue, for a shorter time than the load does: sets until when, by uv_hrtime(), for
 * all that are there. A call for which this was never set waits as long as the load. */
void waiters_set_patience(struct waiters *waiters, uint64_t ends);

/* There is a call whose patience is over. */
bool waiters_impatient(const struct waiters *waiters, uint64_t now);

/* Takes the first such call out, for the caller to answer. NULL if there is none. */
struct call *waiters_take_impatient(struct waiters *waiters, uint64_t now);

/* Takes the first call of a kind out, for the caller to answer. NULL if there is none. */
struct call *waiters_take(struct waiters *waiters, enum waiter_kind kind);

/* Takes the first call out, whatever it waits for. NULL if there is none. */
struct call *waiters_take_any(struct waiters *waiters, enum waiter_kind *ret_kind);

/* Appends all calls to those of another load, which they join. */
void waiters_move(struct waiters *from, struct waiters *to);

/* Sends a reply about the model to each call that accepts several replies (`more`) and whose client has read the
 * earlier ones. `describe` makes the reply, once for all that get the same: for those to whom these names mean the
 * model. */
void waiters_tell(struct waiters *waiters, const struct model *model, cJSON *(*describe)(void *context, uint32_t names),
                  void *context);
