/* The memory limits of the control groups that this process is in.
 *
 * libuv's uv_get_constrained_memory() looks only at the root of version 1, or at the group itself, not at those above.
 *
 * Parameters: `groups` is the path /proc/self/cgroup; `root` is the folder of the cgroup file systems, /sys/fs/cgroup,
 * where version 1 has the folder `memory`. May block; any thread. */
#pragma once

#include <limits.h>
#include <stdint.h>

/* The smallest limit. */
struct cgroup_limit {
    uint64_t bytes;      /* UINT64_MAX: there is none */
    char file[PATH_MAX]; /* the file with the limit; empty: there is no limit */
};

/* A group whose files cannot be read counts as one without a limit. */
void cgroup_memory_limit(const char *groups, const char *root, struct cgroup_limit *ret);

/* How much memory the limits leave: for each group with a limit, the limit less the memory that all its processes use,
 * this one included. Page cache of files does not count as used, because the kernel frees it when memory is needed
 * (active_file and inactive_file in memory.stat; memfds are not among these). Returns the smallest of these numbers, or
 * UINT64_MAX if no group has a limit. */
uint64_t cgroup_memory_free(const char *groups, const char *root);
