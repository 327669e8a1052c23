#include "daemon/keep/keep.h"

#include "daemon/base/log.h"
#include "daemon/device/awaited.h"
#include "daemon/keep/entries.h"
#include "daemon/keep/resume.h"
#include "daemon/keep/stored.h"
#include "daemon/session/events.h"
#include "proto/bytes.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

struct keep {
    struct residency *residency;
    TAILQ_HEAD(, stored) list; /* what the store has, and what waits for room in it */
    struct store_room room;
    uv_prepare_t prepare;
    uv_timer_t timer;
    uint64_t grace_ms;
    uint64_t *held; /* ids of models that are held for the time of grace */
    size_t n_held;
    struct awaited_gpus awaited; /* that models were taken back on before their drivers had started */
    unsigned closing;            /* handles */
    bool stopped;
};

/* --- keeping the store up to date --- */

static void drop(struct keep *keep, struct stored *stored)
{
    TAILQ_REMOVE(&keep->list, stored, link);
    stored_remove(stored);
}

static bool to_keep(const struct model *model)
{
    return model->state == MODEL_RESIDENT && !model->source->of_user && model->export.fd >= 0 && model->n_names > 0 &&
           !model->device->failed;
}

/* Returns false if there is nothing to note what the store has of the model: try again later. */
static bool sync_model(struct keep *keep, struct model *model)
{
    if (!to_keep(model)) {
        if (model->stored)
            drop(keep, model->stored);
        return true;
    }
    if (!model->stored) {
        struct stored *stored = stored_new(model, &keep->room);
        if (!stored)
            return false;
        TAILQ_INSERT_TAIL(&keep->list, stored, link);
    }
    stored_update(model->stored);
    return true;
}

/* Models have left the store: those that had no room may have it now. */
static void try_again(struct keep *keep)
{
    struct stored *stored;
    keep->room.freed = false;
    TAILQ_FOREACH(stored, &keep->list, link)
    {
        if (stored->waits)
            stored_update(stored);
    }
}

/* Only the models that changed are looked at: this runs in each turn of the loop. */
static void keep_sync(struct keep *keep)
{
    struct registry *registry = keep->residency->registry;
    for (size_t n = registry->dirty.n; n > 0; n--) {
        struct model *model = registry_take_dirty(registry);
        if (!sync_model(keep, model))
            model_mark_dirty(model);
    }
    if (keep->room.freed)
        try_again(keep);
}

/* A model is about to be unloaded. */
static bool leaves(void *keeper, const struct model *model)
{
    struct keep *keep = keeper;
    if (keep->stopped || !model->stored)
        return false;
    drop(keep, model->stored);
    return true;
}

/* worker. Only then the memory is free for others. */
static void left(void *keeper)
{
    (void)keeper;
    store_wait();
}

static void prepared(uv_prepare_t *prepare)
{
    struct keep *keep = prepare->data;
    if (!keep->stopped)
        keep_sync(keep);
}

/* --- the time of grace --- */

/* Held models cannot be gone: the registry has them all. idle: what nobody claimed is idle from now on. */
static void let_go(struct keep *keep, bool idle)
{
    while (keep->n_held > 0) {
        struct model *model = registry_find_id(keep->residency->registry, keep->held[--keep->n_held]);
        if (!model)
            continue;
        model_unhold(model);
        if (idle && !model_in_use(model))
            model->idle_since = uv_hrtime();
        if (idle)
            residency_idle(keep->residency, model);
    }
}

static void grace_ends(uv_timer_t *timer)
{
    let_go(timer->data, true);
}

int keep_new(struct residency *residency, unsigned grace, struct keep **ret)
{
    struct keep *keep = calloc(1, sizeof(*keep));
    if (!keep)
        return -ENOMEM;
    keep->residency = residency;
    keep->grace_ms = (uint64_t)grace * 1000;
    keep->closing = 2;
    TAILQ_INIT(&keep->list);
    store_room_init(&keep->room, residency->registry->quota);
    keep->prepare.data = keep->timer.data = keep;
    /* These two cannot fail. */
    (void)uv_prepare_init(residency->core->loop, &keep->prepare);
    (void)uv_timer_init(residency->core->loop, &keep->timer);
    residency->leaves = leaves;
    residency->left = left;
    residency->keeper = keep;
    if (store_there())
        (void)uv_prepare_start(&keep->prepare, prepared);
    *ret = keep;
    return 0;
}

/* --- taking back --- */

static void tell_again(const struct model *model)
{
    char size[BYTES_TEXT_SIZE];
    const struct log_fields fields = {
        .id = MESSAGE_MODEL_AGAIN,
        .model = model->name,
        .device = model->device->id,
        .has_bytes = true,
        .bytes = model->plan->arena_bytes,
    };
    log_write_fields(LOG_LEVEL_NOTICE, &fields,
                     "model=%s id=%" PRIu64 " resident again on %s: %s, as it was before the restart", model->name,
                     model->id, model->device->id, bytes_text(size, (double)model->plan->arena_bytes, ""));
}

static int resume_entries(struct keep *keep, struct model_entries *of_model, bool awaits, struct model **ret,
                          char why[RESUME_WHY_SIZE])
{
    const struct description *description = &of_model->description;
    struct resume *resume = malloc(sizeof(*resume));
    if (!resume)
        return -ENOMEM;
    resume->registry = keep->residency->registry;
    resume->devices = keep->residency->devices;
    resume->awaited = awaits ? &keep->awaited : NULL;
    resume->description = description;
    resume->arena_fd = entries_take(of_model, STORE_ARENA, 0);
    for (size_t i = 0; i < description->n_headers; i++)
        resume->header_fds[i] = entries_take(of_model, STORE_HEADER, (uint32_t)i);
    for (size_t i = 0; i < description->n_files; i++)
        resume->file_fds[i] = entries_take(of_model, STORE_FILE, description->files[i].number);
    const int r = resume_model(resume, ret, why);
    free(resume);
    return r;
}

static void resume(struct keep *keep, struct model_entries *of_model, bool awaits)
{
    struct model *model = NULL;
    char why[RESUME_WHY_SIZE] = "out of memory";
    if (resume_entries(keep, of_model, awaits, &model, why) < 0) {
        entries_drop(of_model, of_model->description.names[0].text, why);
        return;
    }
    model->source->closer = keep->residency->core->closer;
    model->source->uid = model->uid;
    struct stored *stored =
        stored_again(model, &keep->room, &of_model->description, of_model->latest, of_model->entries, of_model->n);
    if (!stored)
        return;
    TAILQ_INSERT_TAIL(&keep->list, stored, link);
    keep->held[keep->n_held++] = model->id;
    model_hold(model);
    if (!device_is_awaited(model->device))
        tell_again(model);
}

static void grace_begins(struct keep *keep)
{
    if (!TAILQ_EMPTY(&keep->list))
        uv_timer_start(&keep->timer, grace_ends, keep->grace_ms, 0);
}

void keep_resume(struct keep *keep, struct store_entry *entries, size_t n, bool awaits)
{
    struct model_entries *models;
    const size_t n_models = entries_by_model(entries, n, &models);
    keep->held = calloc(n_models ? n_models : 1, sizeof(*keep->held));
    for (size_t i = 0; i < n_models; i++) {
        if (keep->held)
            resume(keep, &models[i], awaits);
        else
            entries_drop(&models[i], models[i].description.names[0].text, "out of memory");
        description_clear(&models[i].description);
    }
    free(models);
    entries_close(entries, n); /* what nobody took */
    if (!awaits)
        grace_begins(keep);
}

/* --- when the drivers have started --- */

static void unhold(struct keep *keep, struct model *model)
{
    for (size_t i = 0; i < keep->n_held; i++) {
        if (keep->held[i] != model->id)
            continue;
        keep->held[i] = keep->held[--keep->n_held];
        model_unhold(model);
        return;
    }
}

/* The model goes. Who has attached meanwhile is told by draining; others may have its names from now on. */
static void give_up(struct keep *keep, struct model *model, const char *why)
{
    log_write_fields(LOG_LEVEL_WARNING, &(const struct log_fields){.id = MESSAGE_MODEL_DROPPED, .model = model->name},
                     "model=%s was kept, but is not resident again: %s", model->name, why);
    if (model->stored)
        drop(keep, model->stored);
    unhold(keep, model);
    residency_drain(keep->residency, model, 0);
    if (model->state != MODEL_DRAINING) /* nobody has: it is being unloaded */
        return;
    model_lose_name(model);
    events_emit(keep->residency->events, "renamed", model, NULL);
}

void keep_settle(struct keep *keep)
{
    struct model *next;
    for (struct model *model = TAILQ_FIRST(&keep->residency->registry->models); model; model = next) {
        next = TAILQ_NEXT(model, link); /* a model that is given up is removed later, when a worker has freed it */
        char why[RESUME_WHY_SIZE];
        if (!device_is_awaited(model->device))
            continue;
        if (resume_settle(model, keep->residency->devices, why) == 0)
            tell_again(model);
        else
            give_up(keep, model, why);
    }
    grace_begins(keep);
}

/* --- the end --- */

/* The store stays as it is: the next daemon gets it. */
void keep_stop(struct keep *keep)
{
    if (keep->stopped)
        return;
    if (store_there())
        keep_sync(keep);
    keep->stopped = true;
    uv_prepare_stop(&keep->prepare);
    uv_timer_stop(&keep->timer);
    let_go(keep, false);
    struct stored *stored;
    while ((stored = TAILQ_FIRST(&keep->list))) {
        TAILQ_REMOVE(&keep->list, stored, link);
        stored_free(stored);
    }
}

static void closed(uv_handle_t *handle)
{
    struct keep *keep = handle->data;
    if (--keep->closing > 0)
        return;
    free(keep->held);
    awaited_close(&keep->awaited);
    free(keep);
}

void keep_close(struct keep *keep)
{
    if (!keep)
        return;
    uv_close((uv_handle_t *)&keep->prepare, closed);
    uv_close((uv_handle_t *)&keep->timer, closed);
}
