/* The file descriptor store of the service manager: it keeps descriptors for the daemon, and gives them to the next one
 * at its start. systemd has one (sd_pid_notify_with_fds(3), FileDescriptorStoreMax=); rocmforge-hold is another, and
 * speaks the same protocol. A descriptor keeps its memory alive while no process of the daemon runs.
 *
 * Loop thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a descriptor is for. */
enum store_role {
    STORE_DESCRIPTION, /* number: the later description of a model has the greater one */
    STORE_ARENA,       /* number: 0 */
    STORE_HEADER,      /* number: which file of a split model, in the order of the header's parts */
    STORE_FILE,        /* number: of the descriptor, among those that were stored for this model */
    STORE_ROLES,
};

/* "rocmforge-0123456789abcdef-d4294967295" and its NUL; with what separates it from the next one. */
#define STORE_NAME_SIZE 40u

/* The most bytes of all names. The next daemon gets them in $LISTEN_FDNAMES, and the kernel starts no program with a
 * variable of 128 KiB: then no model would be there any more, and no daemon. The rest is for the names of sockets. */
#define STORE_NAMES_MAX (100u << 10)

/* So this is the most descriptors. FileDescriptorStoreMax= in the units is the same number, and rocmforge-hold's. */
#define STORE_MAX (STORE_NAMES_MAX / STORE_NAME_SIZE)

struct store_name {
    uint64_t key; /* of the model: a random number */
    enum store_role role;
    uint32_t number;
};

/* A descriptor that the store gave back. */
struct store_entry {
    struct store_name name;
    int fd; /* -1: taken over by somebody else */
};

/* Whether a service manager listens that may have a store. */
bool store_there(void);

/* How many descriptors the store has room for: STORE_MAX, or less if the service manager says so in $FDSTORE. */
size_t store_most(void);

/* Puts a copy of the descriptor into the store. 0; -ENOENT: there is no store; or the errno of sending. The store gives
 * no answer: a full one closes the copy. So store_room.h counts. */
int store_add(const struct store_name *name, int fd);

/* Removes what has this name. */
void store_remove(const struct store_name *name);

/* Returns when the store has done all that it was sent, or after a second or two. May block: any thread. */
void store_wait(void);

/* Whether this is the name of something that this file stored. */
bool store_name_parse(const char *text, struct store_name *ret);
