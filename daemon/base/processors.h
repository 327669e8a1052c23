/* The processors that this process may use: how many, and how large their last-level caches are. Any thread; may block
 * for a moment. */
#pragma once

#include <sched.h>
#include <stdint.h>

/* How many processors' time the process may use: those of its affinity, which a cpuset bounds too; or fewer, if a
 * control group of version 2 that it is in has a quota (cpu.max), rounded up. At least 1. `groups` is the path
 * /proc/self/cgroup; `root` is where the control groups are, /sys/fs/cgroup. */
unsigned processors_usable(const char *groups, const char *root);

/* Bytes of all last-level caches of these processors; NULL: those of the affinity. A cache that several of them share
 * counts once. 0: the system does not tell. `root` is the path /sys/devices/system/cpu. */
uint64_t processors_cache(const char *root, const cpu_set_t *processors);
