#include "daemon/wire/turns.h"

#include "proto/min.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

struct turn_user {
    LIST_ENTRY(turn_user) link;
    LIST_ENTRY(turn_user) link_waiting; /* valid while `waiting` is not empty */
    struct turns *turns;
    uid_t uid;
    size_t references; /* turns, and the one that runs */
    uint64_t served;   /* nanoseconds; see turns.h */
    TAILQ_HEAD(, turn) waiting;
};

struct turns {
    uv_check_t check; /* gives turns when the loop has polled */
    uv_idle_t idle;   /* active while somebody waits: the loop does not sleep then */
    unsigned handles; /* of these two, that are not closed yet */
    LIST_HEAD(, turn_user) users;
    LIST_HEAD(, turn_user) waiting; /* users who have a turn that waits */
    uint64_t served;                /* of the user who had the last turn, when it began */
};

static void user_put(struct turn_user *user)
{
    if (--user->references > 0)
        return;
    assert(TAILQ_EMPTY(&user->waiting));
    LIST_REMOVE(user, link);
    free(user);
}

static struct turn_user *user_get(struct turns *turns, uid_t uid)
{
    struct turn_user *user;
    LIST_FOREACH(user, &turns->users, link)
    {
        if (user->uid == uid)
            break;
    }
    if (!user) {
        user = calloc(1, sizeof(*user));
        if (!user)
            return NULL;
        user->turns = turns;
        user->uid = uid;
        TAILQ_INIT(&user->waiting);
        LIST_INSERT_HEAD(&turns->users, user, link);
    }
    user->references++;
    return user;
}

int turn_begin(struct turns *turns, struct turn *turn, uid_t uid, void (*run)(struct turn *turn))
{
    *turn = (struct turn){.run = run, .user = user_get(turns, uid)};
    return turn->user ? 0 : -ENOMEM;
}

static void turn_remove(struct turn *turn)
{
    struct turn_user *user = turn->user;
    turn->waiting = false;
    TAILQ_REMOVE(&user->waiting, turn, link);
    if (TAILQ_EMPTY(&user->waiting))
        LIST_REMOVE(user, link_waiting);
}

void turn_end(struct turn *turn)
{
    if (!turn->user)
        return;
    if (turn->waiting)
        turn_remove(turn);
    user_put(turn->user);
    turn->user = NULL;
}

/* The loop has nothing else to do, and goes on at once. */
static void goes_on(uv_idle_t *idle)
{
    (void)idle;
}

void turn_wait(struct turn *turn)
{
    struct turn_user *user = turn->user;
    if (!user || turn->waiting)
        return;
    if (TAILQ_EMPTY(&user->waiting)) {
        LIST_INSERT_HEAD(&user->turns->waiting, user, link_waiting);
        user->served = max_u64(user->served, user->turns->served);
    }
    turn->waiting = true;
    TAILQ_INSERT_TAIL(&user->waiting, turn, link);
    uv_idle_start(&user->turns->idle, goes_on);
}

/* Waiting users are few: a list is quick enough. */
static struct turn_user *least_served(const struct turns *turns)
{
    struct turn_user *user, *least = LIST_FIRST(&turns->waiting);
    LIST_FOREACH(user, &turns->waiting, link_waiting)
    {
        if (user->served < least->served)
            least = user;
    }
    return least;
}

static void give_turns(uv_check_t *check)
{
    struct turns *turns = check->data;
    uint64_t now = uv_hrtime();
    const uint64_t began = now;
    while (!LIST_EMPTY(&turns->waiting) && now - began < TURNS_NS) {
        struct turn_user *user = least_served(turns);
        struct turn *turn = TAILQ_FIRST(&user->waiting);
        turn_remove(turn);
        turns->served = user->served;
        user->references++; /* the turn may end itself */
        turn->run(turn);
        const uint64_t ended = uv_hrtime();
        user->served += ended - now;
        now = ended;
        user_put(user);
    }
    if (LIST_EMPTY(&turns->waiting))
        uv_idle_stop(&turns->idle);
}

int turns_new(uv_loop_t *loop, struct turns **ret)
{
    struct turns *turns = calloc(1, sizeof(*turns));
    if (!turns)
        return -ENOMEM;
    LIST_INIT(&turns->users);
    LIST_INIT(&turns->waiting);
    uv_check_init(loop, &turns->check); /* these three fail only for a NULL callback */
    uv_idle_init(loop, &turns->idle);
    uv_check_start(&turns->check, give_turns);
    turns->check.data = turns->idle.data = turns;
    turns->handles = 2;
    *ret = turns;
    return 0;
}

static void handle_closed(uv_handle_t *handle)
{
    struct turns *turns = handle->data;
    if (--turns->handles == 0)
        free(turns);
}

void turns_close(struct turns *turns)
{
    if (!turns)
        return;
    assert(LIST_EMPTY(&turns->users));
    uv_close((uv_handle_t *)&turns->check, handle_closed);
    uv_close((uv_handle_t *)&turns->idle, handle_closed);
}
