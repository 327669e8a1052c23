/* How much memory the control groups that this process is in let it have.
 *
 * libuv's uv_get_constrained_memory() looks only at the root of version 1, or at the group itself, not at those above.
 *
 * In what follows `groups` is /proc/self/cgroup, `root` where the file systems are, /sys/fs/cgroup; version 1 has its
 * own in `memory` there. May block; any thread. */
#pragma once

#include <limits.h>
#include <stdint.h>

/* The smallest limit. */
struct cgroup_limit {
    uint64_t bytes;      /* UINT64_MAX: there is none */
    char file[PATH_MAX]; /* that says so; empty: none does */
};

/* What cannot be read is no limit. */
void cgroup_memory_limit(const char *groups, const char *root, struct cgroup_limit *ret);

/* What is left of the limits: of each group that has one, less what all processes in it take, this one included; but
 * the kernel gives back what it keeps of files (memory.stat: active_file and inactive_file; memory files are not among
 * these). The least of them; UINT64_MAX if no group has a limit. */
uint64_t cgroup_memory_free(const char *groups, const char *root);
