#include "daemon/session/events.h"

#include "daemon/base/json_text.h"
#include "daemon/model/calling.h"
#include "daemon/session/describe.h"
#include "daemon/session/session.h"
#include "daemon/wire/errors.h"
#include "proto/array.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct watcher {
    struct call *call;
    struct events *events;
    TAILQ_ENTRY(watcher) link;
    uint64_t *told; /* ids of models that the client was told of, and not yet of their end */
    size_t n_told, n_room;
};

struct events {
    TAILQ_HEAD(, watcher) watchers;
};

int events_new(struct events **ret)
{
    struct events *events = malloc(sizeof(*events));
    if (!events)
        return -ENOMEM;
    TAILQ_INIT(&events->watchers);
    *ret = events;
    return 0;
}

static void watcher_free(struct watcher *watcher)
{
    TAILQ_REMOVE(&watcher->events->watchers, watcher, link);
    free(watcher->told);
#ifndef __clang_analyzer__ /* it does not see that TAILQ_REMOVE() has taken it out of the list */
    free(watcher);
#endif
}

static void watcher_abandoned(struct call *call)
{
    watcher_free(call->context);
}

void events_end(struct events *events)
{
    struct watcher *watcher;
    while ((watcher = TAILQ_FIRST(&events->watchers))) {
        struct call *call = watcher->call;
        watcher_free(watcher);
        call->abandoned = NULL;
        call_fail(call, WIRE_ShuttingDown, NULL);
    }
}

void events_free(struct events *events)
{
    free(events);
}

static size_t find_told(const struct watcher *watcher, uint64_t id)
{
    size_t i = 0;
    while (i < watcher->n_told && watcher->told[i] != id)
        i++;
    return i;
}

/* If memory is short, the client is not told later that it does not see the model any more. */
static void note_told(struct watcher *watcher, uint64_t id)
{
    if (find_told(watcher, id) < watcher->n_told)
        return;
    if (array_reserve(&watcher->told, &watcher->n_room, watcher->n_told, sizeof(*watcher->told), 8) == 0)
        watcher->told[watcher->n_told++] = id;
}

/* Returns whether the client was told of the model. */
static bool forget_told(struct watcher *watcher, uint64_t id)
{
    const size_t i = find_told(watcher, id);
    if (i == watcher->n_told)
        return false;
    watcher->told[i] = watcher->told[--watcher->n_told];
    return true;
}

static void note_first(struct watcher *watcher, const cJSON *first)
{
    const cJSON *model;
    cJSON_ArrayForEach (model, cJSON_GetObjectItemCaseSensitive(first, "models")) {
        const cJSON *id = cJSON_GetObjectItemCaseSensitive(model, "id");
        if (cJSON_IsNumber(id))
            note_told(watcher, (uint64_t)id->valuedouble);
    }
}

void events_watch(struct events *events, struct call *call, cJSON *first)
{
    struct watcher *watcher = calloc(1, sizeof(*watcher));
    if (!watcher) {
        cJSON_Delete(first);
        call_fail(call, WIRE_LimitExceeded, error_no_memory());
        return;
    }
    watcher->call = call;
    watcher->events = events;
    TAILQ_INSERT_TAIL(&events->watchers, watcher, link);
    call->context = watcher;
    call->abandoned = watcher_abandoned;
    note_first(watcher, first);
    (void)call_continue_all(call, first);
}

/* Which users hold leases on a model. It may have thousands, and many connections of one user watch: each user's are
 * looked for once. */
#define HOLDERS_KNOWN 16u
struct holders {
    size_t n;
    struct {
        uid_t uid;
        bool holds;
    } users[HOLDERS_KNOWN];
};

static bool user_holds(const struct model *model, uid_t uid, struct holders *holders)
{
    for (size_t i = 0; i < holders->n; i++)
        if (holders->users[i].uid == uid)
            return holders->users[i].holds;
    bool holds = false;
    const struct lease *lease;
    LIST_FOREACH(lease, &model->leases, of_model)
    {
        holds |= lease->holder->uid == uid;
    }
    if (holders->n == HOLDERS_KNOWN)
        holders->n = 0;
    holders->users[holders->n].uid = uid;
    holders->users[holders->n++].holds = holds;
    return holds;
}

/* Who holds a lease is told of the model even if it may not be seen any more: that it drains, for example. */
static bool sees(const struct watcher *watcher, const struct model *model, struct holders *holders)
{
    const struct peer *peer = conn_peer(watcher->call->conn);
    return model_visible(model, peer) || user_holds(model, peer->uid, holders);
}

/* What is told to many. Its text is made once, when the first is told: this takes much longer than to queue it. It is
 * for all to whom the same names mean the model; others, who see another model of such a name, get a text of their own.
 */
struct news {
    const char *event;
    const struct model *model;
    const char *error; /* NULL: none */
    bool made;
    struct rivals rivals; /* once it is made */
    uint32_t names;       /* by which the text calls the model */
    char *text;           /* NULL: not made, or no memory */
};

static cJSON *news_reply(const struct news *news, uint32_t names)
{
    cJSON *reply = cJSON_CreateObject();
    cJSON_AddStringToObject(reply, "event", news->event);
    json_add_item(reply, "model", describe_model_called(news->model, names));
    if (news->error)
        json_add_text(reply, "error", news->error);
    return reply;
}

static void tell(const struct watcher *watcher, struct news *news)
{
    const struct conn *conn = watcher->call->conn;
    if (!news->made)
        rivals_find(news->model, &news->rivals);
    const uint32_t names = calling_names(&news->rivals, conn_peer(conn));
    if (!news->made) {
        news->names = names;
        news->text = call_text(news_reply(news, names));
    }
    news->made = true;
    if (news->text && news->names == names && !session_has_to_tell(conn))
        (void)call_continue_text(watcher->call, news->text);
    else
        (void)call_continue_all(watcher->call, news_reply(news, names));
}

static void news_end(struct news *news)
{
    cJSON_free(news->text);
}

/* After such an event the model is gone. If it is not, the next event that the client is told notes the model again. */
static bool is_end(const char *event)
{
    return strcmp(event, "unloaded") == 0 || strcmp(event, "cancelled") == 0 || strcmp(event, "failed") == 0;
}

void events_emit(struct events *events, const char *event, const struct model *model, const char *error)
{
    const bool ends = is_end(event);
    struct news news = {.event = event, .model = model, .error = error};
    struct news lost = {.event = "unloaded", .model = model};
    struct holders holders = {0};
    struct watcher *watcher;
    TAILQ_FOREACH(watcher, &events->watchers, link)
    {
        const bool seen = sees(watcher, model, &holders);
        if (seen && !ends)
            note_told(watcher, model->id);
        else if (!forget_told(watcher, model->id) && !seen)
            continue;
        tell(watcher, seen ? &news : &lost);
    }
    news_end(&news);
    news_end(&lost);
}

/* The model may be hidden from some users now. n_names: how many names it had before. */
static void tell_sight(struct events *events, const struct model *model, size_t n_names)
{
    struct news lost = {.event = "unloaded", .model = model};
    struct holders holders = {0};
    struct watcher *watcher;
    TAILQ_FOREACH(watcher, &events->watchers, link)
    {
        if (!sees(watcher, model, &holders) && forget_told(watcher, model->id))
            tell(watcher, &lost);
    }
    news_end(&lost);
    if (model->n_names != n_names)
        events_emit(events, "renamed", model, NULL);
}

void events_set_facts(struct events *events, struct model *model, struct access_facts *facts)
{
    const size_t n_names = model->n_names;
    model_set_facts(model, facts);
    tell_sight(events, model, n_names);
}

void events_narrow(struct events *events, struct model *model)
{
    const size_t n_names = model->n_names;
    model_narrow(model);
    tell_sight(events, model, n_names);
}

void events_changed(struct events *events, struct model *model)
{
    if (model->changed)
        return;
    model_set_changed(model, true);
    events_emit(events, "changed", model, NULL);
}

void events_set_deleted(struct events *events, struct model *model, bool deleted)
{
    if (model->deleted == deleted)
        return;
    model_set_deleted(model, deleted);
    events_emit(events, deleted ? "deleted" : "restored", model, NULL);
}

void events_restored(struct events *events, struct model *model)
{
    model_set_changed(model, false);
    events_emit(events, "restored", model, NULL);
}
