#include "daemon/session/waiters.h"

#include "daemon/model/calling.h"
#include "daemon/session/session.h"
#include "daemon/wire/errors.h"

#include <stdlib.h>

struct waiter {
    struct call *call;
    struct waiters *waiters;
    enum waiter_kind kind;
    uint64_t patience_ends; /* UINT64_MAX: with the load */
    TAILQ_ENTRY(waiter) link;
};

void waiters_init(struct waiters *waiters, void (*deserted)(struct waiters *waiters))
{
    TAILQ_INIT(&waiters->list);
    waiters->deserted = deserted;
}

bool waiters_empty(const struct waiters *waiters)
{
    return TAILQ_EMPTY(&waiters->list);
}

static struct call *waiter_free(struct waiter *waiter)
{
    struct call *call = waiter->call;
    TAILQ_REMOVE(&waiter->waiters->list, waiter, link);
    free(waiter);
    call->abandoned = NULL;
    return call;
}

static void waiter_abandoned(struct call *call)
{
    struct waiter *waiter = call->context;
    struct waiters *waiters = waiter->waiters;
    waiter_free(waiter);
    if (waiters_empty(waiters))
        waiters->deserted(waiters);
}

bool waiters_add(struct waiters *waiters, struct call *call, enum waiter_kind kind)
{
    struct waiter *waiter = calloc(1, sizeof(*waiter));
    if (!waiter) {
        call_fail(call, WIRE_LimitExceeded, error_no_memory());
        return false;
    }
    waiter->call = call;
    waiter->waiters = waiters;
    waiter->kind = kind;
    waiter->patience_ends = UINT64_MAX;
    call->context = waiter;
    call->abandoned = waiter_abandoned;
    TAILQ_INSERT_TAIL(&waiters->list, waiter, link);
    return true;
}

void waiters_set_patience(struct waiters *waiters, uint64_t ends)
{
    struct waiter *waiter;
    TAILQ_FOREACH(waiter, &waiters->list, link)
    {
        waiter->patience_ends = ends;
    }
}

static struct waiter *first_impatient(const struct waiters *waiters, uint64_t now)
{
    struct waiter *waiter;
    TAILQ_FOREACH(waiter, &waiters->list, link)
    {
        if (waiter->patience_ends <= now)
            return waiter;
    }
    return NULL;
}

bool waiters_impatient(const struct waiters *waiters, uint64_t now)
{
    return first_impatient(waiters, now) != NULL;
}

struct call *waiters_take_impatient(struct waiters *waiters, uint64_t now)
{
    struct waiter *waiter = first_impatient(waiters, now);
    return waiter ? waiter_free(waiter) : NULL;
}

struct call *waiters_take(struct waiters *waiters, enum waiter_kind kind)
{
    struct waiter *waiter;
    TAILQ_FOREACH(waiter, &waiters->list, link)
    {
        if (waiter->kind == kind)
            return waiter_free(waiter);
    }
    return NULL;
}

struct call *waiters_take_any(struct waiters *waiters, enum waiter_kind *ret_kind)
{
    struct waiter *waiter = TAILQ_FIRST(&waiters->list);
    if (!waiter)
        return NULL;
    *ret_kind = waiter->kind;
    return waiter_free(waiter);
}

void waiters_move(struct waiters *from, struct waiters *to)
{
    struct waiter *waiter;
    while ((waiter = TAILQ_FIRST(&from->list))) {
        TAILQ_REMOVE(&from->list, waiter, link);
        waiter->waiters = to;
        if (waiter->kind == WAIT_RESIDENT)
            waiter->kind = WAIT_JOINED;
        if (waiter->kind == WAIT_LEASE || waiter->kind == WAIT_CREATE)
            waiter->kind = WAIT_ATTACH;
        TAILQ_INSERT_TAIL(&to->list, waiter, link);
    }
}

/* The text is made once, when the first is told: this takes much longer than to queue it. Who is told other names gets
 * a text of its own. */
void waiters_tell(struct waiters *waiters, const struct model *model, cJSON *(*describe)(void *context, uint32_t names),
                  void *context)
{
    char *text = NULL;
    struct rivals rivals = {0};
    uint32_t text_names = 0;
    struct waiter *waiter;
    TAILQ_FOREACH(waiter, &waiters->list, link)
    {
        struct call *call = waiter->call;
        if (!call->more || waiter->kind == WAIT_END || !call_keeps_up(call))
            continue;
        if (!text)
            rivals_find(model, &rivals);
        const uint32_t names = calling_names(&rivals, conn_peer(call->conn));
        if (!text) {
            text_names = names;
            text = call_text(describe(context, names));
        }
        if (text && names == text_names && !session_has_to_tell(call->conn))
            (void)call_continue_text(call, text);
        else
            (void)call_continue(call, describe(context, names));
    }
    cJSON_free(text);
}
