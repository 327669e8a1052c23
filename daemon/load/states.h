/* The load itself, and the functions that its files share. Only files of this folder include this header.
 *
 *   begin.c     makes a load of a request, begins it, and frees it in the end
 *   load.c      the state machine
 *   loads.c     what concerns several loads: see loads.h
 *   reserve.c   RESERVING: which models are evicted for the load, and the queue of loads that wait for memory
 *   identify.c  IDENTIFYING: whether the model is there already
 *   naming.c    which name the model gets, and from which model it takes it
 *   foresee.c   what IDENTIFYING would decide: for Plan
 *   doubt.c     whether a model that is there still has the same bytes as its file
 *   feed.c      fills chunks, while memory is allocated and after: each by fill.c, of files that cold.c knows;
 *               chunk_part.c reads and decodes
 *   creation.c  what is different if the model is made by a client; its steps that block are in creation_steps.c
 *   answer.c    answers the calls that wait: with progress, and at the end
 *   verify.c    compares a model with files: for Verify, and for doubt.c; its steps that block are in verify_steps.c
 *   steps.c     the steps that block, on workers; neither includes this header
 *
 * Loop thread only. */
#pragma once

#include "daemon/base/state.h"
#include "daemon/base/trace.h"
#include "daemon/device/scheduler.h"
#include "daemon/load/failure.h"
#include "daemon/load/fill.h"
#include "daemon/load/load.h"
#include "daemon/load/steps.h"
#include "daemon/session/describe.h"

struct naming;

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

/* Their names, and which may follow which. */
extern const struct state_machine load_states;

struct load {
    TAILQ_ENTRY(load) link;
    struct loads *loads;
    struct quota_charge charge; /* in the quota of the user who began the load */
    enum load_state state;
    struct load_request request; /* with copies of its strings; without descriptors, which the job has */
    struct device *device;       /* where the model goes, as far as known; NULL: not known yet */
    struct model *model;         /* NULL while IDENTIFYING */
    struct waiters waiters;
    bool detached; /* goes on when no call waits for it */
    struct failure failure;

    struct load_job job; /* while in_job, only the worker may use it */
    bool in_job;
    bool blocked;           /* waits for another load or model; loads_retry() and loads_report() let it check again */
    bool behind;            /* blocked by a queued model that may be of the same file */
    bool was_queued;        /* since its files were looked at */
    bool reserved;          /* the model's bytes are in the ledger */
    bool waits;             /* it is in the queue for memory: later loads do not get the memory that it waits for */
    struct later moving;    /* waits while its new place in the queue was not told yet */
    bool overhead_charged;  /* `overhead` is in the ledger */
    uint64_t overhead;      /* bytes of host memory for the daemon itself: load_overhead() */
    uint64_t asked;         /* uv_hrtime() when the drivers were last asked for free memory */
    uint64_t patience_ends; /* uv_hrtime() until which it may wait in the queue; 0: it may not */
    bool publish_begun;     /* load_job_publish() was queued */
    bool publish_done;
    struct claim claim; /* on the memory of models that are being evicted for this load */

    bool restores;    /* it loads a cached model from host memory */
    uint64_t awaited; /* id of a model that is being saved to host memory, or compared there, and is loaded from there
                         next; 0: none */
    char awaited_name[MODEL_NAME_SIZE];
    uint64_t compared;       /* id of the last model whose bytes were compared with the file's */
    uint64_t replaces;       /* id of the model that loses its name to this load's model; 0: none */
    bool replaces_all;       /* and all its other names: this load's model is its newer version */
    const struct plan *plan; /* the plan that is filled: the model's, or, for a cached model, the job's linear one */
    struct consumer consumer;
    size_t next_chunk;
    struct cold *cold;  /* NULL: the files are read through the page cache */
    struct fill *fills; /* one for each slot of the device */
    size_t n_fills;     /* under way */
    bool reads_direct;  /* the last one that was over read past the page cache */
    uint64_t filled_bytes;
    uint64_t began;   /* uv_hrtime() when the request came */
    uint64_t filling; /* uv_hrtime() when filling began; 0: not yet */
    struct phases phases;
    struct trace *trace; /* NULL: the request asked for none */
};

/* Moves a load on. Called when a job, a fill or an eviction that it may wait for is over. May free the load. */
void load_step(struct load *load);

/* Moves the load to a state that may follow its state now. */
void load_move(struct load *load, enum load_state state);

/* Calls load_move(), moves the model to the state that clients see, and reports it to the calls that wait. */
void load_show(struct load *load, enum load_state state, enum model_state shown);

/* Lets a worker run a step, then calls load_step(). No other step of the load may be under way. */
void load_queue(struct load *load, void (*run)(struct load_job *job));

/* Answers all who wait, and frees the load. */
void load_finish(struct load *load);

/* creation.c: true if a client makes this model (Create). Then the functions below replace the usual steps: */
bool load_creates(const struct load *load);

/* In place of load_identified(): returns the same. */
bool creation_identified(struct load *load);

/* The list of tensors was parsed. Returns false if the load fails. */
bool creation_opened(struct load *load);

/* The memory is allocated. */
void creation_allocated(struct load *load);

/* A job is over that had to end before the client gets the memory. Returns true if the load is over and was freed. */
bool creation_advance(struct load *load);

/* The load has failed. */
void creation_give_up(struct load *load);

/* Frees a load that is over: no call waits for it, and no job, fill or eviction is under way. */
void load_free(struct load *load);

/* The load fails with this error, unless it has failed before: the first error stays. */
void load_fail_memory(struct load *load);

/* The model's device has no room for it; `available` bytes of it are free. */
void load_fail_out_of_memory(struct load *load, const struct model *model, uint64_t available);
void load_fail_device(struct load *load, int error, const struct device_fault *fault);

/* The same for what IDENTIFYING finds: the caller may not make the model public; the model of its file is queued for
 * memory, and the load may not wait; the model has too many guests. */
void load_fail_publish(struct load *load);
void load_fail_queued(struct load *load, const struct model *queued);
void load_fail_guests(struct load *load);

/* identify.c: goes on from IDENTIFYING when its job is done. Returns true if the load joined a model that is there:
 * then it is over and was freed. */
bool load_identified(struct load *load);

/* Whether this load would make the same model: of the same files, in the same forms, for the same users. */
bool load_wants_same(const struct load *load, const struct model *model);

/* Goes on with a model that is there already, or waits for it. Returns true if the load joined it, and was freed. */
bool load_take_same(struct load *load, struct model *model);

/* Makes the load's model, and chooses its name. NULL if the load must wait for the name (blocked), or failed. */
struct model *load_take_name(struct load *load);

/* The name in the request, or the one that is derived from the file's. */
void load_name(const struct load *load, char ret[MODEL_NAME_MAX + 1]);

/* Whether the request may make a new model public: only who owns the files may, and trusted users. */
bool load_may_publish(const struct load_request *request, const struct access_facts *facts);

/* Whether the load may join this model as it asks to: LOAD_JOIN, LOAD_DENIED, LOAD_BUSY, LOAD_TAKEN or LOAD_LIMITED.
 * If the load has looked at the model's own files, at their own places, the model gets the facts about them; nothing
 * else changes. Load and Plan both decide with this. */
enum load_verdict load_judge_join(struct load *load, struct model *model, struct naming *ret);

/* `verdict`, unless the model cannot get its name. */
enum load_verdict load_verdict_of(const struct naming *naming, enum load_verdict verdict);

/* The request as a query for the registry. The query borrows from all arguments. */
struct registry_query load_query(const struct load_request *request, const struct source *source,
                                 const struct plan *plan);

/* doubt.c: looks for a model that may have the same bytes as the file. If there is one, compares the bytes, or waits
 * until they can be compared, and returns true: load_identified() runs again later. Returns false if there is none. */
bool load_settle(struct load *load);

/* Gives up the comparison that the load waits for, if it waits for one. */
void load_drop_comparison(struct load *load);

/* Answers an Attach that has waited for the model: with a lease, if the caller still may have one. */
void load_attach(const struct loads *loads, struct model *model, struct call *call);

/* The model of these files, or one that may have the same bytes, if it is in the queue for memory. A load that may not
 * wait for memory cannot join it. NULL: there is none. */
struct model *load_queued_before(const struct loads *loads, const struct registry_query *query);

/* Goes on from IDENTIFYING with a model that is cached: loads it from host memory. */
void load_begin_restore(struct load *load, struct model *model);

/* reserve.c: reserves memory for the model, or waits in the queue, or fails. load_note_free_memory() comes first: it
 * notes what the drivers said is free. */
void load_reserve(struct load *load);
void load_note_free_memory(struct load *load);

/* Whether the device has held a chunk of this load since before that time, by uv_hrtime(). */
bool load_hangs(const struct load *load, uint64_t begun_before);

/* Looks at the files again after waiting in the queue. If only their times changed and the header is the same, the load
 * reads them as they are now. Returns false if they are other files. */
bool load_looked_again(struct load *load);

/* Calls load_reserve() for a load in the queue, without asking the drivers again, if there is enough memory by their
 * last answer. Returns false, and changes nothing, if there is not. A load that fails here, because of its user's quota
 * or for want of host memory, ends later, from the loop. */
bool load_reserve_now(struct load *load);

/* The driver did not give memory that the ledger had reserved. Evicts other models, and goes back to RESERVING. Returns
 * false if no model may be evicted. */
bool load_reserve_again(struct load *load);

/* Takes the load out of the queue, if it is in it. */
void load_leave_queue(struct load *load);

/* feed.c: from now on takes slots from the scheduler, and fills them by the plan. Fills that are done before there is
 * an arena are held. -ENOMEM. */
int load_fill_begin(struct load *load, const struct plan *plan);

/* The model is resident. Drops its files from the page cache, if that was asked for. */
void load_drop_cached(struct load *load);

/* There is an arena: waiting fills go on. */
void load_fill_continue(struct load *load);

/* Whether the load waits for a file that does not answer. */
bool load_held_up(const struct load *load);

/* Takes no more slots, and gives back the slots of waiting fills. Other fills under way end as usual. */
void load_fill_end(struct load *load);

/* answer.c: the load ends, but cannot before a file answers: its calls are answered now. */
void load_answer(struct load *load);

/* Ends the load with success or with failure, and answers all calls. After load_give_up() it has no model. */
void load_succeed(struct load *load);
void load_give_up(struct load *load);
/* Reports progress to the calls that wait. */
void load_report(struct load *load);

/* For waiters_init(): no call waits any more. Cancels the load, unless it is detached. */
void load_deserted(struct waiters *waiters);
