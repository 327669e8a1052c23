#include "daemon/session/events.h"

#include "daemon/base/json_text.h"
#include "daemon/session/describe.h"
#include "daemon/wire/errors.h"

#include <errno.h>
#include <stdlib.h>

struct watcher {
    struct call *call;
    struct events *events;
    TAILQ_ENTRY(watcher) link;
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
    free(watcher);
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

void events_watch(struct events *events, struct call *call, cJSON *first)
{
    struct watcher *watcher = malloc(sizeof(*watcher));
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
    (void)call_continue_all(call, first);
}

void events_emit(struct events *events, const char *event, const struct model *model, const char *error)
{
    struct watcher *watcher;
    TAILQ_FOREACH(watcher, &events->watchers, link)
    {
        if (!model_visible(model, conn_peer(watcher->call->conn)))
            continue;
        cJSON *reply = cJSON_CreateObject();
        cJSON_AddStringToObject(reply, "event", event);
        cJSON_AddItemToObject(reply, "model", describe_model(model));
        if (error)
            json_add_text(reply, "error", error);
        (void)call_continue_all(watcher->call, reply);
    }
}

void events_changed(struct events *events, struct model *model)
{
    if (model->changed)
        return;
    model->changed = true;
    events_emit(events, "changed", model, NULL);
}
