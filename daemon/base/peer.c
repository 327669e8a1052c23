#include "daemon/base/peer.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* What Linux allows a process (NGROUPS_MAX). */
#define GROUPS_MAX 65536u

static int peer_new(pid_t pid, uid_t uid, gid_t gid, size_t n_groups, struct peer **ret)
{
    struct peer *peer = malloc(sizeof(*peer) + n_groups * sizeof(gid_t));
    if (!peer)
        return -ENOMEM;
    *peer = (struct peer){.references = 1, .pid = pid, .uid = uid, .gid = gid, .n_groups = n_groups};
    peer->groups = (const gid_t *)(peer + 1);
    *ret = peer;
    return 0;
}

int peer_read(int socket, struct peer **ret)
{
    struct ucred credentials;
    socklen_t size = sizeof(credentials);
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) < 0)
        return -errno;
    /* A call without room tells how much is needed. */
    size = 0;
    if (getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, NULL, &size) < 0 && errno != ERANGE)
        return -errno;
    if (size > GROUPS_MAX * sizeof(gid_t))
        return -E2BIG;
    struct peer *peer = NULL;
    int r = peer_new(credentials.pid, credentials.uid, credentials.gid, size / sizeof(gid_t), &peer);
    if (r < 0)
        return r;
    if (size > 0 && getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, (gid_t *)(uintptr_t)peer->groups, &size) < 0) {
        r = -errno;
        free(peer);
        return r;
    }
    *ret = peer;
    return 0;
}

int peer_self(struct peer **ret)
{
    int n = getgroups(0, NULL);
    struct peer *peer = NULL;
    int r = n < 0 ? -errno : peer_new(getpid(), geteuid(), getegid(), (size_t)n, &peer);
    if (r < 0)
        return r;
    if (n > 0 && getgroups(n, (gid_t *)(uintptr_t)peer->groups) != n) {
        free(peer);
        return -EAGAIN; /* they changed meanwhile */
    }
    *ret = peer;
    return 0;
}

struct peer *peer_ref(struct peer *peer)
{
    if (peer && peer->references > 0)
        peer->references++;
    return peer;
}

void peer_unref(struct peer *peer)
{
    if (peer && peer->references > 0 && --peer->references == 0)
        free(peer);
}

bool peer_in_group(const struct peer *peer, gid_t group)
{
    if (peer->gid == group)
        return true;
    for (size_t i = 0; i < peer->n_groups; i++)
        if (peer->groups[i] == group)
            return true;
    return false;
}
