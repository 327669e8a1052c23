/* What the files of a load share: the load itself, and how it moves. Nothing outside this folder includes this.
 *
 *   load.c      the state machine, and what others may ask of a load
 *   reserve.c   the state in which it gets its memory: who has to go for it, and who came earlier
 *   identify.c  the first state: which model it is, and whether somebody has it already
 *   doubt.c     whether a model that is there still has the bytes of its file
 *   feed.c      chunks on their way, while memory is taken and after
 *   answer.c    what those who wait are told, on the way and at the end
 *   steps.c     the steps that block, on workers; it knows nothing of this header
 *
 * Loop thread only. */
#pragma once

#include "daemon/base/trace.h"
#include "daemon/device/scheduler.h"
#include "daemon/load/failure.h"
#include "daemon/load/fill.h"
#include "daemon/load/load.h"
#include "daemon/load/steps.h"
#include "daemon/session/describe.h"

enum load_state {
    LOAD_IDENTIFYING,
    LOAD_OPENING,
    LOAD_RESERVING,
    LOAD_ALLOCATING,
    LOAD_FILLING,
    LOAD_SEALING,
    LOAD_STOPPING,
    LOAD_RELEASING,
    LOAD_DONE,
};

struct load {
    TAILQ_ENTRY(load) link;
    struct loads *loads;
    struct quota_charge charge; /* of the user who began it */
    enum load_state state;
    struct load_request request; /* its strings are the load's own, its descriptors are gone */
    struct device *device;       /* where it goes, as far as is known; NULL before it was identified */
    struct model *model;         /* NULL before it was identified */
    struct waiters waiters;
    bool detached; /* goes on when nobody waits */
    struct failure failure;

    struct load_job job; /* the worker's while in_job */
    bool in_job;
    bool blocked;           /* until a model that has its name, its file or its memory is gone */
    bool behind;            /* blocked by a queued model that may be of the same file */
    bool was_queued;        /* since its files were looked at */
    bool reserved;          /* the ledger has its bytes */
    bool waits;             /* for memory, so that nobody who came later gets what it waits for */
    bool kept_charged;      /* the ledger has `kept` */
    uint64_t kept;          /* bytes that the daemon itself keeps of the model, as far as known before it is filled */
    uint64_t asked;         /* uv_hrtime() when it last looked whether there is memory */
    uint64_t patience_ends; /* uv_hrtime() until when it may be queued; 0: not at all */
    bool publish_begun;     /* making what clients will be given of the model */
    bool publish_done;
    struct claim claim; /* on memory that others have to let go of first */

    bool restores;    /* a cached model, from host memory */
    uint64_t awaited; /* id of a model on its way to host memory, to be brought back from there; 0: none */
    char awaited_name[MODEL_NAME_SIZE];
    uint64_t compared;       /* id of the last model whose bytes were compared with the file's */
    uint64_t replaces;       /* id of the model whose name this one's gets; 0: none */
    const struct plan *plan; /* what is filled: the model's, or the job's linear one */
    struct consumer consumer;
    size_t next_chunk;
    struct fill *fills; /* one for each slot of the device */
    size_t n_fills;     /* under way */
    uint64_t filled_bytes;
    uint64_t began;   /* uv_hrtime() of the request */
    uint64_t filling; /* and of the first fill */
    struct phases phases;
    struct trace *trace; /* NULL: nobody wants it */
};

/* Moves a load on: called whenever something that it may wait for is over. May free it. */
void load_step(struct load *load);

/* To the next state, which has to be one that may follow. */
void load_move(struct load *load, enum load_state state);

/* The same, and shows those who ask that the model is in a new state as well. */
void load_show(struct load *load, enum load_state state, enum model_state shown);

/* Has a worker do a step; load_step() follows. Nothing else is under way on a worker. */
void load_queue(struct load *load, void (*run)(struct load_job *job));

/* It is over: nobody waits for it, nothing of it is under way. */
void load_free(struct load *load);

/* What is to be told in the end; the first such word stands. */
void load_fail_memory(struct load *load);
void load_fail_device(struct load *load, int error, const struct device_fault *fault);

/* identify.c: goes on from IDENTIFYING, once that job is done. Returns true if the load is over and gone: joined
 * to another. */
bool load_identified(struct load *load);

/* What a request asks for, for the registry. It borrows from all of these. */
struct registry_query load_query(const struct load_request *request, const struct source *source,
                                 const struct plan *plan);

/* doubt.c: if there is a model that may have the same bytes, has them compared, or waits until they can be; the load
 * comes back to IDENTIFYING then. Returns false if there is none. */
bool load_settle(struct load *load);

/* The model of these files, or one that may be of them, that waits in the queue for memory: who may not wait for memory
 * cannot wait for that. NULL: there is none. */
struct model *load_queued_before(const struct loads *loads, const struct registry_query *query);

/* The model is resident: gets the name that it takes from another, which drains. */
void load_switch(struct load *load);

/* The same of a load that brings a cached model back. */
void load_begin_restore(struct load *load, struct model *model);

/* reserve.c: takes memory for the model, or waits for it. What the drivers said is noted before. */
void load_reserve(struct load *load);
void load_note(struct load *load);

/* The files as they are after it was queued: those that were touched, and have the same header, are read from now on as
 * they are now. Returns false if they are other files by now. */
bool load_looked_again(struct load *load);

/* As load_reserve(), at once, of a load that waits for memory, if by what the drivers said last there is enough.
 * Returns false if there is not, and then nothing happened. */
bool load_reserve_now(struct load *load);

/* Memory that the ledger has for it cannot be had: other models go, and it is reserved anew. False if none may. */
bool load_reserve_again(struct load *load);

/* It waits for memory no more. Fine if it did not. */
void load_leave_queue(struct load *load);

/* feed.c: takes slots from here on, and fills them with what is planned; those that are full before there is
 * memory wait. -ENOMEM. */
int load_fill_begin(struct load *load, const struct plan *plan);

/* There is memory: what waits for it goes on. */
void load_fill_continue(struct load *load);

/* Takes no more slots, and gives those back that wait. What else is under way comes to its end. */
void load_fill_end(struct load *load);

/* answer.c: tells everybody how it ended. The load has no model any more where it failed. */
void load_succeed(struct load *load);
void load_give_up(struct load *load);
/* Tells those who wait how far it is. */
void load_report(struct load *load);

/* For waiters_init(): nobody waits any more. */
void load_deserted(struct waiters *waiters);
