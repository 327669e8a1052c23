#include "daemon/base/mailbox.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

struct mailbox {
    uv_async_t async;
    uv_mutex_t mutex; /* guards the list */
    struct letter *first;
    struct letter **end;
};

static void mailbox_deliver(uv_async_t *async)
{
    struct mailbox *mailbox = async->data;
    uv_mutex_lock(&mailbox->mutex);
    struct letter *letter = mailbox->first;
    mailbox->first = NULL;
    mailbox->end = &mailbox->first;
    uv_mutex_unlock(&mailbox->mutex);

    while (letter) {
        struct letter *next = letter->next; /* delivery may free the letter */
        letter->deliver(letter);
        letter = next;
    }
}

int mailbox_new(uv_loop_t *loop, struct mailbox **ret)
{
    struct mailbox *mailbox = calloc(1, sizeof(*mailbox));
    if (!mailbox)
        return -ENOMEM;
    int r = uv_mutex_init(&mailbox->mutex);
    if (r < 0)
        goto fail_mailbox;
    r = uv_async_init(loop, &mailbox->async, mailbox_deliver);
    if (r < 0)
        goto fail_mutex;
    mailbox->async.data = mailbox;
    mailbox->end = &mailbox->first;
    *ret = mailbox;
    return 0;

fail_mutex:
    uv_mutex_destroy(&mailbox->mutex);
fail_mailbox:
    free(mailbox);
    return r;
}

void mailbox_post(struct mailbox *mailbox, struct letter *letter)
{
    letter->next = NULL;
    uv_mutex_lock(&mailbox->mutex);
    *mailbox->end = letter;
    mailbox->end = &letter->next;
    uv_mutex_unlock(&mailbox->mutex);
    uv_async_send(&mailbox->async);
}

static void mailbox_closed(uv_handle_t *handle)
{
    struct mailbox *mailbox = handle->data;
    uv_mutex_destroy(&mailbox->mutex);
    free(mailbox);
}

void mailbox_close(struct mailbox *mailbox)
{
    if (!mailbox)
        return;
    assert(!mailbox->first);
    uv_close((uv_handle_t *)&mailbox->async, mailbox_closed);
}
