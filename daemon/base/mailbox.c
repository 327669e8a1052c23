#include "daemon/base/mailbox.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Letters are delivered for so many nanoseconds; then the loop looks at its other work before it goes on. */
#define DELIVER_NS 1000000u

struct mailbox {
    uv_poll_t poll;
    int event;           /* is written when a letter is posted, and while some wait in `first` */
    struct letter *last; /* atomic: the letter posted last; `next` leads to the one before it */

    /* Loop: letters that were taken and not delivered yet, in the order in which they were posted. */
    struct letter *first;
    struct letter **end;
};

/* Takes what was posted, behind what waits. */
static void mailbox_take(struct mailbox *mailbox)
{
    struct letter *first = NULL, *letter = __atomic_exchange_n(&mailbox->last, NULL, __ATOMIC_ACQUIRE);
    struct letter *last = letter;
    while (letter) {
        struct letter *before = letter->next;
        letter->next = first;
        first = letter;
        letter = before;
    }
    if (!first)
        return;
    *mailbox->end = first;
    mailbox->end = &last->next;
}

static void mailbox_deliver_first(struct mailbox *mailbox)
{
    struct letter *letter = mailbox->first;
    mailbox->first = letter->next;
    if (!mailbox->first)
        mailbox->end = &mailbox->first;
    letter->deliver(letter); /* may free the letter, and may close the mailbox */
}

static void mailbox_wake(struct mailbox *mailbox)
{
    const uint64_t one = 1;
    (void)!write(mailbox->event, &one, sizeof(one));
}

static void mailbox_deliver(uv_poll_t *poll, int status, int events)
{
    struct mailbox *mailbox = poll->data;
    (void)status;
    (void)events;
    uint64_t count;
    (void)!read(mailbox->event, &count, sizeof(count)); /* before the letters are taken: none is overlooked */
    mailbox_take(mailbox);
    const uint64_t began = uv_hrtime();
    while (mailbox->first && uv_hrtime() - began < DELIVER_NS)
        mailbox_deliver_first(mailbox);
    if (mailbox->first)
        mailbox_wake(mailbox);
}

int mailbox_new(uv_loop_t *loop, struct mailbox **ret)
{
    struct mailbox *mailbox = calloc(1, sizeof(*mailbox));
    if (!mailbox)
        return -ENOMEM;
    mailbox->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int r = mailbox->event < 0 ? -errno : uv_poll_init(loop, &mailbox->poll, mailbox->event);
    if (r < 0) {
        if (mailbox->event >= 0)
            close(mailbox->event);
        free(mailbox);
        return r;
    }
    mailbox->poll.data = mailbox;
    mailbox->end = &mailbox->first;
    uv_poll_start(&mailbox->poll, UV_READABLE, mailbox_deliver); /* fails only for a handle that is being closed */
    *ret = mailbox;
    return 0;
}

void mailbox_post(struct mailbox *mailbox, struct letter *letter)
{
    struct letter *before = __atomic_load_n(&mailbox->last, __ATOMIC_RELAXED);
    do
        letter->next = before;
    while (!__atomic_compare_exchange_n(&mailbox->last, &before, letter, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
    /* The thread that posted the letter before this one wakes the loop, too. But it may have been preempted before it
     * did. So every thread wakes the loop. */
    mailbox_wake(mailbox);
}

static void mailbox_closed(uv_handle_t *handle)
{
    struct mailbox *mailbox = handle->data;
    close(mailbox->event);
    free(mailbox);
}

void mailbox_close(struct mailbox *mailbox)
{
    if (!mailbox)
        return;
    for (mailbox_take(mailbox); mailbox->first; mailbox_take(mailbox))
        mailbox_deliver_first(mailbox);
    uv_poll_stop(&mailbox->poll);
    uv_close((uv_handle_t *)&mailbox->poll, mailbox_closed);
}
