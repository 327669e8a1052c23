/* Reads files past the page cache, with O_DIRECT and io_uring. One thread of its own begins the reads and waits for
 * them. So many reads are under way at a time, and no worker waits for a disk.
 *
 * This is only a quicker way to bytes that pread() would read too. What it does not deliver, for whatever reason, the
 * caller reads with pread(), which also tells the error. */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct direct;

/* Offsets, sizes and memory are multiples of this. */
#define DIRECT_ALIGNMENT 4096u

struct direct_read {
    /* In. Borrowed until done() is called. */
    int fd; /* open with O_DIRECT */
    void *dst;
    uint64_t offset;
    size_t size; /* may reach past the end of the file */
    /* Called exactly once, on the thread of its own; it does not block. After the call the read is not used any more.
     */
    void (*done)(struct direct_read *read);

    /* Out. */
    size_t got; /* so many bytes from `offset` on are in `dst` */
    int error;  /* negative errno with which the piece after these failed; 0: it was read, or the file ends there */

    /* The reader's own. */
    struct direct_read *next;
    size_t begun;    /* so many bytes are asked for, or were */
    unsigned pieces; /* that are under way */
};

/* loop. Starts the thread. -ENOSYS: this program was built without liburing. -ENOSYS, -EPERM and others: the kernel, or
 * a container's rules, have no io_uring for this process. */
int direct_new(struct direct **ret);

/* loop. No read is under way. Waits for the thread. NULL is fine. */
void direct_free(struct direct *direct);

/* Any thread. Never waits. */
void direct_submit(struct direct *direct, struct direct_read *read);
