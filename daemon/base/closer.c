#include "daemon/base/closer.h"

#include "proto/array.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/queue.h>
#include <unistd.h>

struct closer_user {
    LIST_ENTRY(closer_user) link;
    struct closer *closer;
    uid_t uid;
    struct quota_charge charge;
    int *fds; /* to be closed */
    size_t n, capacity;

    /* While work is queued, which it is as long as this exists, only the worker uses these. */
    struct work work;
    int *closing;
    size_t n_closing;
};

struct closer {
    struct core *core;
    struct quota *quota;
    LIST_HEAD(, closer_user) users; /* who have something to be closed */
    void (*changed)(void *context);
    void *context;
};

int closer_new(struct core *core, struct quota *quota, struct closer **ret)
{
    struct closer *closer = calloc(1, sizeof(*closer));
    if (!closer)
        return -ENOMEM;
    closer->core = core;
    closer->quota = quota;
    LIST_INIT(&closer->users);
    *ret = closer;
    return 0;
}

void closer_free(struct closer *closer)
{
    free(closer);
}

void closer_watch(struct closer *closer, void (*changed)(void *context), void *context)
{
    closer->changed = changed;
    closer->context = context;
}

bool closer_is_busy(const struct closer *closer, uid_t uid)
{
    if (!closer)
        return false;
    const struct closer_user *user;
    LIST_FOREACH(user, &closer->users, link)
    {
        if (user->uid == uid)
            return user->n + user->n_closing >= CLOSER_MANY && !user->work.hangs;
    }
    return false;
}

static void close_all(struct work *work)
{
    struct closer_user *user = work->data;
    worker_step_back();
    for (size_t i = 0; i < user->n_closing; i++) {
        worker_file_begin();
        close(user->closing[i]);
        worker_file_end();
    }
}

static void closed(struct work *work);

static void begin(struct closer_user *user)
{
    user->closing = user->fds;
    user->n_closing = user->n;
    user->fds = NULL;
    user->n = user->capacity = 0;
    worker_queue_always(user->closer->core->queue, &user->work, user->uid, user, close_all, closed);
}

static void closed(struct work *work)
{
    struct closer_user *user = work->data;
    struct closer *closer = user->closer;
    free(user->closing);
    user->n_closing = 0;
    quota_set(&user->charge, user->n);
    if (user->n > 0)
        begin(user);
    else {
        LIST_REMOVE(user, link);
        quota_return(&user->charge);
        free(user);
        user = NULL;
    }
    if (closer->changed)
        closer->changed(closer->context);
    if (!user)
        core_job_end(closer->core);
}

static struct closer_user *user_of(struct closer *closer, uid_t uid)
{
    struct closer_user *user;
    LIST_FOREACH(user, &closer->users, link)
    {
        if (user->uid == uid)
            return user;
    }
    user = calloc(1, sizeof(*user));
    if (!user || quota_take_none(closer->quota, uid, QUOTA_DESCRIPTORS, &user->charge) < 0) {
        free(user);
        return NULL;
    }
    user->closer = closer;
    user->uid = uid;
    return user;
}

void closer_close(struct closer *closer, uid_t uid, int fd)
{
    struct closer_user *user = closer ? user_of(closer, uid) : NULL;
    if (!user) {
        close(fd);
        return;
    }
    const bool is_new = !user->link.le_prev;
    if (array_reserve(&user->fds, &user->capacity, user->n, sizeof(*user->fds), 16) < 0) {
        if (is_new) {
            quota_return(&user->charge);
            free(user);
        }
        close(fd);
        return;
    }
    user->fds[user->n++] = fd;
    quota_set(&user->charge, user->n + user->n_closing);
    if (!is_new)
        return;
    LIST_INSERT_HEAD(&closer->users, user, link);
    core_job_begin(closer->core);
    begin(user);
}
