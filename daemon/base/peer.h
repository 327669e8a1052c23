/* Who asks: the user and the groups of the process at the other end of a socket, as the kernel knew them when it
 * connected.
 *
 * Immutable, counted by whoever keeps it. Counting is for the loop thread; any thread may read. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct peer {
    unsigned references; /* 0: static */
    pid_t pid;
    uid_t uid;
    gid_t gid;
    size_t n_groups; /* supplementary ones */
    const gid_t *groups;
};

/* The peer of a connected socket: SO_PEERCRED and SO_PEERGROUPS. Returns 0 and a peer that the caller ends with
 * peer_unref(); a negative errno of getsockopt(); -ENOMEM. */
int peer_read(int socket, struct peer **ret);

/* This process itself. The same; errors are those of getgroups(). */
int peer_self(struct peer **ret);

/* Keeps it for one more; returns it. NULL is fine. */
struct peer *peer_ref(struct peer *peer);

/* NULL is fine. */
void peer_unref(struct peer *peer);

/* The group is the peer's own or one of the supplementary ones. */
bool peer_in_group(const struct peer *peer, gid_t group);
