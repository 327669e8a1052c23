/* Brings finished work from any thread to the loop, in the order in which it finished. */
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

/* Any thread. */
void mailbox_post(struct mailbox *mailbox, struct letter *letter);

/* loop. All letters were delivered, and none is posted any more. The memory is freed when libuv has closed the handle.
 * NULL is fine. */
void mailbox_close(struct mailbox *mailbox);
