/* A text that a client passed: in the message, or in a file in memory, as far as is known before it is read: it may be
 * any file until then.
 *
 * Any thread; one owner at a time. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct closer;

struct client_text {
    char *text; /* NULL: it is in the file, if there is one */
    size_t size;
    int fd;                /* -1: none */
    struct closer *closer; /* of the file, and `uid`, whose it is */
    uid_t uid;
};

#define CLIENT_TEXT_NONE ((struct client_text){.fd = -1})

/* Whether there is one, empty or not. */
bool client_text_given(const struct client_text *text);

/* Loop. Frees it, and makes it CLIENT_TEXT_NONE. */
void client_text_clear(struct client_text *text);
