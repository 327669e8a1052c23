/* How much memory the process may lock. */
#pragma once

#include <stdint.h>

/* Bytes that may be locked in all: the hard limit RLIMIT_MEMLOCK, to which the soft limit is raised; UINT64_MAX if
 * there is none, or if the process has the capability CAP_IPC_LOCK and needs none. At the start, before there are
 * threads. */
uint64_t lock_limit_raise(void);
