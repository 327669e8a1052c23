/* Brings finished work from any thread to the loop, in the order in which it was posted. If much was posted, the loop
 * does other work between.
 *
 * The loop takes no lock: a worker has a lower priority and may lose its processor at any point, and the loop would
 * wait for it. (uv_async_send() and its handler share a flag that the loop spins on.) */
#pragma once

#include <uv.h>

struct mailbox;

/* What is posted. It belongs to the mailbox from mailbox_post() until deliver() is called, and is in one mailbox at a
 * time. */
struct letter {
    void (*deliver)(struct letter *letter); /* called on the loop */
    struct letter *next;
};

/* loop. Returns 0 or a negative errno. */
int mailbox_new(uv_loop_t *loop, struct mailbox **ret);

/* Any thread. Never waits. */
void mailbox_post(struct mailbox *mailbox, struct letter *letter);

/* loop. None is posted any more; those that were are delivered. The memory is freed when libuv has closed the handle.
 * NULL is fine. */
void mailbox_close(struct mailbox *mailbox);
