/* Brings finished work from any thread to the loop, in the order in which it finished. */
#pragma once

#include <uv.h>

struct mailbox;

/* What is posted. The poster owns it until it is delivered; a letter is in one mailbox once. */
struct letter {
    void (*deliver)(struct letter *letter); /* called on the loop */
    struct letter *next;
};

/* loop. Returns 0 or a negative errno. */
int mailbox_new(uv_loop_t *loop, struct mailbox **ret);

/* Any thread. */
void mailbox_post(struct mailbox *mailbox, struct letter *letter);

/* loop. Nothing is posted any more, and all was delivered. Frees it once the loop lets go of it. NULL is fine. */
void mailbox_close(struct mailbox *mailbox);
